"""What is wrong, and what mends it."""

from __future__ import annotations

from dataclasses import dataclass

from controller.etcd.types import Compare, Op
from tealnet.v1 import admin_pb2


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing. `holds`: compares under which it is so; `ops` mend it, none: a person must decide.

    `repair` says what the ops do.
    """

    kind: str
    subject: str
    text: str
    holds: tuple[Compare, ...] = ()
    ops: tuple[Op, ...] = ()
    object: str = ""
    repair: str = ""

    def message(self, *, repaired: bool) -> admin_pb2.Finding:
        """As the API tells it."""
        return admin_pb2.Finding(
            kind=self.kind,
            subject=self.subject,
            object=self.object,
            text=self.text,
            repair=self.repair,
            repaired=repaired,
        )
