"""May this agent have a session? Checked in this order: host, history, tunnel address, other instances.

Empty is not missing: an agent that has seen another history is told nothing until an admin accepts it (A3).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable
from dataclasses import dataclass
from ipaddress import ip_address

import structlog

from controller.etcd.types import Page, absent, get, modified, put, value_is
from controller.events import Events
from controller.hosts import clear_conditions, edit_host_status, set_condition, timestamp
from controller.keys import Address
from controller.replica import Replica
from controller.rows import HostSpec, Intent
from controller.store import Store
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.store.v1 import store_pb2
from tealnet.v1 import host_pb2

log = structlog.get_logger()

FOREIGN_HISTORY = "FOREIGN_HISTORY"  # HostStatusRow.state
LOST = "LOST"
_PATIENCE = 5.0  # seconds until the tables must have reached the agent's revision
_TRIES = 10


class Refusal(Exception):
    """No session; `reason` is a stable word of `Refused`."""

    def __init__(self, reason: str, text: str, *, retry_after_ms: int = 1000) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason, self.text, self.retry_after_ms = reason, text, retry_after_ms


@dataclass(frozen=True, slots=True)
class Admitted:
    """A host with a claimed session key."""

    name: str
    host: Intent[HostSpec]
    vtep: Address
    session: bytes  # the value of the session key
    was_foreign: bool


class Admission:
    """The checks of one replica."""

    def __init__(self, store: Store, replica: Replica, events: Events) -> None:
        self.store, self.replica, self.events = store, replica, events

    async def admit(self, name: str, issued: float, hello: pb.Hello) -> Admitted:
        """A session for host `name`, whose certificate was issued at Unix time `issued`. Raises Refusal, StoreError."""
        full = f"hosts/{name}"
        if full not in self.store.world.hosts.rows:
            await self.store.barrier()
        if (host := self.store.world.hosts.rows.get(full)) is None:
            raise Refusal("UnknownHost", f"there is no host {name}", retry_after_ms=5000)
        if host.spec.fenced:
            await self._refused(host, "Fenced", "a fenced host asked for a session")
            raise Refusal("Fenced", f"host {name} is fenced", retry_after_ms=10_000)
        if issued < host.spec.revoked_before:
            raise Refusal("Revoked", f"certificates of {name} of this age are revoked", retry_after_ms=10_000)
        if not hello.instance_uid:
            raise Refusal("Protocol", "Hello has no instance_uid", retry_after_ms=10_000)
        was_foreign = await self._history(host, hello)
        vtep = await self._vtep(host, hello)
        session = await self.claim(host, hello.instance_uid)
        host = self.store.world.hosts.rows.get(full) or host
        return Admitted(name, host, vtep, session, was_foreign)

    # ---- history

    async def _history(self, host: Intent[HostSpec], hello: pb.Hello) -> bool:
        """Whether the agent comes from another history and was accepted by an admin; refuses if it was not."""
        row = self.store.world.host_status.rows.get(host.uid)
        refused = row is not None and row.state == FOREIGN_HISTORY
        # Once refused, always refused until accepted: a restored store that is written to soon looks like a newer one.
        why = await self._foreign(hello) or ("the host has seen another history of this store" if refused else "")
        if not why:
            return False
        if row is not None and refused and row.accepted:
            log.warning("host of another history was accepted", host=host.name, why=why)
            return True

        def mark(row: store_pb2.HostStatusRow) -> None:
            if row.state != FOREIGN_HISTORY:
                row.state, row.accepted = FOREIGN_HISTORY, 0
                row.since.CopyFrom(timestamp())
            remedy = "check that this is the right store; then `teal host accept` lets the host go on"
            set_condition(row, kind="ForeignHistory", text=why, remedy=remedy)

        await edit_host_status(self.store.etcd, self.store.keys, host.uid, mark)
        await self._refused(host, "ForeignHistory", why)
        raise Refusal("ForeignHistory", why, retry_after_ms=2000)

    async def _foreign(self, hello: pb.Hello) -> str:
        store = self.store
        if hello.cluster_uid and hello.cluster_uid != store.keys.cluster_uid:
            return f"the host belongs to cluster {hello.cluster_uid}, this is {store.keys.cluster_uid}"
        if hello.revision > store.revision:
            now = await store.etcd.revision()
            if now < hello.revision:
                return f"the host has seen revision {hello.revision}, the store is at {now}"
            await self._in_time(store.passed(hello.revision))
        number = hello.lineage.number
        if number > store.lineage[0]:  # a replica ahead of this one has welcomed the host, and had nothing new for it
            await self._in_time(store.barrier())
        if number and store.world.lineages.rows.get(number) != hello.lineage.id:
            return f"the store does not know lineage {number} ({hello.lineage.id})"
        return ""

    async def _in_time(self, caught_up: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                await caught_up
        except TimeoutError:
            raise Refusal("NotReady", "this replica lags behind what the host has seen") from None

    # ---- tunnel address

    async def _vtep(self, host: Intent[HostSpec], hello: pb.Hello) -> Address:
        """The host's tunnel address: the admin's, or pinned now (A2)."""
        try:
            seen = ip_address(hello.vtep)
        except ValueError:
            raise Refusal("VtepMismatch", f"{hello.vtep!r} is not an address") from None
        if host.spec.vtep is None:
            await self._pin(host, seen)
        elif host.spec.vtep != seen:
            await self._mismatch(host, seen, f"the host says {seen}, its Host object {host.spec.vtep}")
        return seen

    async def _pin(self, host: Intent[HostSpec], vtep: Address) -> None:
        store = self.store
        stored = store_pb2.Stored.FromString(host.stored)
        message = host_pb2.Host.FromString(stored.message)
        message.vtep = str(vtep)
        message.update_time.CopyFrom(timestamp())
        stored.message, stored.write_id = message.SerializeToString(), secrets.token_bytes(16)
        key, unique = store.keys.intent(host.name), store.keys.vtep(vtep)
        holder = store_pb2.Holder(name=host.name, uid=host.uid).SerializeToString()
        result = await store.etcd.txn(
            [modified(key, host.mod_revision), absent(unique)],
            [put(key, stored.SerializeToString()), put(unique, holder)],
            [get(unique)],
        )
        if result.succeeded:
            log.info("tunnel address pinned", host=host.name, vtep=str(vtep))
            store.wrote("PinTunnelAddress", [host.name], result.revision)
            await store.passed(result.revision)
            return
        found = result.responses[0]
        assert isinstance(found, Page)
        if found.kvs:
            other = store_pb2.Holder.FromString(found.kvs[0].value)
            await self._mismatch(host, vtep, f"{vtep} is the tunnel address of {other.name}")
        raise Refusal("NotReady", "the Host object has just changed", retry_after_ms=100)

    async def _mismatch(self, host: Intent[HostSpec], seen: Address, why: str) -> None:
        def mark(row: store_pb2.HostStatusRow) -> None:
            row.vtep_seen = str(seen)
            remedy = "correct `vtep` in the agent's settings or in the Host object"
            set_condition(row, kind="VtepMismatch", text=why, remedy=remedy)

        await edit_host_status(self.store.etcd, self.store.keys, host.uid, mark)
        await self._refused(host, "VtepMismatch", why)
        raise Refusal("VtepMismatch", why, retry_after_ms=5000)

    # ---- other instances

    async def claim(self, host: Intent[HostSpec], instance_uid: str) -> bytes:
        """Put the session key on this replica's lease (T11); returns its value. Refuses a second instance."""
        store, key = self.store, self.store.keys.session(host.uid)
        if not self.replica.ready.is_set():
            raise Refusal("NotReady", "this replica has no lease", retry_after_ms=200)
        session = store_pb2.Session(
            replica=self.replica.id, session=secrets.token_hex(16), instance_uid=instance_uid
        ).SerializeToString()
        write = put(key, session, self.replica.lease_id)
        there = absent(key)
        for _ in range(_TRIES):
            result = await store.etcd.txn([there], [write], [get(key)])
            if result.succeeded:
                await store.passed(result.revision)
                return session
            found = result.responses[0]
            assert isinstance(found, Page)
            old = store_pb2.Session.FromString(found.kvs[0].value) if found.kvs else None
            if old and old.instance_uid != instance_uid:
                why = f"another agent ({old.instance_uid}) has the session of {host.name}"
                await self._refused(host, "DuplicateAgent", why)
                raise Refusal("DuplicateAgent", why, retry_after_ms=2000)
            # The same installation: its old stream is dead, or is just being given up.
            there = value_is(key, found.kvs[0].value) if found.kvs else absent(key)
        raise Refusal("NotReady", "the session changes hands all the time", retry_after_ms=200)

    async def settled(self, admitted: Admitted, hello: pb.Hello) -> bool:
        """The session lives: note who it is, and take back what an earlier refusal said.

        Returns whether the host began anew (another boot, another installation): nothing it applied before is there.
        """
        host = admitted.host
        row = self.store.world.host_status.rows.get(host.uid)
        began_anew = row is not None and (
            (row.boot_id not in ("", hello.boot_id)) or (row.instance_uid not in ("", hello.instance_uid))
        )
        if row and row.instance_uid and row.instance_uid != hello.instance_uid:
            text = f"a new installation of the agent answers for {host.name}"
            await self.events.note(name=host.name, uid=host.uid, reason="HostReplaced", text=text)

        def note(row: store_pb2.HostStatusRow) -> None:
            if row.state:
                row.state = ""
                row.since.CopyFrom(timestamp())
            if admitted.was_foreign:
                row.accepted = 0
            row.instance_uid, row.vtep_seen, row.agent_version = (
                hello.instance_uid,
                str(admitted.vtep),
                hello.agent_version,
            )
            row.boot_id = hello.boot_id
            clear_conditions(row, "VtepMismatch", "ForeignHistory")

        mine = value_is(self.store.keys.session(host.uid), admitted.session)
        await edit_host_status(self.store.etcd, self.store.keys, host.uid, note, [mine])
        return began_anew

    async def _refused(self, host: Intent[HostSpec], reason: str, text: str) -> None:
        await self.events.note(name=host.name, uid=host.uid, reason=reason, text=text)
