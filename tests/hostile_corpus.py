"""Messages of somebody who may write to the place and means harm, or whose disk or program does: what each is, and how it must end.

Each is forged for an app, with its keys or without any, so that the frames of an app with keys are read as far as those of one
without. What must not run is a `Canary`, which leaves a file behind. None of this is sent by what it attacks.

Next: `acceptance/test_hostile_messages.py`, which feeds them to workers; `unit/test_wire.py` has more of what a reader refuses.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import math
import pickle
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import msgpack

from ai4s.jobq import layout
from ai4s.jobq.message import BatchMeta, Call, Outcome, State
from ai4s.jobq.signing import Keyring
from ai4s.jobq.wire import COMPRESSED, MAGIC, MAX_MESSAGE_BYTES, PACK, SIGNED, VERSION, Wire

CLIENT = "hostile234567abc"
KEY, WRONG_KEY = "the key of this app, newest", "the key of somebody else, really"
DIGEST = "0" * 64
DAY_SECONDS = 86_400.0
MIB = 1024 * 1024
GIB = 1024 * MIB

ESCAPES = "\x1b]0;gone\x07\x1b[2J\r\n2026-01-01 00:00:00,000 INFO    forged\u2028\x00\x9b31m"
SECRET = "c2VjcmV0K2tleS9vZit0aGUrYWNjb3VudA=="
SIGNATURE = "Zm9yZ2VkK3NpZ25hdHVyZQ%3D%3D"
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJvaWQiOiI0MiJ9.c2lnbmF0dXJl"
SECRETS = (SECRET, SIGNATURE, TOKEN)
"""What must be in no log, letter or outcome, though tasks of `TASKS` raise it."""

TASKS = f"""
SECRET, SIGNATURE, TOKEN, ESCAPES = {SECRET!r}, {SIGNATURE!r}, {TOKEN!r}, {ESCAPES!r}

@app.task
def square(x):
    note("runs", x)
    return x * x

@app.task
async def asquare(x):
    note("runs", x)
    await asyncio.sleep(0.01)
    return x * x

@app.task
def canary(*args):
    (HERE / "canary").touch()

@app.task(codec="msgpack")
def plain(x):
    (HERE / "canary").touch()

@app.task
def raise_huge():
    raise ValueError("x" * (100 * 2**20))

@app.task
def raise_huge_lines():
    raise ValueError("one line\\n" * (10 * 2**20))

@app.task
def raise_huge_chain():
    try:
        raise KeyError("y" * (50 * 2**20))
    except KeyError as exc:
        exc.add_note("z" * (50 * 2**20))
        raise ValueError("after it") from exc

@app.task
def raise_escapes():
    raise ValueError("no" + ESCAPES)

@app.task
def raise_odd_type():
    raise type("Odd" + ESCAPES, (Exception,), {{}})("no")

@app.task
def raise_key():
    raise ConnectionError(f"AccountName=a;AccountKey={{SECRET}};EndpointSuffix=core.windows.net")

@app.task
def raise_sas():
    raise OSError(5, f"https://a.blob.core.windows.net/c/b?sv=2024&sig={{SIGNATURE}}&se=2027")

@app.task
def raise_header_in_a_cause():
    try:
        raise ConnectionError({{"Authorization": f"Bearer {{TOKEN}}"}})
    except ConnectionError as exc:
        raise RuntimeError("no connection") from exc
