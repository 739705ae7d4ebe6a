"""Programs of Debian's that tests need: Chromium and Prometheus, found on PATH, else fetched once with apt-get.

Prometheus needs nothing but its file: it is unpacked into the checkout's `.tools`, without root, and no service is started.
Chromium needs two dozen libraries, so it is installed as a package, as root or by a sudo that asks for nothing. Parallel runs
wait for the first. A test that needs a program fails where it cannot be had; it never skips quietly. Needs no more than Python,
so that a build machine can fetch all before the tests: `python tests/programs.py`.

Next: `acceptance/test_grafana_board.py`, which starts a Prometheus.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent / ".tools"
LIMIT_SECONDS = 240.0  # for one command; the largest takes a tenth of it from a mirror nearby
APT = ["apt-get", "-q", "-y", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=20", "-o", "DPkg::Lock::Timeout=120"]


class ProgramMissing(RuntimeError):
    """A program is not on this machine and cannot be fetched here."""


def chromium() -> str:
    """The path of a Chromium, or of a Chrome."""
    if path := find("chromium", "google-chrome"):
        return path
    with one_at_a_time():
        return find("chromium") or install("chromium")


def prometheus() -> str:
    """The path of Prometheus, the program."""
    if path := find("prometheus"):
        return path
    program = TOOLS / "prometheus" / "usr" / "bin" / "prometheus"
    with one_at_a_time():
        if not program.exists():
            unpack("prometheus")
    return str(program)


def find(*names: str) -> str | None:
    """The first of these programs that this machine has."""
    return next(filter(None, map(shutil.which, names)), None)


def install(package: str) -> str:
    """Install a package of Debian's, and return the path of the program that is called as it is."""
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    run(package, *root, *APT, "update", check=False)  # fails where any one source does; whether it matters, the next line tells
    run(package, *root, "env", "DEBIAN_FRONTEND=noninteractive", *APT, "install", "--no-install-recommends", package)
    if path := find(package):
        return path
    raise ProgramMissing(f"The package {package} is installed, but there is no program `{package}` on PATH; look at PATH.")


def unpack(package: str) -> None:
    """Fetch a package of Debian's and lay its files out in `.tools/<package>`."""
    with tempfile.TemporaryDirectory(dir=TOOLS) as name:
        folder = Path(name)
        download(package, folder)
        archive = next(folder.glob(f"{package}_*.deb"))
        run(package, "dpkg-deb", "--extract", str(archive), str(folder / "files"))
        (folder / "files").rename(TOOLS / package)  # whole or not at all


def download(package: str, folder: Path) -> None:
    """Download one package by the machine's own lists, or, where those are missing or old, by fresh ones in the folder."""
    command = [*APT, "-o", "APT::Sandbox::User=root"]  # else a warning: its own user may not write to the folder
    if run(package, *command, "download", package, cwd=folder, check=False):
        return
    for path in ("lists/partial", "cache/archives/partial"):
        (folder / path).mkdir(parents=True)
    command += ["-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
    run(package, *command, "update", cwd=folder, check=False)
    run(package, *command, "download", package, cwd=folder)


def run(package: str, *command: str, cwd: Path | None = None, check: bool = True) -> bool:
    """Whether a command succeeds; with `check`, it has to."""
    try:
        answer = subprocess.run(
            command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=LIMIT_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        code, said = -1, str(exc)
    else:
        code, said = answer.returncode, answer.stdout
    if code and check:
        raise ProgramMissing(
            f"The tests need `{package}`: install that package of Debian's, or put the program on PATH. "
            f"`{' '.join(command)}` failed:\n{said[-2000:]}"
        )
    return not code


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the lock that all test processes of this checkout share."""
    TOOLS.mkdir(parents=True, exist_ok=True)
    with (TOOLS / "programs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    print(chromium(), prometheus(), sep="\n", flush=True)
