"""This process among its replicas: one lease, the heartbeat, and the row by which others know it.

All that must vanish with the process stands on the one lease. When it is lost (a paused store kills every lease, A19)
a new one is taken and whoever has keys on it writes them again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from controller.etcd import Etcd, Lease, StoreError
from controller.etcd.types import put
from controller.keys import Keys
from tealnet.store.v1 import store_pb2

log = structlog.get_logger()

TTL = 5  # seconds
_BEAT = 1.0  # seconds
_PAUSE = 0.5  # seconds between attempts to get a lease


async def _at_once(_: int) -> None:
    """Nobody follows."""


class Replica:
    """`run` for as long as the process lives. `lease_id` is 0 until the first lease is there."""

    def __init__(self, etcd: Etcd, keys: Keys, replica_id: str) -> None:
        self.etcd, self.keys, self.id = etcd, keys, replica_id
        self.lease_id = 0
        self.ready = asyncio.Event()
        self.seen: Callable[[int], Awaitable[None]] = _at_once  # `Store.committed`
        self.describe: Callable[[], store_pb2.ReplicaRow] = store_pb2.ReplicaRow
        self.renewed: list[Callable[[], None]] = []  # called when there is a new lease

    async def run(self) -> None:
        """Hold a lease and beat on it."""
        while True:
            try:
                lease = await self.etcd.lease(TTL)
            except StoreError as error:
                log.warning("no lease from the store", error=str(error))
                await asyncio.sleep(_PAUSE)
                continue
            async with lease:
                self.lease_id = lease.id
                self.ready.set()
                for callback in self.renewed:
                    callback()
                await self._beat(lease)
            self.ready.clear()
            log.warning("lease lost, taking a new one")

    async def _beat(self, lease: Lease) -> None:
        beat, row = self.keys.beat(self.id), self.keys.replica(self.id)
        while not lease.lost.is_set():
            try:
                written = await self.etcd.txn(
                    (), [put(beat, b"", lease.id), put(row, self.describe().SerializeToString(), lease.id)]
                )
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_BEAT):
                        await self.seen(written.revision)
            except StoreError as error:
                log.warning("heartbeat not written", error=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BEAT):
                    await lease.lost.wait()