"""


class How(Enum):
    """How a message ends."""

    LETTER = "it is never a call: a dead letter with the message's text and the reason"
    ASIDE = "another worker may know it: put aside, and the log says why"
    FAILED = "its call fails by name: an outcome, and a dead letter of the call"
    EXPIRED = "its call expires"
    WAITS = "its call waits for its time"


@dataclass(frozen=True, slots=True)
class Ends:
    """How a message ends, and what is said of it."""

    how: How
    says: str = ""


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@dataclass
class Forge:
    """Makes messages for an app; `keys` are the app's. What must lie in its container is collected in `blobs`."""

    app: str
    module: str
    keys: tuple[str, ...]
    canary_path: Path
    blobs: dict[str, bytes] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def wire(self) -> Wire:
        """The app's own."""
        return Wire(self.app, Keyring(self.keys))

    def new_id(self) -> str:
        """The id of a call that nobody has sent."""
        return layout.call_id(CLIENT, next(self._numbers))

    def canary(self) -> bytes:
        """A pickle that must not be unpickled."""
        return pickle.dumps(((Canary(self.canary_path),), {}))

    def framed(
        self, body: object, *, version: int = VERSION, flags: int = 0, kind: str = "call", subject: str = "default"
    ) -> bytes:
        """A frame of these bytes, or of what is to be packed, soundly signed if the app has a key."""
        data: bytes = body if isinstance(body, bytes) else msgpack.packb(body)
        header = MAGIC + bytes((version, flags | (SIGNED if self.keys else 0)))
        context = "\0".join((kind, self.app, subject))
        return header + (Keyring(self.keys).sign(context, header + data) if self.keys else b"") + data

    def text(self, body: object, **how: Any) -> str:
        """The text of a message with such a frame."""
        return text_of(self.framed(body, **how))

    def fields(self, **changes: object) -> dict[str, object]:
        """The record of a call that would leave the canary's file; `...` leaves a field out."""
        sound: dict[str, object] = {
            "kind": "call",
            "id": self.new_id(),
            "task": f"{self.module}.canary",
            "queue": "default",
            "arguments": self.canary(),
            "sent": time.time(),
        }
        return {name: value for name, value in {**sound, **changes}.items() if value is not ...}

    def call(self, **changes: object) -> str:
        """The text of such a call."""
        return self.text(self.fields(**changes))

    def pack(self, **changes: object) -> str:
        """The text of the header of a pack, which would run calls of the module's canary."""
        sound: dict[str, object] = {
            "kind": "pack",
            "batch": f"hostile-{next(self._numbers)}",
            "pack": 0,
            "queue": "default",
            "sent": time.time(),
            "input": {"size": 10, "sha256": DIGEST},
            "first": 0,
            "count": 8,
            "todo": "0-7",
            "log": "000000",
        }
        return self.text({**sound, **changes}, flags=PACK, kind="pack")

    def batched(self, name: str, data: bytes) -> str:
        """A pack of a batch that is there, and in its folder a blob of this name with these bytes."""
        batch = f"hostile-{next(self._numbers)}"
        call = Call(layout.packed_call_id(batch, 0), f"{self.module}.canary", "default", b"", sent=1.0)
        meta = layout.batch_meta(batch)
        self.blobs[meta] = self.wire.seal(BatchMeta(call), meta)
        self.blobs[f"{layout.batch(batch)}{name}"] = data
        return self.pack(batch=batch)

    def task(self, name: str, arguments: bytes | None = None, **changes: object) -> str:
        """The text of a call of one of the module's tasks, without arguments unless they are given."""
        return self.call(task=f"{self.module}.{name}", arguments=arguments or pickle.dumps(((), {})), **changes)

    def after(self, name: str, value: bytes, *, places: int = 1) -> bytes:
        """The packed record of a call with one more field, packed by hand."""
        packed: bytes = msgpack.packb(self.fields())
        entry: bytes = msgpack.packb(name) + value
        return bytes([packed[0] + places]) + packed[1:] + places * entry

    def spilled(self, stored: bytes | None, *, size: int, sha256: str) -> str:
        """A call whose arguments are said to be these, while in their place lies what is stored."""
        call = self.new_id()
        if stored is not None:
            self.blobs[layout.arguments(call)] = stored
        return self.call(id=call, arguments={"size": size, "sha256": sha256})

    def payload(self, stored: bytes | None, sha256: str, name: str = "function") -> str:
        """A call whose code is said to be this, while in its place lies what is stored."""
        if stored is not None:
            self.blobs[layout.payload(sha256)] = stored
        return self.call(task="by.value", python=None, **{name: sha256 if name == "function" else [sha256]})

    def ended(self, make: Callable[[str], bytes]) -> str:
        """A call that is sent a second time, where these bytes lie in the place of its outcome."""
        call = self.new_id()
        self.blobs[layout.result(call, 1)] = make(call)
        return self.call(id=call, resent=True)

    def outcome(self, call: str, *, of: str | None = None) -> bytes:
        """A sound outcome of a call."""
        return self.wire.seal_outcome(Outcome(of or call, 1, State.SUCCEEDED, "0" * 16, value=b"\x09"))

    def honest(self, keys: tuple[str, ...] | None = None, **changes: Any) -> str:
        """A message as an app with these keys, or its own, would send it; but for the canary in it."""
        app = changes.pop("app", self.app)
        made = Call(self.new_id(), f"{self.module}.canary", "default", self.canary(), sent=time.time())
        fields = {name: getattr(made, name) for name in made.__slots__}
        text = Wire(app, Keyring(self.keys if keys is None else keys)).seal_call(Call(**{**fields, **changes}))
        assert text is not None
        return text


