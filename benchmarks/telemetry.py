"""What telemetry costs: nothing where it is off, and how much where producer, worker and child send traces and metrics.

    python benchmarks/telemetry.py [--short] [--output FOLDER]

Where it is off, what a call pays is too little to be seen in its time; so what is called for it is timed by itself, and set beside
the time of a call. With and without take turns on the local store; a collector that keeps nothing runs beside them.

Next: `references/our_calls.py`, of which one runs with telemetry, and one without.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import timeit
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import outside
from figures import Figure, Options, Result, report, versions
from outside import Reference

from ai4s.jobq.message import Call
from ai4s.jobq.telemetry.context import attached
from ai4s.jobq.telemetry.opening import open_telemetry
from ai4s.jobq.telemetry.sending import Producing
from ai4s.jobq.telemetry.working import About
from ai4s.jobq.transports.base import Delivery, Receipt

TITLE = "Telemetry"
OFF = Reference("without telemetry", "our_calls.py")
PART = 0.01
"""What telemetry that is off may take of a call, at most."""

LOADED = """
import sys, ai4s.jobq, ai4s.jobq.app, ai4s.jobq.worker.runtime, ai4s.jobq.worker.child
print(sum(name.partition(".")[0] in ("opentelemetry", "prometheus_client") for name in sys.modules))
"""


@dataclass(frozen=True)
class Sizes:
    """How many calls at a time, and how often."""

    single: int = 500
    mapped: int = 20_000
    rounds: int = 5
    looks: int = 20_000


SHORT = Sizes(single=20, mapped=1_500, rounds=1, looks=100)


def measure(options: Options) -> Result:
    """All of it."""
    sizes = SHORT if options.short else Sizes()
    with collector() as url, ExitStack() as stack:
        variables = (("OTEL_EXPORTER_OTLP_ENDPOINT", url), ("OTEL_METRIC_EXPORT_INTERVAL", "5000"))
        on = Reference("with telemetry", OFF.program, variables=variables)
        places = [f"local://{stack.enter_context(tempfile.TemporaryDirectory())}" for _ in range(2)]
        programs = [
            stack.enter_context(outside.started(kind, place, processes=1)) for kind, place in zip((on, OFF), places, strict=True)
        ]
        # Two each at first that do not count: children and connections are to be there.
        single, mapped = [take_turns(programs, calls, sizes.rounds) for calls in (sizes.single, sizes.mapped)]
    look = seconds_a_look(sizes.looks)
    figures = [
        Figure("modules of OpenTelemetry, loaded while it is off", modules_loaded(), "modules", at_most=0),
        Figure("what a single call pays while it is off", look, "s", single[1] / sizes.single, "a single call", at_most=PART),
        _rate(f"{sizes.single} single no-op calls and their results, traced", sizes.single, single),
        _rate(f"{sizes.mapped:,} no-op calls by map, traced", sizes.mapped, mapped),
    ]
    return Result("telemetry", TITLE, figures, short=options.short, versions=versions("opentelemetry-sdk"))


def _rate(name: str, calls: int, seconds: tuple[float, float]) -> Figure:
    on, off = (calls / each for each in seconds)
    return Figure(name, on, "calls/s", off, OFF.name)


def take_turns(programs: list[outside.Started], calls: int, rounds: int) -> tuple[float, float]:
    """The median seconds of each, with telemetry and without."""
    for program in programs:
        program.seconds(calls)
    pairs = [tuple(program.seconds(calls)[0] for program in programs) for _ in range(rounds)]
    on, off = (statistics.median(each) for each in zip(*pairs, strict=True))
    return on, off


def seconds_a_look(looks: int) -> float:
    """What is called of telemetry for one single call, on all sides, while it is off; the best of five times."""
    call = Call("a" * 16 + "-" + "0" * 12, "bench.no_op", "default", b"", 0.0)
    delivery = Delivery(Receipt("m", "r"), "", 1, 0.0, 0.0, 0.0)
    producing = Producing("bench", {})
    with open_telemetry(About("bench", "worker")) as telemetry:

        def look() -> None:
            with producing.begin(call):
                pass
            telemetry.received("default", (delivery,), 0.0)
            telemetry.opened(delivery, call.trace)
            with telemetry.processing(call) as process, attached(process.trace), process.settling():
                pass

        return min(timeit.repeat(look, number=looks, repeat=5)) / looks


def modules_loaded() -> int:
    """How many of OpenTelemetry's modules are there once a producer's, a worker's and a child's have been imported."""
    ran = subprocess.run([sys.executable, "-c", LOADED], stdout=subprocess.PIPE, text=True, check=True)
    return int(ran.stdout)


@contextmanager
def collector() -> Iterator[str]:
    """Takes what it is sent, and keeps nothing of it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    report("telemetry", TITLE, measure)
