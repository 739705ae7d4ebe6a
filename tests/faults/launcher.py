"""A `jobq-worker` with shorter times than the real one, so that what follows from their end can be seen in seconds.

`FAULTS_LEASE_SECONDS` is the first lease, `FAULTS_READ_SECONDS` how long it waits for an answer of the storage; the command line
is that of `jobq-worker`. It says from which files the package comes: a mutant that is not really imported would prove nothing.
"""

from __future__ import annotations

import os


def main() -> None:
    """Set the times, before anything copies them; then be the worker."""
    from ai4s.jobq.worker import lease

    if seconds := os.environ.get("FAULTS_LEASE_SECONDS"):
        lease.FIRST_LEASE_SECONDS = float(seconds)
    assert lease.USUAL_TERMS.seconds == lease.FIRST_LEASE_SECONDS
    if seconds := os.environ.get("FAULTS_READ_SECONDS"):
        from ai4s.jobq.transports.azure import connection

        connection.READ_SECONDS = float(seconds)
    print("package", lease.__file__, flush=True)
    from ai4s.jobq.cli import worker_main

    worker_main()


if __name__ == "__main__":
    main()
