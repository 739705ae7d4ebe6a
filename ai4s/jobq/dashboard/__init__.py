"""The app in a browser: a server on this machine that reads the storage account, and pages that poll it.

One refresh serves all who look, at a bounded number of requests; what the storage does not answer is shown as old, never as empty.
Nothing that users or tasks wrote is run, unpickled, or taken for anything but text, and nothing is changed unless that was allowed.

Next: `refresh.py` for what is read when, `server.py` for who may ask.
"""
