"""What a driver last knew of its keys: tells real changes from the echo of our own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Generic, TypeVar

from agent.drivers.base import Failure

V = TypeVar("V")


class Memory(Generic[V]):
    """Values as last read or written, by key. Used on the namespace thread only."""

    def __init__(self) -> None:
        self._known: dict[str, V] = {}

    def saw_all(self, found: dict[str, V]) -> dict[str, V]:
        """All was read; returns it."""
        self._known = dict(found)
        return found

    def wrote(self, outcomes: Mapping[str, tuple[V | None, Failure | None]]) -> dict[str, Failure]:
        """What is there now by key (None: nothing), and why it is not as wanted; returns the failures."""
        for key, (value, failure) in outcomes.items():
            if value is None or failure is not None:
                self._known.pop(key, None)
            else:
                self._known[key] = value
        return {key: failure for key, (_, failure) in outcomes.items() if failure is not None}

    def keys(self) -> set[str]:
        """What is known to be there."""
        return set(self._known)

    def knows(self, key: str) -> bool:
        """Whether it is known to be there."""
        return key in self._known

    def differing(self, keys: Collection[str], found: Mapping[str, V]) -> set[str]:
        """Which of the keys are not as last known."""
        return {key for key in keys if found.get(key) != self._known.get(key)}
