"""The worker: a supervisor that holds leases and settles, and children that run user code.

The supervisor imports no user code and decodes no value, so that leases are renewed whatever a task does.

Next: `runtime.py` for how it is put together; `attempt.py` for what happens to one message.
"""
