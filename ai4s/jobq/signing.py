"""HMAC-SHA256 over raw bytes, bound to what they are for; several keys, so that they can be rotated.

The first key signs, every key verifies. To rotate, on all machines before the next step: "old,new", then "new,old", then "new".
A message by a key that a worker does not know is a dead letter, so a new key must be known everywhere before it signs.

Next: `wire.py`, the only user.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

MAC_BYTES = 32


@dataclass(frozen=True, slots=True)
class Keyring:
    """Signing keys, newest first; empty means that nothing is signed."""

    keys: tuple[str, ...] = field(default=(), repr=False)

    def __bool__(self) -> bool:
        return bool(self.keys)

    def sign(self, context: str, data: bytes) -> bytes:
        """The MAC of `data` in `context`, by the newest key."""
        return _mac(self.keys[0], context, data)

    def verifies(self, context: str, data: bytes, mac: bytes) -> bool:
        """Whether any key made `mac` for `data` in `context`; in constant time for each key."""
        found = [hmac.compare_digest(_mac(key, context, data), mac) for key in self.keys]
        return any(found)


def _mac(key: str, context: str, data: bytes) -> bytes:
    name = context.encode()
    # The length keeps a context's end from being read as the data's beginning.
    return hmac.digest(key.encode(), len(name).to_bytes(4, "big") + name + data, hashlib.sha256)
