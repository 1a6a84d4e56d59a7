"""Events: what happened to an object, for people; kept for 24 hours.

Event rows stand on leases that nobody renews, one per replica and ten minutes. A reason that repeats for the same
object is written once a minute.
"""

from __future__ import annotations

import time

import structlog

from controller.etcd import Etcd, LeaseNotFound, StoreError
from controller.etcd.types import Put, prefix_end, put
from controller.hosts import timestamp
from controller.keys import Keys
from tealnet.store.v1 import store_pb2
from tealnet.v1 import system_pb2

log = structlog.get_logger()

LIFE = 24 * 3600  # seconds
_BUCKET = 600.0  # seconds
_QUIET = 60.0  # seconds between two equal ones
_REMEMBERED = 10_000


class Events:
    """Writes and reads events. For one event loop."""

    def __init__(self, etcd: Etcd, keys: Keys) -> None:
        self.etcd, self.keys = etcd, keys
        self._lease, self._lease_until = 0, 0.0
        self._noted: dict[tuple[str, str], float] = {}

    async def op(self, *, name: str, uid: str, reason: str, text: str, actor: str = "") -> Put:
        """The write of an event, for a transaction of the caller's. Raises the store's errors."""
        return self.row(await self.lease(), name=name, uid=uid, reason=reason, text=text, actor=actor)

    def row(self, lease: int, *, name: str, uid: str, reason: str, text: str, actor: str) -> Put:
        """As `op`, on a lease that `lease` gave."""
        row = store_pb2.EventRow(time=timestamp(), name=name, reason=reason, text=text, actor=actor)
        return put(self.keys.event(uid, time.time_ns()), row.SerializeToString(), lease)

    async def note(self, *, name: str, uid: str, reason: str, text: str, actor: str = "") -> None:
        """Write an event by itself. An event that can't be written is only logged: nothing waits for it."""
        now = time.monotonic()
        if now - self._noted.get((uid, reason), -_QUIET) < _QUIET:
            return
        if len(self._noted) >= _REMEMBERED:
            self._noted.clear()
        self._noted[uid, reason] = now
        log.info("event", object=name, reason=reason, text=text, actor=actor)
        try:
            await self.etcd.txn((), [await self.op(name=name, uid=uid, reason=reason, text=text, actor=actor)])
        except LeaseNotFound:
            self.forget()
        except StoreError as error:
            log.warning("event not written", object=name, reason=reason, error=str(error))

    async def read(self, uid: str = "") -> list[system_pb2.Event]:
        """The events of an object, or of all ("" ), oldest first."""
        prefix = self.keys.events(uid)
        _, found = await self.etcd.scan(prefix, prefix_end(prefix))
        events = []
        for kv in found:
            row = store_pb2.EventRow.FromString(kv.value)
            events.append(
                system_pb2.Event(
                    time=row.time,
                    name=row.name,
                    reason=row.reason,
                    text=row.text,
                    actor=row.actor,
                    revision=kv.mod_revision,
                )
            )
        return sorted(events, key=lambda event: event.revision)

    async def lease(self) -> int:
        """One that nobody renews and that lasts 24 hours: the same for all that is written within ten minutes."""
        now = time.monotonic()
        if now >= self._lease_until:
            self._lease = await self.etcd.grant(LIFE)
            self._lease_until = now + _BUCKET
        return self._lease

    def forget(self) -> None:
        """The lease is not there any more: this machine slept for a day, or the store was restored."""
        self._lease_until = 0.0
