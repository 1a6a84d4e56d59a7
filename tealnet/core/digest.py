"""Versions of resources and digests of scopes: how two ends know, in 16 bytes, that they hold the same.

A digest is the sum mod 2^128 of the hashes of its members: free of order, kept up to date by adding and subtracting.
It finds errors, not attackers: both ends are authenticated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

SIZE = 16  # bytes
_MASK = (1 << 128) - 1


def version(body: bytes) -> bytes:
    """The version of a resource: blake2b-128 of its body as received, 16 bytes."""
    return blake2b(body, digest_size=SIZE).digest()


def term(key: str, body: bytes) -> int:
    """What one resource adds to its scope's digest: blake2b-128(key, 0, body), read little-endian."""
    return int.from_bytes(blake2b(key.encode() + b"\0" + body, digest_size=SIZE).digest(), "little")


@dataclass(slots=True)
class Digest:
    """The running digest of one scope. `add` and `remove` must be called once per resource that comes or goes."""

    total: int = 0
    count: int = 0

    @classmethod
    def of(cls, resources: Iterable[tuple[str, bytes]]) -> Digest:
        """The digest of (key, body) pairs."""
        digest = cls()
        for key, body in resources:
            digest.add(key, body)
        return digest

    def add(self, key: str, body: bytes) -> None:
        """A resource came."""
        self.total = (self.total + term(key, body)) & _MASK
        self.count += 1

    def remove(self, key: str, body: bytes) -> None:
        """A resource went; `body` is the one that was added."""
        self.total = (self.total - term(key, body)) & _MASK
        self.count -= 1

    def bytes(self) -> bytes:
        """16 bytes, little-endian."""
        return self.total.to_bytes(SIZE, "little")
