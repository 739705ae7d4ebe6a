"""A `map` from its items to its outcomes: packs are made and sent, and what became of their calls is read from the log.

Nothing here runs a call, and nothing here settles one.

Next: `feeding.py` for how items are taken, `mapping.py` for how they are submitted, `batch.py` for what users hold.
"""
