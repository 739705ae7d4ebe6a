"""Shell work: calls of the built-in task `jobq.shell`, whose worker's side runs a command under bash.

Next: `calls.py` for who submits; `running.py` for what a worker's child does with it.
"""
