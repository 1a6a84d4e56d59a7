"""What one call has written so far, for its line in the audit log. Set by the interceptor, added to by commits."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field

MOST_OBJECTS = 100
"""Names in one line; of a cascade over a large tenant the rest is left out."""


@dataclass(slots=True)
class Trail:
    """Revision of the last commit (0: none yet), and the names of what was written."""

    revision: int = 0
    objects: list[str] = field(default_factory=list)

    def wrote(self, revision: int, names: Iterable[str]) -> None:
        """A commit was done."""
        self.revision = max(self.revision, revision)
        self.objects.extend(list(names)[: MOST_OBJECTS - len(self.objects)])


_current: ContextVar[Trail | None] = ContextVar("trail", default=None)


def current_trail() -> Trail | None:
    """Of this call; None outside of one."""
    return _current.get()


def set_trail(trail: Trail | None) -> None:
    """For the interceptor."""
    _current.set(trail)
