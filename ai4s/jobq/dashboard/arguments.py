"""What a call was given, for a person to see, without running anything of it: a pickle is never opened.

Arguments in a safe codec are decoded and shown. Of a pickle one sees its size, and the texts in it, which its opcodes tell without
being carried out.

Next: `call_data.py`.
"""

from __future__ import annotations

import pickletools
from typing import Any

from ..buffers import is_packed, unpacked
from ..codec import codec_of
from ..errors import JobQError
from ..message import Call, Spill
from ..overview.glance import arguments_of
from ..packing import Layout, Piece, numbers
from ..printable import describe, printable

MOST_STRINGS, MOST_STRING_CHARS = 20, 200
MOST_LOOKED_BYTES = 64 * 1024
MOST_CHARS = 4000

TEXTS = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"})

Shown = dict[str, Any]


def shown_arguments(call: Call) -> Shown:
    """The arguments of a single call."""
    if isinstance(call.arguments, bytes) and codec_of(call.codec).allows_pickle:
        return _pickled(call.arguments, call.codec)
    return _said(arguments_of(call))


def shown_item(piece: Piece, codec: str) -> Shown:
    """The arguments of a batch's call, the only one of this piece."""
    if piece.layout is Layout.ALONE:
        (data,) = piece.items()
        return _pickled(data, codec) if codec_of(codec).allows_pickle else shown_value(data, codec)
    (place,) = numbers(piece.places)
    if codec_of(codec).allows_pickle:
        return _said(f"({len(piece.data):,} bytes of {codec}, together with those of its neighbours)")
    try:
        found = codec_of(codec).loads(piece.data)[place]
    except (JobQError, LookupError, TypeError) as exc:
        return _said(f"(cannot be read: {describe(exc)})")
    return _said(_repr([found] if piece.layout is Layout.SINGLE else found))


def shown_value(data: bytes, codec: str) -> Shown:
    """An encoded value, as far as it may be decoded here."""
    try:
        if codec_of(codec).allows_pickle:
            return _pickled(data, codec)
        return _said(_repr(codec_of(codec).loads(data)))
    except (JobQError, TypeError, ValueError) as exc:
        return _said(f"({len(data):,} bytes that cannot be read: {describe(exc)})")


def spilled(found: Spill) -> Shown:
    """What lies in a blob of its own, which is not read."""
    return _said(f"({found.size:,} bytes in a blob)")


def _repr(value: object) -> str:
    return value if isinstance(value, str) else repr(value)


def _said(text: str) -> Shown:
    return {"text": printable(text[:MOST_CHARS]), "strings": []}


def _pickled(data: bytes, codec: str) -> Shown:
    return {"text": f"({len(data):,} bytes of {codec})", "strings": strings_in(data)}


def strings_in(data: bytes) -> list[str]:
    """The first texts that a pickle holds: arguments, names of classes and fields. Nothing of it is carried out."""
    found: list[str] = []
    try:
        pickled = bytes(unpacked(data)[0][:MOST_LOOKED_BYTES]) if is_packed(data) else data[:MOST_LOOKED_BYTES]
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in TEXTS and isinstance(argument, str):
                found.append(printable(argument[:MOST_STRING_CHARS]))
            if len(found) == MOST_STRINGS:
                break
    except Exception:  # noqa: BLE001  # cut off, or no pickle at all: what was found before that is shown
        return found
    return found
