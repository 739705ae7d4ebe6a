"""Code by value: functions with their policy, and modules as zips that import on the other side as they did at home."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import math
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ai4s.jobq import payload
from ai4s.jobq.errors import DeclarationError, Malformed, NotSerializable
from ai4s.jobq.layout import sha256_of
from ai4s.jobq.ledger import Ledger
from ai4s.jobq.payload import ByValue, check_shipped, function_payload, is_importable, module_payload
from ai4s.jobq.retry import RetryPolicy
from ai4s.jobq.signing import Keyring
from ai4s.jobq.transports.local import LocalTransport
from ai4s.jobq.transports.place import LocalPlace
from ai4s.jobq.worker.scratch import Scratch

Home = Callable[[dict[str, str], str], ModuleType]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """Writes files, imports a module among them, and forgets it afterwards."""
    folder = tmp_path / "home"
    known = set(sys.modules)

    def write(files: dict[str, str], module: str) -> ModuleType:
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(folder)
        importlib.invalidate_caches()
        return importlib.import_module(module)

    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    yield write
    for name in set(sys.modules) - known:
        del sys.modules[name]


def names_in(data: bytes) -> list[str]:
    """The files of a zip."""
    return zipfile.ZipFile(io.BytesIO(data)).namelist()


def elsewhere(data: bytes, folder: Path, program: str) -> Any:
    """What a program prints as JSON in a process that has nothing of ours but this zip, unpacked."""
    unpacked = folder / "elsewhere"
    zipfile.ZipFile(io.BytesIO(data)).extractall(unpacked)
    environ = {**os.environ, "PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-W", "error", "-P", "-c", f"import json\n{program}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environ, cwd=folder)
    return json.loads(answer.stdout)


class NoTransport:
    """A place that must not be asked anything."""

    def store(self, _: str) -> Any:
        return None


PACKAGE = {
    "myproj/__init__.py": "from .core import square\nVERSION = 3\n",
    "myproj/core.py": "def square(x):\n    return x * x\n",
    "myproj/sub/__init__.py": "",
    "myproj/sub/deep.py": "from ..core import square\nfrom .. import VERSION\n",
    "myproj/data/table.txt": "1 2 3\n",
}


# Functions.


def test_a_function_travels_with_its_policy() -> None:
    """A lambda with what it closes over, and what its worker must know of its retries."""
    factor, policy = 3, RetryPolicy(retries=2, retry_on=(ValueError, OSError))
    made = pickle.loads(function_payload(lambda x: factor * x, policy))
    assert isinstance(made, ByValue)
    assert made.function(5) == 15
    assert made.policy == policy


def test_a_function_that_holds_what_cannot_travel_is_refused() -> None:
    """The error says what stands in the way."""
    lock = threading.Lock()
    with pytest.raises(NotSerializable, match="lock"):
        function_payload(lambda: lock, RetryPolicy())


def local_function() -> Callable[[], None]:
    """A function that nobody can import."""

    def inner() -> None:
        """Do nothing."""

    return inner


def test_what_a_worker_could_import_is_importable() -> None:
    """A module's own functions are; lambdas, inner functions, those of `__main__` and of shipped modules are not."""
    assert is_importable(math.sqrt, ())
    assert is_importable(zipfile.is_zipfile, ("zip", "zipfile2", "zipfile.x"))
    assert not is_importable(lambda: 1, ())
    assert not is_importable(local_function(), ())
    assert not is_importable(zipfile.is_zipfile, ("zipfile",))
    assert not is_importable(os.path.join, (os.path.join.__module__,))
    main = local_function()
    main.__module__, main.__qualname__ = "__main__", "main"
    assert not is_importable(main, ())


def test_functions_of_a_shipped_package_travel_by_value(home: Home) -> None:
    """All that lies in a shipped package counts as shipped, and what merely has a similar name does not."""
    home({**PACKAGE, "myproject.py": "def f(): pass\n"}, "myproj.sub.deep")
    square = importlib.import_module("myproj.core").square
    assert not is_importable(square, ("myproj",))
    assert is_importable(square, ("myproj.sub",))
    assert is_importable(importlib.import_module("myproject").f, ("myproj",))


