"""Data of users in containers, for tasks that move it: reads, writes, files and folders, with a cache on the machine.

It uses the stores of `transports/` and knows nothing of calls.

Next: `blobs.py` for what users hold, `containers.py` for what it does.
"""
