"""Frozen dataclasses to maps and back, with every field's type and bounds checked on the way in.

A map comes from storage, where anyone with a right to it may have written: a wrong type is Malformed, an unknown
name is Unfit (a later version wrote it), and what follows may trust each field to be what its record says.

Next: `wire.py`.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .errors import Malformed, Unfit
from .printable import printable

T = TypeVar("T")

MAX_COUNT = 2**53
"""Whole numbers in a record are counts, sizes and budgets: never negative, and exact as a float."""


def to_map(record: object) -> dict[str, object]:
    """The fields of a dataclass that differ from their defaults, nested ones as maps."""
    values = ((name, getattr(record, name), default) for name, default in _defaults(type(record)))  # type: ignore[arg-type]  # (see from_map)
    return {name: _plain(value) for name, value, default in values if value != default}


@cache
def _defaults(record: type) -> tuple[tuple[str, object], ...]:
    """Every field and its default, which is MISSING where there is none; fields are looked up once for each class."""
    return tuple((field.name, _default(field)) for field in fields(record))


def _plain(value: object) -> object:
    if is_dataclass(value):
        return to_map(value)
    if isinstance(value, StrEnum):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _default(field: Field[Any]) -> object:
    return field.default if field.default_factory is MISSING else field.default_factory()


def from_map(record: type[T], values: dict[str, object]) -> T:
    """A record from its map; raises Malformed for a missing or wrong field, Unfit for an unknown one."""
    hints = _hints(record)  # type: ignore[arg-type]  # a class is hashable; mypy thinks of its metaclass
    if unknown := sorted(printable(str(name)[:40]) for name in values if name not in hints):
        raise Unfit(f"It has fields that this version does not know ({', '.join(unknown[:5])}): update ai4s-jobq.")
    for name, default in _defaults(record):  # type: ignore[arg-type]  # a class is hashable; mypy thinks of its metaclass
        if default is MISSING and name not in values:
            raise Malformed(f"The record lacks {name!r}.")
    return record(**{name: _checked(name, hints[name], value) for name, value in values.items()})


@cache
def _hints(record: type) -> dict[str, Any]:
    return get_type_hints(record)


def _checked(name: str, wanted: Any, value: object) -> object:
    if get_origin(wanted) is tuple:
        return _strings(name, value)
    options = get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)
    for option in options:
        found = _as(option, value)
        if found is not MISSING:
            return found
    raise Malformed(f"The record's {name!r} is not what it should be.")


def _as(wanted: Any, value: object) -> object:
    """`value` as the type wanted, or MISSING if it is no such thing."""
    if is_dataclass(wanted) and isinstance(wanted, type):
        return from_map(wanted, value) if isinstance(value, dict) else MISSING
    if isinstance(wanted, type) and issubclass(wanted, StrEnum):
        return wanted(value) if type(value) is str and value in set(wanted) else MISSING
    if wanted is float and type(value) in (int, float):
        return _moment(value)
    if wanted is int and type(value) is int:
        return value if 0 <= value <= MAX_COUNT else MISSING
    return value if wanted in (str, bytes, bool, NoneType) and type(value) is wanted else MISSING


def _moment(value: Any) -> object:
    return float(value) if abs(value) <= MAX_COUNT and not math.isnan(value) and value >= 0 else MISSING


def _strings(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(type(each) is str for each in value):
        raise Malformed(f"The record's {name!r} is not a list of texts.")
    return tuple(value)
