"""Where a task's function was declared: by which a second task of a name is told from the same one declared again.

Next: `app.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Declaration:
    """Where a function was declared. Each import of a module has a spec of its own, which tells a reload from a second function."""

    file: str
    path: str
    line: int
    spec: object

    def replaces(self, other: Declaration) -> bool:
        """Whether this is the other function again: the same lines, or the same name after its module was loaded anew."""
        same_name = (self.file, self.path) == (other.file, other.path)
        return same_name and (self.line == other.line or self.spec is not other.spec)


def declaration_of(function: Any) -> Declaration:
    """Where a function was declared."""
    code = getattr(function, "__code__", None)
    if code is None:
        return Declaration(repr(function), "", 0, None)
    spec = getattr(function, "__globals__", {}).get("__spec__")
    return Declaration(code.co_filename, code.co_qualname, code.co_firstlineno, spec)


def place_of(function: Any) -> str:
    """The same for a message."""
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
