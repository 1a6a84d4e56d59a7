"""Desired against actual: the difference is kept at all times, so a resync merely replaces one of the two sides."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Delta(Generic[K, V]):
    """What is wanted, what is there, and so what is left to do."""

    def __init__(self) -> None:
        self.desired: dict[K, V] = {}
        self.actual: dict[K, V] = {}
        self.to_write: set[K] = set()
        self.to_delete: set[K] = set()

    def want(self, key: K, value: V | None) -> None:
        """Want a value, or with None nothing, at this key."""
        if value is None:
            self.desired.pop(key, None)
        else:
            self.desired[key] = value
        self._compare(key)

    def saw(self, key: K, value: V | None) -> None:
        """The device has this value, or nothing."""
        if value is None:
            self.actual.pop(key, None)
        else:
            self.actual[key] = value
        self._compare(key)

    def saw_all(self, actual: Mapping[K, V]) -> None:
        """The device was read back whole."""
        for key in self.actual.keys() - actual.keys():
            self.saw(key, None)
        for key, value in actual.items():
            self.saw(key, value)

    def _compare(self, key: K) -> None:
        want, have = self.desired.get(key), self.actual.get(key)
        self.to_write.discard(key)
        self.to_delete.discard(key)
        if want is None:
            if have is not None:
                self.to_delete.add(key)
        elif want != have:
            self.to_write.add(key)