# Modules.


def test_a_module_is_imported_from_what_was_unpacked(home: Home, tmp_path: Path) -> None:
    """A single file comes back under its name."""
    data = module_payload(home({"alone.py": "def double(x):\n    return 2 * x\n"}, "alone"))
    assert names_in(data) == ["alone.py"]
    program = "import alone; print(json.dumps([alone.double(4), alone.__file__]))"
    value, file = elsewhere(data, tmp_path, program)
    assert value == 8
    assert file.startswith(str(tmp_path / "elsewhere"))


def test_a_package_is_imported_from_what_was_unpacked(home: Home, tmp_path: Path) -> None:
    """With its sub-packages, relative imports and the files that lie beside them; without compiled ones."""
    data = module_payload(home(PACKAGE, "myproj"))
    assert names_in(data) == sorted(PACKAGE)
    program = """
import importlib.resources, pickle, myproj.sub.deep as deep
table = importlib.resources.files("myproj").joinpath("data/table.txt").read_text()
print(json.dumps([deep.square(5), deep.VERSION, table, pickle.loads(pickle.dumps(deep.square)).__module__]))
"""
    assert elsewhere(data, tmp_path, program) == [25, 3, "1 2 3\n", "myproj.core"]


IN_A_NAMESPACE = {
    "space/pkg/__init__.py": "VERSION = 3\n",
    "space/pkg/sub/__init__.py": "from .. import VERSION\n",
    "space/pkg/sub/deep.py": "from . import VERSION\n",
    "space/other/__init__.py": "",
}


@pytest.mark.parametrize(
    ("module", "whole"),
    [
        ("myproj.sub", "myproj"),
        ("myproj.sub.deep", "myproj"),
        ("myproj.core", "myproj"),
        ("myproj", "myproj"),
        ("space.pkg", "space.pkg"),
        ("space.pkg.sub", "space.pkg"),
        ("space.pkg.sub.deep", "space.pkg"),
        ("space.other", "space.other"),
    ],
)
def test_a_part_of_a_package_brings_the_whole_along(module: str, whole: str, home: Home, tmp_path: Path) -> None:
    """A part needs its parents, up to the outermost that is no mere namespace: `from .. import x` works there as at home."""
    home({**PACKAGE, **IN_A_NAMESPACE}, module)
    (shipped,) = check_shipped([sys.modules[module]])
    assert shipped.__name__ == whole
    program = f"import {module} as m; print(json.dumps([m.__name__, m.__file__]))"
    name, file = elsewhere(module_payload(shipped), tmp_path, program)
    assert name == module
    assert file.startswith(str(tmp_path / "elsewhere"))


def test_parts_of_one_package_bring_it_once(home: Home) -> None:
    """However many of its modules are named."""
    home(PACKAGE, "myproj.sub.deep")
    modules = [sys.modules[name] for name in ("myproj.sub.deep", "myproj.core", "myproj")]
    assert check_shipped(modules) == (sys.modules["myproj"],)


def test_a_namespace_package_is_shipped_from_all_its_folders(home: Home, tmp_path: Path) -> None:
    """A package without `__init__` may lie in several places, and travels whole."""
    module = home({"spread/one.py": "ONE = 1\n"}, "spread")
    (more := tmp_path / "more" / "spread").mkdir(parents=True)
    (more / "two.py").write_text("TWO = 2\n")
    sys.path.append(str(tmp_path / "more"))
    try:
        importlib.invalidate_caches()
        assert importlib.import_module("spread.two").TWO == 2
        data = module_payload(module)
    finally:
        sys.path.remove(str(tmp_path / "more"))
    assert elsewhere(data, tmp_path, "import spread.one, spread.two; print(json.dumps(spread.one.ONE + spread.two.TWO))") == 3


def test_the_same_files_make_the_same_bytes(home: Home, tmp_path: Path) -> None:
    """Neither times, nor rights, nor the order in which files were made change a payload's name; their text does."""
    module = home(PACKAGE, "myproj")
    before = module_payload(module)
    for path in sorted((tmp_path / "home").rglob("*.py"), reverse=True):
        text = path.read_text()
        path.unlink()
        path.write_text(text)
        path.chmod(0o755)
        os.utime(path, (1, 1))
    assert module_payload(module) == before
    (tmp_path / "home" / "myproj" / "core.py").write_text("def square(x):\n    return x ** 2\n")
    assert module_payload(module) != before


