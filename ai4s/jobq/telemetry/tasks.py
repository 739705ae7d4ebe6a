"""Where tasks run: a place for the spans that they make themselves, if traces go anywhere.

Next: `context.py`, by which those spans belong to their call's.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from .switches import available, switches

SERVICE = "jobq-worker"


def trace_tasks(worker: str, environ: Mapping[str, str], environment: str | None = None) -> None:
    """Have spans that tasks make in this process go where a worker's do; what a task's module has set up itself stays.

    What has not been sent yet goes at the interpreter's end.
    """
    wanted = switches(environ)
    if not wanted.traces:
        return
    on = available(wanted, environ, quietly=True)  # the worker has said what is missing
    if on.traces:
        # Where it fails it has failed for the worker too, which has said so.
        with suppress(Exception):
            from .providers import Identity, resource, trace_this_process

            trace_this_process(on, resource(Identity(SERVICE, worker, environment), environ), environ)
