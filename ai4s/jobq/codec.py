"""Values to bytes and back: cloudpickle (takes nearly everything, and is code) or msgpack (plain data, and safe).

A third one, for the built-in task that runs shell commands, is msgpack that besides knows what may come of a command.

Encoding happens where the user is, so what cannot travel is refused there, by name. Whether bytes may be decoded at all is
not decided here: `wire.py` has verified them before. Large buffers (arrays, bytes) are never copied into a pickle: they stay
pieces beside it, in a container of `buffers.py` where unpickling is to map them rather than to copy them once more.

Next: `wire.py`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, Protocol

import cloudpickle
import msgpack

from . import buffers
from .buffers import BUFFER_BYTES, Readable
from .errors import CommandFailed, DeclarationError, JobQError, Malformed, NotSerializable, Unfit
from .fields import from_map, to_map
from .parts import Parts, gathered
from .printable import describe, kind
from .shell_result import ShellResult


@dataclass(frozen=True, slots=True)
class Encoded:
    """A value as bytes; `has_code` says that functions or classes travel inside, which bind it to a Python minor version."""

    parts: Parts
    has_code: bool = False

    @property
    def data(self) -> bytes:
        """All bytes as one, for what is small: large buffers are copied."""
        return self.parts.joined()

    @property
    def size(self) -> int:
        """How many bytes."""
        return self.parts.size

    def write(self, path: Path) -> None:
        """Write all bytes to a file, piece by piece."""
        with path.open("wb") as file:
            file.writelines(self.parts.pieces)


class Unresolved(Exception):
    """What a value refers to cannot be had: neither its bytes' fault nor its class's, so decoding raises it as it is."""


class Hindered(Unresolved):
    """The machine has no room for what a call needs, or the storage did not answer: not the call's fault."""


Guard = Callable[[object], None]
"""Called with objects of a value before they are encoded; raises to refuse one."""


class Codec(Protocol):
    """One way to encode values. Both methods raise NotSerializable with the offending type or the reason."""

    @property
    def name(self) -> str: ...

    @property
    def allows_pickle(self) -> bool: ...

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """The exceptions that it can encode."""

    def dumps(self, value: object, guard: Guard | None = None) -> Encoded: ...

    def loads(self, data: Readable) -> Any:
        """The value; arrays in it are views of `data`, unless that is `bytes`, and as writable as it is."""

    def loads_each(self, several: Iterable[bytes]) -> Iterator[Any]:
        """As `loads`, of many that are mostly small."""


_BUILT_IN = (type(None), type(...), type(NotImplemented))
"""Classes that have no name to be imported by, and yet are everywhere."""


class _Pieces(list[Any]):
    """A file to pickle into: frames of some 64 KiB, and each larger bytes object as it is."""

    write = list.append


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle's Pickler is untyped
    """Notices code that travels by value, and lets a guard see every object of a class that is not built in.

    `buffers` are those that stay outside.
    """

    def __init__(self, file: _Pieces, guard: Guard | None) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL, buffer_callback=self._leave_in)
        self.buffers: list[memoryview] = []
        self.has_code = False
        self.refusal: JobQError | None = None
        self._guard = guard

    def _leave_in(self, buffer: pickle.PickleBuffer) -> bool:
        """Whether a buffer goes into the pickle as ever: small ones, and those that are not in one piece, which pickle refuses."""
        try:
            view = buffer.raw()
        except BufferError:
            return True
        if view.nbytes >= BUFFER_BYTES:
            self.buffers.append(view)
        return view.nbytes < BUFFER_BYTES

    def reducer_override(self, obj: Any) -> Any:
        if self._guard is not None:
            try:
                self._guard(obj)
            except JobQError as exc:
                self.refusal = exc
                raise
        reduced = super().reducer_override(obj)
        if reduced is not NotImplemented and isinstance(obj, FunctionType | type) and obj not in _BUILT_IN:
            self.has_code = True
        return reduced


class CloudpickleCodec:
    """Nearly every Python value, functions and classes by value where they cannot be imported."""

    name = "cloudpickle"
    allows_pickle = True
    errors: tuple[type[BaseException], ...] = (BaseException,)

    def dumps(self, value: object, guard: Guard | None = None) -> Encoded:
        file = _Pieces()
        pickler = _Pickler(file, guard)
        try:
            pickler.dump(value)
        except (Exception, SystemExit, GeneratorExit) as exc:  # pickling runs the user's code, which may raise anything
            if exc is pickler.refusal:
                raise
            raise NotSerializable(f"cloudpickle cannot encode {kind(value)}: {_reason(exc)}") from exc
        pickled = Parts.of(*gathered(file, BUFFER_BYTES))
        return Encoded(buffers.packed(pickled, pickler.buffers) if pickler.buffers else pickled, pickler.has_code)

    def loads(self, data: Readable) -> Any:
        try:
            return unpickled(data)
        except Unresolved:
            raise
        except (Exception, SystemExit, GeneratorExit) as exc:  # unpickling runs the user's code, which may raise anything
            raise NotSerializable(f"cloudpickle cannot decode this value here: {_reason(exc)}") from exc

    def loads_each(self, several: Iterable[bytes]) -> Iterator[Any]:
        loads = pickle.loads
        for data in several:
            if len(data) >= BUFFER_BYTES:
                yield self.loads(data)
                continue
            try:
                value = loads(data)
            except Exception:  # noqa: BLE001  # once more, for the error
                value = self.loads(data)
            yield value


