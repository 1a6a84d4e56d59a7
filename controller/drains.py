"""The end of drains: a color that lost its weight is closed when the time of its open connections is over.

Only the chore leader does it, and every transaction compares its term. Times are its own, from when it first saw the
drain: a new leader waits longer, never shorter.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

import structlog

from controller.etcd.types import Compare, modified, put
from controller.events import Events
from controller.hosts import timestamp
from controller.intents.base import stored_message
from controller.intents.split import close
from controller.rows import Drain, Intent, SplitSpec
from controller.store import Store
from tealnet.store.v1 import store_pb2
from tealnet.v1 import split_pb2

log = structlog.get_logger()


class Drains:
    """The drains of one term; `term` is the compare of its writes."""

    def __init__(self, store: Store, term: Compare, events: Events) -> None:
        self.store, self.term, self.events = store, term, events
        self._first: dict[tuple[str, Drain], float] = {}  # when a drain was first seen

    async def step(self) -> None:
        """Close what is due. Raises StoreError."""
        now, rows = time.monotonic(), self.store.world.splits.rows
        running = [(name, drain) for name, split in rows.items() for drain in split.spec.drains]
        self._first = {one: self._first.get(one, now) for one in running}
        for name in {name for name, _ in running}:
            split = rows[name]
            due = [d.color for d in split.spec.drains if now - self._first[name, d] >= d.seconds]
            if due:
                await self._close(split, due)

    async def _close(self, split: Intent[SplitSpec], colors: Sequence[str]) -> None:
        """If its weights are still those that began the drain; otherwise the tables will soon say what is so now."""
        message: split_pb2.TrafficSplit = stored_message(split, "split")
        close(message, colors)
        message.update_time.CopyFrom(timestamp())
        stored = store_pb2.Stored.FromString(split.stored)
        stored.message = message.SerializeToString(deterministic=True)
        stored.write_id = secrets.token_bytes(16)
        text = f"the drain of {', '.join(colors)} is over: connections that are open are cut"
        event = await self.events.op(name=split.name, uid=split.spec.network_uid, reason="ColorClosed", text=text)
        key = self.store.keys.intent(split.name)
        result = await self.store.etcd.txn(
            [self.term, modified(key, split.mod_revision)], [put(key, stored.SerializeToString()), event]
        )
        if result.succeeded:
            log.info("color closed", split=split.name, colors=list(colors))
            self.store.wrote("CloseColor", [split.name], result.revision)
            await self.store.passed(result.revision)