@pytest.mark.parametrize("name", ["math", "sys", "_ctypes"])
def test_what_has_no_source_is_refused(name: str) -> None:
    """A built-in or compiled module cannot be shipped, and the error says so at declaration."""
    module = importlib.import_module(name)
    with pytest.raises(DeclarationError, match=rf"Python source; {name}"):
        check_shipped([module])
    with pytest.raises(DeclarationError, match=rf"Python source; {name}"):
        module_payload(module)


def test_a_module_made_by_hand_is_refused() -> None:
    """A module without a file has no source."""
    with pytest.raises(DeclarationError):
        check_shipped([ModuleType("made_by_hand")])


@pytest.mark.parametrize("value", ["myproj", None, 3, Path("x.py"), ByValue], ids=repr)
def test_what_is_no_module_is_refused(value: object) -> None:
    """ship takes modules, not their names."""
    with pytest.raises(DeclarationError, match="ship=\\[mymodule\\]"):
        check_shipped([value])


def test_checked_modules_come_back(home: Home) -> None:
    """What can be shipped is returned in order."""
    package, module = home(PACKAGE, "myproj"), home({"alone.py": ""}, "alone")
    assert check_shipped(iter([package, module])) == (package, module)


def test_a_package_that_is_too_large_is_refused_before_it_fills_the_memory(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with gigabytes of data beside the source is found out while it is read, not after."""
    monkeypatch.setattr(payload, "MAX_SHIPPED_BYTES", 100_000)
    module = home(PACKAGE, "myproj")
    for i in range(20):
        (tmp_path / "home" / "myproj" / f"data{i}.bin").write_bytes(os.urandom(1_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(DeclarationError, match="too large"):
            module_payload(module)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


# On the worker.


@pytest.mark.parametrize("name", ["{folder}/stranger", "../stranger", "stranger", "7.out", "", ".", "A" * 64])
async def test_a_worker_takes_no_other_file_for_a_payload(name: str, tmp_path: Path) -> None:
    """A call names code by its digest: a path, even of a file that is there, is refused before anything is opened."""
    (folder := tmp_path / "scratch").mkdir()
    for path in (tmp_path / "stranger", folder / "stranger", folder / "7.out", folder / ("A" * 64)):
        path.write_bytes(pickle.dumps("code"))
    scratch = Scratch(folder, Ledger(NoTransport(), "proj", Keyring()))
    with pytest.raises(Malformed):
        await scratch.payload(name.format(folder=tmp_path))


async def test_a_worker_fetches_a_payload_once(tmp_path: Path) -> None:
    """However many calls want it at a time; a fetch that failed leaves nothing that could be taken for it."""
    (folder := tmp_path / "scratch").mkdir()
    transport = await LocalTransport.open(LocalPlace(tmp_path / "place"))
    try:
        ledger = Ledger(transport, "proj", Keyring())
        scratch = Scratch(folder, ledger)
        sha256 = sha256_of(b"code")
        with pytest.raises(Malformed):
            await scratch.payload(sha256)
        assert not (folder / sha256).exists()
        await ledger.publish(b"code")
        paths = set(await asyncio.gather(*(scratch.payload(sha256) for _ in range(10))))
        assert paths == {folder / sha256}
        await (await ledger.store()).delete(f"payloads/{sha256}")
        assert (await scratch.payload(sha256)).read_bytes() == b"code"
    finally:
        await transport.close()


def test_the_files_of_a_job_go_with_it(tmp_path: Path) -> None:
    """Each job has a number and files of its own, which are removed however it ends."""
    scratch = Scratch(tmp_path, Ledger(NoTransport(), "proj", Keyring()))
    with scratch.job_files() as one, scratch.job_files() as other:
        assert one.number != other.number
        one.value.write_text("value")
        one.checkpoint.write_text("checkpoint")
        other.arguments.write_text("arguments")
        assert len(list(tmp_path.iterdir())) == 3
    assert list(tmp_path.iterdir()) == []