Make = Callable[[Forge], str]


@dataclass(frozen=True, slots=True)
class Hostile:
    """One message: how it is made, and how it ends."""

    make: Make
    ends: Ends


def text_of(data: bytes) -> str:
    """A message's text."""
    return base64.b64encode(data).decode("ascii")


# Bombs.


@functools.cache
def deflated_zeros(size: int) -> bytes:
    """So many zeros, compressed as tightly as can be, without compressing that many: equal blocks, and the sum at the end."""
    deflater = zlib.compressobj(9)
    first = deflater.compress(bytes(MIB)) + deflater.flush(zlib.Z_FULL_FLUSH)
    again = deflater.compress(bytes(MIB)) + deflater.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    adler = (size % 65521 << 16) + 1
    return first + again * (size // MIB - 1) + end + struct.pack(">I", adler)


@functools.cache
def thrice_deflated() -> bytes:
    """A KiB that is 10 GiB of zeros, for whoever inflates it again and again."""
    return zlib.compress(zlib.compress(deflated_zeros(10 * GIB), 9), 9)


def nested(opening: bytes) -> bytes:
    """Containers in containers, 10,000 deep."""
    return opening * 10_000 + b"\xc0"


def many_lists(forge: Forge) -> str:
    """A few KiB that unpack to nearly a million lists."""
    count = 1_000_000
    return forge.text(zlib.compress(forge.after("ship", b"\xdd" + count.to_bytes(4, "big") + b"\x90" * count), 9), flags=COMPRESSED)


# The corpus.

DAMAGED, NOT_MSGPACK, NOT_OURS = (
    Ends(How.LETTER, f"Malformed: {says}") for says in ("", "The record is not sound", "The bytes are not")
)
NOT_BASE64 = Ends(How.LETTER, "Malformed: The message is not base64")
UNSIGNED, FORGED = (Ends(How.LETTER, f"SignatureInvalid: {says}") for says in ("It is not signed", "Its signature is not"))


def letter(says: str) -> Ends:
    """A dead letter that says so."""
    return Ends(How.LETTER, says)


def aside(says: str) -> Ends:
    """Put aside, and the log says why."""
    return Ends(How.ASIDE, says)


def failed(says: str) -> Ends:
    """A failed call that says so."""
    return Ends(How.FAILED, says)


def raw(text: str) -> Make:
    """A message with this very text."""
    return lambda forge: text


def body(data: object, flags: int = 0) -> Make:
    """A message with a frame of this."""
    return lambda forge: forge.text(data, flags=flags)


def with_fields(**changes: object) -> Make:
    """A call with such fields."""
    return lambda forge: forge.call(**changes)


TEXTS: dict[str, Hostile] = {
    "empty": Hostile(raw(""), letter("The message is empty")),
    "a space": Hostile(raw(" "), NOT_BASE64),
    "bad base64": Hostile(raw("!!!!"), NOT_BASE64),
    "base64 with a line break": Hostile(raw("SlEB\nAA=="), NOT_BASE64),
    "base64 without its padding": Hostile(raw("SlEBAA"), NOT_BASE64),
    "control characters": Hostile(raw("\x01\x7f\x1b"), NOT_BASE64),
    "terminal escapes and line breaks": Hostile(raw(ESCAPES.replace("\x00", "")), NOT_BASE64),
    "a secret for a message": Hostile(raw(f"AccountKey={SECRET}"), NOT_BASE64),
    "JSON of another program": Hostile(raw('{"hello": [1, 2]}'), letter("message of ai4s-jobq 3.x")),
    "64 KiB of the letter A": Hostile(raw("A" * 65_536), NOT_OURS),
}
FRAMES: dict[str, Hostile] = {
    "nothing but our magic": Hostile(raw(text_of(b"JQ")), NOT_OURS),
    "a header and nothing else": Hostile(raw(text_of(b"JQ\x01\x00")), NOT_OURS),
    "garbage": Hostile(raw(text_of(bytes(range(256)))), NOT_OURS),
    "a pickle for a message": Hostile(lambda forge: text_of(forge.canary()), NOT_OURS),
    "a pickle for a record": Hostile(lambda forge: forge.text(forge.canary()), DAMAGED),
    "an unknown version": Hostile(lambda forge: forge.text(forge.fields(), version=2), aside("format version 2")),
    "unknown flags": Hostile(lambda forge: forge.text(forge.fields(), flags=0xF0), aside("format version 1, flags")),
    "compressed, and is not": Hostile(body(b"no zlib" * 20, COMPRESSED), letter("compressed record is damaged")),
    "compressed, and cut off": Hostile(
        lambda forge: forge.text(zlib.compress(msgpack.packb(forge.fields()))[:-3], flags=COMPRESSED), letter("cut off")
    ),
    "compressed, and followed by more": Hostile(
        lambda forge: forge.text(zlib.compress(msgpack.packb(forge.fields())) + b"more", flags=COMPRESSED), letter("follows it")
    ),
    "a bomb of a KiB to 10 GiB": Hostile(lambda forge: forge.text(thrice_deflated(), flags=COMPRESSED), DAMAGED),
    "a bomb of 40 KiB to 39 MiB": Hostile(
        lambda forge: forge.text(deflated_zeros(39 * MIB), flags=COMPRESSED), letter("would be larger than")
    ),
    "a bomb of small objects": Hostile(many_lists, NOT_MSGPACK),
    "truncated msgpack": Hostile(lambda forge: forge.text(msgpack.packb(forge.fields())[:-4]), NOT_MSGPACK),
    "trailing msgpack": Hostile(lambda forge: forge.text(msgpack.packb(forge.fields()) + b"\xc0"), NOT_MSGPACK),
    "msgpack's reserved byte": Hostile(body(b"\xc1"), NOT_MSGPACK),
    "a list": Hostile(body([1, 2]), letter("not a map")),
    "an empty map": Hostile(body({}), letter("not the record of a call")),
    "a name that stands twice": Hostile(lambda forge: forge.text(forge.after("task", b"\xa9os.system")), NOT_MSGPACK),
    "a new name that stands twice": Hostile(lambda forge: forge.text(forge.after("run", b"\x01", places=2)), NOT_MSGPACK),
    "lists nested 10,000 deep": Hostile(body(nested(b"\x91")), NOT_MSGPACK),
    "maps nested 10,000 deep": Hostile(body(nested(b"\x81\xa1x")), NOT_MSGPACK),
    "a field nested 10,000 deep": Hostile(lambda forge: forge.text(forge.after("ship", nested(b"\x91"))), NOT_MSGPACK),
    "an array of 4 GiB": Hostile(body(b"\xdd\xff\xff\xff\xff"), NOT_MSGPACK),
    "a map of 4 GiB": Hostile(body(b"\xdf\xff\xff\xff\xff"), NOT_MSGPACK),
    "bytes of 4 GiB": Hostile(lambda forge: forge.text(forge.after("mark", b"\xc6\xff\xff\xff\xff")), NOT_MSGPACK),
    "an extension of 4 GiB": Hostile(body(b"\xc9\xff\xff\xff\xff\x01"), NOT_MSGPACK),
    "text that is no UTF-8": Hostile(body(b"\x81\xa4kind\xa2\xff\xfe"), NOT_MSGPACK),
}
FIELDS: dict[str, Hostile] = {
    "no id": Hostile(with_fields(id=...), letter("lacks 'id'")),
    "another kind": Hostile(with_fields(kind="outcome"), letter("not the record of a call")),
    "the kind of a dead letter": Hostile(with_fields(kind="dead letter"), letter("not the record of a call")),
    "a count of NaN": Hostile(with_fields(retries=math.nan), letter("'retries'")),
    "a date of NaN": Hostile(with_fields(sent=math.nan), letter("'sent'")),
    "an endless timeout": Hostile(with_fields(timeout_seconds=math.inf), letter("'timeout_seconds'")),
    "a negative count": Hostile(with_fields(errors=-1), letter("'errors'")),
    "a count beyond all bounds": Hostile(with_fields(deaths=2**64 - 1), letter("'deaths'")),
    "a count with a fraction": Hostile(with_fields(run=1.5), letter("'run'")),
    "a later version's field": Hostile(with_fields(cipher="x"), aside("does not know (cipher)")),
    "a field named with escapes": Hostile(with_fields(**{ESCAPES: 1}), aside("\\x1b]0;gone")),
    "a pickle for a name": Hostile(lambda forge: forge.call(mark=forge.canary()), letter("'mark'")),
    "an id with ..": Hostile(with_fields(id="../../payloads/x"), DAMAGED),
    "an id that is a URL": Hostile(with_fields(id="https://evil.example/x"), DAMAGED),
    "an id in another container": Hostile(with_fields(id="../jobq-other/results/x"), DAMAGED),
    "an id with escapes": Hostile(lambda forge: forge.call(id=forge.new_id() + ESCAPES), DAMAGED),
    "spilled to ..": Hostile(with_fields(arguments={"size": 1, "sha256": "../../x"}), DAMAGED),
    "spilled to a URL": Hostile(with_fields(arguments={"size": 1, "sha256": "https://evil.example/x"}), DAMAGED),
    "spilled to another container": Hostile(with_fields(arguments={"size": 1, "sha256": "/jobq-other/args/x"}), DAMAGED),
    "spilled, and says where": Hostile(
        with_fields(arguments={"size": 1, "sha256": DIGEST, "name": "keys/x"}), aside("does not know (name)")
    ),
    "a function that is a path": Hostile(with_fields(function="/etc/hostname"), DAMAGED),
    "a shipped module with ..": Hostile(with_fields(ship=["../7.out"]), DAMAGED),
    "a checkpoint with ..": Hostile(
        with_fields(checkpoint={"token": "../../x", "number": 1, "spill": {"size": 1, "sha256": DIGEST}}), DAMAGED
    ),
    "a parent with ..": Hostile(with_fields(parent="../x"), DAMAGED),
    "another queue's call": Hostile(with_fields(queue="gpu"), letter("belongs on the queue 'gpu'")),
}
CALLS: dict[str, Hostile] = {
    "the task os.system": Hostile(with_fields(task="os.system"), aside("knows no task 'os.system'")),
    "the task __import__": Hostile(with_fields(task="__import__"), aside("knows no task '__import__'")),
    "the task builtins.eval": Hostile(with_fields(task="builtins.eval"), aside("knows no task 'builtins.eval'")),
    "a task inside a task": Hostile(lambda forge: forge.task("canary.function", forge.canary()), aside("knows no task")),
    "a task named with escapes": Hostile(with_fields(task=ESCAPES), aside("knows no task '\\x1b]0;gone")),
    "a task with a huge name": Hostile(with_fields(task="x" * 30_000), aside("knows no task 'xxxx")),
    "an unknown codec": Hostile(with_fields(codec="zstd"), aside("encoded with 'zstd'")),
    "a pickle for a task that takes none": Hostile(
        lambda forge: forge.task("plain", forge.canary()), aside("declared with codec='msgpack'")
    ),
    "code of another Python": Hostile(with_fields(function=DIGEST, python="3.99"), aside("Python 3.99")),
    "expired": Hostile(lambda forge: forge.call(sent=time.time() - DAY_SECONDS, expires=time.time() - 60), Ends(How.EXPIRED)),
    "expired at the beginning of time": Hostile(with_fields(expires=0.0), Ends(How.EXPIRED)),
    "dated tomorrow": Hostile(
        lambda forge: forge.call(sent=time.time() + DAY_SECONDS, eta=time.time() + DAY_SECONDS), Ends(How.WAITS)
    ),
    "dated at the end of time": Hostile(with_fields(eta=float(2**53)), Ends(How.WAITS)),
    "all deaths spent": Hostile(with_fields(mark="0" * 16, deaths=2**53 - 1), failed("vanished, or the task killed it")),
    "arguments that are garbage": Hostile(with_fields(arguments=b"\x80\x04garbage"), failed("cannot decode")),
    "arguments that are nothing": Hostile(with_fields(arguments=b""), failed("cannot decode")),
    "arguments that are no pair": Hostile(with_fields(arguments=pickle.dumps("os.system")), failed("not a pair")),
    "arguments of a class that is nowhere": Hostile(with_fields(arguments=b"cno_such_module\nEvil\n."), failed("No module named")),
    "arguments nested 10,000 deep": Hostile(
        lambda forge: forge.task("plain", nested(b"\x91"), codec="msgpack"), failed("not sound msgpack")
    ),
    "arguments of 4 GiB": Hostile(
        lambda forge: forge.task("plain", b"\xdd\xff\xff\xff\xff", codec="msgpack"), failed("not sound msgpack")
    ),
    "a pickle of 4 GiB": Hostile(with_fields(arguments=b"\x80\x04\x8e" + (4 * GIB).to_bytes(8, "little")), failed("cannot decode")),
}
BLOBS: dict[str, Hostile] = {
    "spilled arguments that are missing": Hostile(lambda forge: forge.spilled(None, size=10, sha256=DIGEST), failed("is missing")),
    "spilled arguments of another digest": Hostile(
        lambda forge: forge.spilled(forge.canary(), size=len(forge.canary()), sha256=DIGEST), failed("is not what was spilled")
    ),
    "spilled arguments that are cut off": Hostile(
        lambda forge: forge.spilled(forge.canary(), size=len(forge.canary()) + 1, sha256=digest(forge.canary())),
        failed("is not what was spilled"),
    ),
    "spilled arguments of a TiB that are not there": Hostile(
        lambda forge: forge.spilled(forge.canary(), size=2**40, sha256=digest(forge.canary())), failed("is not what was spilled")
    ),
    "a function that is missing": Hostile(lambda forge: forge.payload(None, digest(b"missing")), failed("payloads/")),
    "a function that is another one": Hostile(
        lambda forge: forge.payload(forge.canary(), digest(b"another")), failed("is not what was spilled")
    ),
    "a function that is garbage": Hostile(
        lambda forge: forge.payload(b"garbage", digest(b"garbage")), failed("cannot rebuild the function")
    ),
    "a shipped module that is another one": Hostile(
        lambda forge: forge.payload(b"import os", digest(b"another module"), "ship"), failed("is not what was spilled")
    ),
    "an outcome that is garbage": Hostile(lambda forge: forge.ended(lambda call: b"garbage"), NOT_OURS),
    "an outcome that is a pickle": Hostile(lambda forge: forge.ended(lambda call: forge.canary()), NOT_OURS),
    "an outcome that is a bomb of 10 MiB to 10 GiB": Hostile(
        lambda forge: forge.ended(
            lambda call: forge.framed(deflated_zeros(10 * GIB), flags=COMPRESSED, kind="outcome", subject=layout.run_id(call, 1))
        ),
        letter("is larger than a record can be"),
    ),
    "an outcome of another call": Hostile(
        lambda forge: forge.ended(lambda call: forge.outcome(call, of=forge.new_id())), Ends(How.LETTER, "")
    ),
}
ERRORS: dict[str, Hostile] = {
    "an exception of 100 MB": Hostile(lambda forge: forge.task("raise_huge"), failed("xxx")),
    "an exception of 100 MB of lines": Hostile(lambda forge: forge.task("raise_huge_lines"), failed("one line")),
    "an exception with causes of 100 MB": Hostile(lambda forge: forge.task("raise_huge_chain"), failed("after it")),
    "an exception with escapes": Hostile(lambda forge: forge.task("raise_escapes"), failed("no\x1b]0;gone")),
    "an exception whose class has escapes": Hostile(lambda forge: forge.task("raise_odd_type"), failed("no")),
    "an exception with an account's key": Hostile(lambda forge: forge.task("raise_key"), failed("AccountKey=***")),
    "an exception with a signed address": Hostile(lambda forge: forge.task("raise_sas"), failed("sig=***&se")),
    "an exception with a token in its cause": Hostile(lambda forge: forge.task("raise_header_in_a_cause"), failed("no connection")),
}


def pack(**changes: object) -> Make:
    """A pack with such a header."""
    return lambda forge: forge.pack(**changes)


NO_INDICES = letter("Malformed: The indices")
NO_NUMBER = letter("is not what it should be")
PACKS: dict[str, Hostile] = {
    "a pack of a batch that is not there": Hostile(pack(), letter("Malformed: There is no batch")),
    "a pack of a batch in another folder": Hostile(pack(batch="../payloads"), letter("is not the id of a batch")),
    "a pack of a billion calls": Hostile(pack(count=10**9), letter("Malformed: A pack holds 1 to")),
    "a pack of no calls": Hostile(pack(count=0, todo=""), letter("Malformed: A pack holds 1 to")),
    "a pack of less than none": Hostile(pack(count=-8, todo=""), NO_NUMBER),
    "a pack before the first call": Hostile(pack(first=-4, todo="0-3"), NO_NUMBER),
    "a pack beyond all numbers": Hostile(pack(first=10**15, todo=""), letter("Malformed: A pack holds 1 to")),
    "a pack with calls of another": Hostile(pack(todo="0-8"), NO_INDICES),
    "a pack with a billion calls in a few bytes": Hostile(pack(todo="0-999999999"), NO_INDICES),
    "a pack with a call twice": Hostile(pack(todo="3,3"), NO_INDICES),
    "a pack with garbage for calls": Hostile(pack(todo="all"), letter("is no set of indices")),
    "a pack with charges of another": Hostile(pack(charged=[{"calls": "9", "charges": {}}]), NO_INDICES),
    "a pack with a log elsewhere": Hostile(pack(log="../../results"), letter("is not the name of a log")),
    "a pack with another pack's log": Hostile(pack(log="000001"), letter("is none of pack 0")),
    "a pack at an entry before the first": Hostile(pack(pos=-1), NO_NUMBER),
    "a pack at an entry beyond all": Hostile(pack(pos=10**9), letter("is none of pack 0")),
    "a pack with an input elsewhere": Hostile(pack(input={"size": 1, "sha256": "../x"}), letter("is not a SHA-256 digest")),
    "a pack with an input of less than nothing": Hostile(pack(input={"size": -1, "sha256": DIGEST}), NO_NUMBER),
    "a pack whose batch is garbage": Hostile(lambda forge: forge.batched("meta", b"garbage"), NOT_OURS),
    "a pack whose batch is a pickle": Hostile(lambda forge: forge.batched("meta", forge.canary()), NOT_OURS),
    "a pack whose log is garbage": Hostile(lambda forge: forge.batched("log/000000/000000", b"\4\0\0\0garbage"), NOT_OURS),
}
BOTH = {**TEXTS, **FRAMES, **FIELDS, **CALLS, **BLOBS, **PACKS, **ERRORS}
"""What any app may find on its queue."""


def digest(data: bytes) -> str:
    """A SHA-256, as names have it."""
    return hashlib.sha256(data).hexdigest()


def flipped(text: str, bit: int) -> str:
    """A message with one bit of its frame changed."""
    data = bytearray(base64.b64decode(text))
    data[bit // 8] ^= 1 << bit % 8
    return text_of(bytes(data))


def signed_as(text: str, other: str | bytes) -> str:
    """The body of one frame under the signature of another."""
    mine, theirs = base64.b64decode(text), base64.b64decode(other) if isinstance(other, str) else other
    return text_of(mine[:4] + theirs[4:36] + mine[36:])


def an_outcome(forge: Forge) -> bytes:
    """A sound outcome's frame."""
    return forge.outcome(forge.new_id())


SIGNATURES = {
    "unsigned": Hostile(lambda forge: forge.honest(keys=()), UNSIGNED),
    "unsigned, and says that it is": Hostile(lambda forge: flipped(forge.honest(keys=()), 8 * 3 + 1), FORGED),
    "signed with a wrong key": Hostile(lambda forge: forge.honest(keys=(WRONG_KEY,)), FORGED),
    "signed for another app": Hostile(lambda forge: forge.honest(app="another"), FORGED),
    "signed for another queue": Hostile(lambda forge: forge.honest(queue="gpu"), FORGED),
    "a flipped bit of the signature": Hostile(lambda forge: flipped(forge.honest(), 8 * 20), FORGED),
    "a flipped bit of the body": Hostile(lambda forge: flipped(forge.honest(), 8 * 60), FORGED),
    "cut short": Hostile(lambda forge: text_of(base64.b64decode(forge.honest())[:-1]), FORGED),
    "something behind it": Hostile(lambda forge: text_of(base64.b64decode(forge.honest()) + b"\xc0"), FORGED),
    "the signature of another call's message": Hostile(lambda forge: signed_as(forge.honest(), forge.honest()), FORGED),
    "another call's body under a new id": Hostile(lambda forge: signed_as(forge.honest(id=forge.new_id()), forge.honest()), FORGED),
    "an outcome's signature": Hostile(lambda forge: signed_as(forge.honest(), an_outcome(forge)), FORGED),
    "an outcome for a message": Hostile(lambda forge: text_of(an_outcome(forge)), FORGED),
    "a signature of nothing but zeros": Hostile(lambda forge: signed_as(forge.honest(), bytes(36)), FORGED),
    "nothing but a signature": Hostile(lambda forge: text_of(b"JQ\x01\x02" + bytes(32)), FORGED),
}
KEYED = {**BOTH, **SIGNATURES}
KEYLESS = {
    **BOTH,
    "signed, where nobody has a key": Hostile(lambda forge: forge.honest(keys=(WRONG_KEY,)), aside("this process has no key")),
}

assert len(thrice_deflated()) <= MAX_MESSAGE_BYTES
