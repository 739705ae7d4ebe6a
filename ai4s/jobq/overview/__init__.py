"""What a person sees of an app from outside, and may clear away: queues, workers, messages, and how much is left to do.

Nothing here runs or decodes what users wrote; nothing here settles a delivery but `clearing.py`, which cancels first.

Next: `queues.py`.
"""
