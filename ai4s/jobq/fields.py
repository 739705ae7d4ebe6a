"""Frozen dataclasses to maps and back, with every field's type and bounds checked on the way in.

A map comes from storage, where anyone with a right to it may have written: a wrong type is Malformed, an unknown
name is Unfit (a later version wrote it), and what follows may trust each field to be what its record says.

Next: `wire.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import StrEnum
from functools import cache, partial
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .errors import Malformed, Unfit
from .printable import printable

T = TypeVar("T")

MAX_COUNT = 2**53
"""Whole numbers in a record are counts, sizes and budgets: never negative, and exact as a float."""


def to_map(record: object) -> dict[str, object]:
    """The fields of a dataclass that differ from their defaults, nested ones as maps."""
    made: dict[str, object] = {}
    for name, default in _defaults(type(record)):  # type: ignore[arg-type]  # (see from_map)
        value = getattr(record, name)
        if value is not default and value != default:
            made[name] = value if type(value) in _PLAIN else _plain(value)
    return made


_PLAIN = frozenset({str, bytes, int, float, bool, NoneType})


@cache
def _defaults(record: Any) -> tuple[tuple[str, object], ...]:
    """Every field and its default, which is MISSING where there is none; fields are looked up once for each class."""
    return tuple((field.name, _default(field)) for field in fields(record))


def _plain(value: object) -> object:
    if is_dataclass(value):
        return to_map(value)
    if isinstance(value, StrEnum):
        return str(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _default(field: Field[Any]) -> object:
    return field.default if field.default_factory is MISSING else field.default_factory()


def from_map(record: type[T], values: dict[str, object]) -> T:
    """A record from its map; raises Malformed for a missing or wrong field, Unfit for an unknown one."""
    readers, required = _readers(record)  # type: ignore[arg-type]  # a class is hashable; mypy thinks of its metaclass
    if values.keys() - readers:
        unknown = sorted(printable(str(name)[:40]) for name in values if name not in readers)
        raise Unfit(f"It has fields that this version does not know ({', '.join(unknown[:5])}): update ai4s-jobq.")
    for name in required:
        if name not in values:
            raise Malformed(f"The record lacks {name!r}.")
    made = {}
    for name, value in values.items():
        made[name] = found = readers[name](value)
        if found is MISSING:
            raise Malformed(f"The record's {name!r} is not what it should be.")
    return record(**made)


Reader = Callable[[Any], object]
"""Gives a value as the type wanted, or MISSING if it is no such thing. Made once for each field, as hints are slow to read."""


@cache
def _readers(record: Any) -> tuple[dict[str, Reader], tuple[str, ...]]:
    """How to read each field, and which ones there must be."""
    readers = {name: _reader(hint) for name, hint in get_type_hints(record).items()}
    return readers, tuple(name for name, default in _defaults(record) if default is MISSING)


def _reader(wanted: Any) -> Reader:
    if isinstance(wanted, UnionType):
        return partial(_one_of, tuple(_reader(option) for option in get_args(wanted)))
    if get_origin(wanted) is tuple:
        return partial(_several, _reader(get_args(wanted)[0]))
    if is_dataclass(wanted) and isinstance(wanted, type):
        return partial(_nested, wanted)
    if isinstance(wanted, type) and issubclass(wanted, StrEnum):
        return partial(_member, {str(member): member for member in wanted})
    readers: dict[Any, Reader] = {float: _moment, int: _count}
    return readers.get(wanted) or partial(_exactly, wanted)


def _one_of(options: tuple[Reader, ...], value: object) -> object:
    for option in options:
        found = option(value)
        if found is not MISSING:
            return found
    return MISSING


def _several(option: Reader, value: object) -> object:
    made = tuple(map(option, value)) if type(value) is list else (MISSING,)
    return MISSING if MISSING in made else made


def _nested(wanted: type, value: object) -> object:
    return from_map(wanted, value) if isinstance(value, dict) else MISSING


def _member(members: dict[str, StrEnum], value: object) -> object:
    return members.get(value, MISSING) if type(value) is str else MISSING


def _moment(value: Any) -> object:
    is_one = type(value) in (int, float) and 0 <= value <= MAX_COUNT  # which is never true of what is no number
    return float(value) if is_one else MISSING


def _count(value: Any) -> object:
    return value if type(value) is int and 0 <= value <= MAX_COUNT else MISSING


def _exactly(wanted: type, value: object) -> object:
    return value if type(value) is wanted else MISSING
