"""What a driver is: two verbs on one kind of device object, and a failure per key."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one key could not be applied. `reason` is a stable CamelCase word, `text` is for people."""

    reason: str
    text: str
    retriable: bool = True


class Driver(Protocol[K, V]):
    """One layer's way to the device. Raises only when the whole device is out of reach (DeviceUnavailable)."""

    async def read(self) -> dict[K, V]:
        """What is there and ours, and nothing else."""
        ...

    async def apply(self, write: Mapping[K, V], delete: Collection[K]) -> Mapping[K, Failure]:
        """Writing again is harmless, deleting the absent succeeds; returns what failed, by key."""
        ...


class DeviceUnavailable(Exception):
    """The device (OVSDB, the OpenFlow socket) does not answer now; everything stays pending."""
