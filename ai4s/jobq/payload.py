"""Code that travels by value: functions that no worker could import, and local modules that are shipped along.

A function travels as a cloudpickle of itself with its retry policy; a module as a zip of its source files, which a child
unpacks and puts on its path, so that everything in it imports, pickles and compares as at home. Both are named by content.

Next: `submission.py`, which uploads them once.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .codec import codec_named
from .errors import DeclarationError
from .retry import RetryPolicy

MAX_SHIPPED_BYTES = 64 * 1024 * 1024
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can hold: the same files give the same bytes


@dataclass(frozen=True, slots=True)
class ByValue:
    """A function and what its worker must know of it that does not travel in the call."""

    function: Callable[..., Any]
    policy: RetryPolicy


def python_minor() -> str:
    """The version that pickled code is bound to, as in "3.11"."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def is_importable(function: Callable[..., Any], shipped: Iterable[str]) -> bool:
    """Whether a worker could find this function by importing its module."""
    module, path = getattr(function, "__module__", None), getattr(function, "__qualname__", "<")
    if module is None or module == "__main__" or "<" in path:
        return False
    return not any(module == name or module.startswith(f"{name}.") for name in shipped)


def function_payload(function: Callable[..., Any], policy: RetryPolicy) -> bytes:
    """The bytes of a function by value; raises NotSerializable."""
    return codec_named("cloudpickle").dumps(ByValue(function, policy)).data


def module_payload(module: ModuleType) -> bytes:
    """A zip of a module's source, or of a package's folder, at its place in the tree of packages; raises DeclarationError."""
    module = _whole(module)
    files = sorted(_files(module))
    size = sum(path.stat().st_size for _, path in files)
    if size > MAX_SHIPPED_BYTES:
        raise DeclarationError(f"The module {module.__name__} is too large to ship ({size} bytes): install it on the workers.")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in files:
            archive.writestr(zipfile.ZipInfo(name, ZIP_EPOCH), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _files(module: ModuleType) -> Iterator[tuple[str, Path]]:
    inside = module.__name__.replace(".", "/")
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{inside}/{path.relative_to(folder).as_posix()}", path
    if not folders:
        yield f"{inside}.py", _source(module)


def _source(module: ModuleType) -> Path:
    source = getattr(module, "__file__", None)
    if not source or not source.endswith(".py"):
        raise DeclarationError(f"ship takes modules with Python source; {module.__name__} has none (its file is {source!r}).")
    return Path(source)


def check_shipped(modules: Iterable[object]) -> tuple[ModuleType, ...]:
    """The modules to ship, whole packages for parts of them; raises DeclarationError for what cannot be shipped."""
    checked = tuple(dict.fromkeys(_whole(module) for module in modules))
    for module in checked:
        if not getattr(module, "__path__", None):
            _source(module)
    return checked


def _whole(module: object) -> ModuleType:
    """The outermost package that a module is a part of, namespaces aside: a part alone would not import under its own name."""
    if not isinstance(module, ModuleType):
        raise DeclarationError(f"ship takes modules, as in ship=[mymodule]; got {module!r}.")
    parts = module.__name__.split(".")
    above = (sys.modules.get(".".join(parts[:length]), module) for length in range(1, len(parts)))
    return next((package for package in above if getattr(package, "__file__", None) is not None), module)