def unpickled(data: Readable) -> Any:
    """What CloudpickleCodec encoded; raises whatever the user's code and damaged bytes raise."""
    # Verified by wire.py where a key is configured; see DESIGN "Trust".
    if len(data) < BUFFER_BYTES or not buffers.is_packed(data):
        return pickle.loads(data)
    # Arrays in bytes could not be written to, unlike those that were pickled as a whole.
    pickled, beside = buffers.unpacked(bytearray(data) if isinstance(data, bytes) else data)
    return pickle.loads(pickled, buffers=beside)


class MsgpackCodec:
    """None, bool, int (64 bits), float, str, bytes, lists, tuples (which come back as lists) and dicts of these."""

    name = "msgpack"
    allows_pickle = False
    errors: tuple[type[BaseException], ...] = ()

    def dumps(self, value: object, guard: Guard | None = None) -> Encoded:
        try:
            _check_plain(value, guard)
            return Encoded(Parts.of(msgpack.packb(value)))
        except (ValueError, OverflowError, RecursionError, UnicodeEncodeError) as exc:
            raise NotSerializable(f"The msgpack codec cannot encode {kind(value)}: {_reason(exc)}") from exc

    def loads(self, data: Readable) -> Any:
        try:
            return msgpack.unpackb(data, strict_map_key=False)
        except (ValueError, TypeError, msgpack.UnpackException) as exc:
            raise NotSerializable(f"The bytes are not sound msgpack: {_reason(exc)}") from exc

    def loads_each(self, several: Iterable[bytes]) -> Iterator[Any]:
        return map(self.loads, several)


_PLAIN = frozenset({type(None), bool, float, str, bytes})
_INTEGERS = range(-(2**63), 2**64)


def _check_plain(value: Any, guard: Guard | None) -> None:
    """Refuse here what msgpack would change, or could not read back."""
    of = type(value)
    if of in (list, tuple):
        for item in value:
            _check_plain(item, guard)
    elif of is dict:
        for key, item in value.items():
            _check_scalar(key, None)
            _check_plain(item, guard)
    else:
        _check_scalar(value, guard)


def _check_scalar(value: Any, guard: Guard | None) -> None:
    if type(value) in _PLAIN or (type(value) is int and value in _INTEGERS):
        return
    if type(value) is int:
        raise NotSerializable(f"The msgpack codec takes ints of 64 bits; got one of {value.bit_length()} bits.")
    if guard is not None:
        guard(value)
    raise NotSerializable(
        "The msgpack codec takes None, bool, int, float, str, bytes, list, tuple and dict, and as a dict's keys the plain ones; "
        f"got {kind(value)}. Convert it, or declare the task with codec='cloudpickle'."
    )


class ShellCodec(MsgpackCodec):
    """As msgpack; and a ShellResult or a CommandFailed as a whole, which become a map with a tag."""

    name = "shell"
    errors = (CommandFailed,)

    def dumps(self, value: object, guard: Guard | None = None) -> Encoded:
        if isinstance(value, ShellResult):
            value = {_TAG: "result", **to_map(value)}
        elif isinstance(value, CommandFailed):
            value = {_TAG: "failure", "message": str(value), "exit_code": value.exit_code, "output": value.output}
        return super().dumps(value, guard)

    def loads(self, data: Readable) -> Any:
        value = super().loads(data)
        if not isinstance(value, dict) or (tag := value.pop(_TAG, None)) is None:
            return value
        try:
            return from_map(ShellResult, value) if tag == "result" else CommandFailed(**value)
        except (TypeError, Malformed, Unfit) as exc:
            raise NotSerializable(f"The bytes do not say what came of a command: {_reason(exc)}") from exc


_TAG = "jobq.shell"
"""No keyword argument is named so."""

SHELL_CODEC = ShellCodec()
_CODECS: dict[str, Codec] = {codec.name: codec for codec in (CloudpickleCodec(), MsgpackCodec())}
_ALL_CODECS: dict[str, Codec] = {**_CODECS, SHELL_CODEC.name: SHELL_CODEC}


def codec_named(name: object) -> Codec:
    """The codec of this name, for a task of the user's; raises DeclarationError that lists them."""
    if not isinstance(name, str) or name not in _CODECS:
        raise DeclarationError(f"codec must be one of {', '.join(map(repr, _CODECS))}; got {name!r}.")
    return _CODECS[name]


def codec_of(record: str) -> Codec:
    """The codec that a record names; raises Unfit for one that this version does not have."""
    if record not in _ALL_CODECS:
        raise Unfit(f"It is encoded with {record[:40]!r}, which this process does not know: update ai4s-jobq.")
    return _ALL_CODECS[record]


def _reason(exc: BaseException) -> str:
    return f"{kind(exc)}: {describe(exc)}"
