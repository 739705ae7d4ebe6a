"""A worker process that lives as long as a `with` block, and no longer than the program that started it.

It is the same program as `jobq-worker`, told over its standard input what to do; the end of that input is the end of its
work, so it goes even if this process is killed. Being a process of its own, it keeps its leases whatever this one computes.

Next: `worker/__main__.py`, the other end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

from .client import Client
from .errors import ConfigurationError
from .running import being_imported

READY = "ready"


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a background worker is told, as one line of JSON; over a pipe, since it may hold secrets."""

    app: str
    url: str
    signing_keys: tuple[str, ...] = field(repr=False)
    create: bool
    result_ttl_seconds: float | None
    queues: tuple[str, ...]
    modules: tuple[str, ...]
    search_path: tuple[str, ...]
    concurrency: int
    async_concurrency: int

    def to_line(self) -> str:
        """One line of text."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Assignment:
        """The assignment in a line that `to_line` made."""
        values: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(line).items()}
        return cls(**values)


class BackgroundWorker:
    """The context manager that `app.worker()` returns."""

    def __init__(
        self, client: Client, *, queues: tuple[str, ...], modules: tuple[str, ...], concurrency: int, async_concurrency: int
    ) -> None:
        self._client, self._queues, self._modules = client, queues, modules
        self._sizes = {"concurrency": concurrency, "async_concurrency": async_concurrency}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> BackgroundWorker:
        if self._process is not None:
            raise ConfigurationError("This worker runs already; app.worker() makes another one.")
        command = [sys.executable, "-m", "ai4s.jobq.worker"]
        imported = being_imported()
        if imported is not None:
            raise ConfigurationError(
                f"{imported} starts a worker when it is imported, and a worker imports it now. "
                'Put what the program does under `if __name__ == "__main__":`.'
            )
        # A session of its own: Ctrl-C is for this program, which ends the worker when it leaves the block.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(self._assignment().to_line())
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        if answer != READY:
            self._stop()
            raise ConfigurationError(answer or "The background worker ended before it was ready; its output says why.")
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """The worker's process id; raises ConfigurationError outside the `with` block."""
        if self._process is None:
            raise ConfigurationError("The worker runs only within its `with` block.")
        return self._process.pid

    def _assignment(self) -> Assignment:
        client = self._client
        return Assignment(
            app=client.name,
            url=client.url,
            signing_keys=client.keyring.keys,
            create=client.create,
            result_ttl_seconds=client.result_ttl_seconds,
            queues=self._queues,
            modules=self._modules,
            search_path=tuple(sys.path),
            **self._sizes,
        )

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin and process.stdout
            process.stdin.close()
            process.wait()
            process.stdout.close()
