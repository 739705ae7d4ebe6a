"""Celery on Azure Storage: kombu's `azurestoragequeues` as its broker, `azureblockblob` for results, everything else as it comes.

Celery looks for messages once a second and for a result every half; its documentation offers `polling_interval` for the first and
`interval` of `get` for the second. $CELERY_POLL_SECONDS sets both, so that it can also be seen at its quickest.

Next: `old_jobq.py`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import celery
from program import Run, main, workers

URL, POLL = "JOBQ_BENCHMARK_URL", "CELERY_POLL_SECONDS"


def made() -> celery.Celery:
    """The app; the storage account's connection string comes from the environment, as worker and producer both import this."""
    url = os.environ.get(URL, "")
    parts = dict(part.split("=", 1) for part in url.split(";") if part)
    app = celery.Celery(
        "celery_on_azure",
        broker=f"azurestoragequeues://{parts.get('AccountKey')}@{parts.get('QueueEndpoint')}",
        backend=f"azureblockblob://{url}",
    )
    app.conf.azureblockblob_container_name = "celery"
    app.conf.broker_connection_retry_on_startup = True
    if POLL in os.environ:
        app.conf.broker_transport_options = {"polling_interval": float(os.environ[POLL])}
    return app


app = made()


@app.task(name="no_op")
def no_op(x: int) -> int:
    return x


@contextlib.contextmanager
def serve(place: str, processes: int) -> Iterator[Run]:
    os.environ[URL] = place
    command = [sys.executable, "-m", "celery", "--app", "celery_on_azure", "worker", "--pool", "prefork"]
    interval = float(os.environ.get(POLL, "0.5"))
    # Imported anew, under the name by which the worker knows it, now that the environment says where.
    import celery_on_azure

    def run(calls: int) -> list[int]:
        sent = [celery_on_azure.no_op.delay(x) for x in range(calls)]
        return [one.get(interval=interval) for one in sent]

    with workers([*command, "--concurrency", str(processes), "--loglevel", "ERROR"]):
        yield run


if __name__ == "__main__":
    main(serve)
