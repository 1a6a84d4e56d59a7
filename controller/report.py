"""What a host says about its ports, written to etcd: transitions only, in batches, and only for the live session.

Acks and revisions are never written: who needs them asks by a barrier (A16).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import structlog

from controller.etcd import OutcomeUnknown, StoreError, StoreUnavailable
from controller.etcd.types import Page, Put, TxnResult, delete, get, modified, prefix_end, put, value_is
from controller.hosts import clear_conditions, edit_host_status, set_condition, timestamp
from controller.outbox import Unit
from controller.rows import Intent, PortSpec, PortStatusEntry
from controller.store import Store
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.stream import endpoint_key
from tealnet.store.v1 import store_pb2

log = structlog.get_logger()

_DELAY = 0.05  # seconds
_AGAIN = 0.5  # seconds until a write that failed is tried again
_BATCH = 100  # puts per transaction
_LOCALPORT = "localport/"
_RULES = "rules/"
_UNACCOUNTED = "Unaccounted"
_OURS = (_UNACCOUNTED, "VtepMismatch", "ForeignHistory")
"""Conditions that the controller finds and a host can't set."""
# What a host says is stored, so it has an end, whoever has taken the host over.
_LONGEST_KEY = 200
_LONGEST_TEXT = 1000
_LONGEST_DEVICE = 15  # IFNAMSIZ without the zero
_MOST_CONDITIONS = 32
_MOST_UNACCOUNTED = 5000


class _Replaced(Exception):
    """The host has another session."""


class _KeyGone(Exception):
    """The session key went with its lease; it will be written again."""


class Result(NamedTuple):
    """The last word on a port: the versions applied and tried, and why the try failed ("" = it did not).

    `policy` is what went wrong with the rules of its identity: then it is closed, in one direction or both. `device`:
    see `PortStatusEntry`.
    """

    applied: bytes
    tried: bytes
    reason: str
    text: str
    policy: str = ""
    device: str = ""

    @staticmethod
    def of(row: PortStatusEntry) -> Result:
        """As it is written."""
        return Result(row.applied, row.tried, row.reason, row.text, row.policy, row.device)


class Report:
    """The results of one session's ports. `run` writes what `acked` finds changed."""

    def __init__(self, store: Store, *, host_uid: str, session: bytes, progressed: Callable[[], None]) -> None:
        self.store, self.host_uid = store, host_uid
        self._progressed, self._writing = progressed, False
        self._mine = value_is(store.keys.session(host_uid), session)
        self.failures: dict[str, pb.KeyFailure] = {}
        self._sent: dict[str, bytes] = {}  # port uid → version of the newest acked unit
        self._devices: dict[str, str] = {}  # port uid → device, of those that are not called after their port
        self._told: dict[str, Result] = {}  # port uid → what is written or about to be
        self._queue: dict[str, Result | None] = {}
        self._wake, self._hurry = asyncio.Event(), asyncio.Event()

    @property
    def is_written(self) -> bool:
        """All that the host has said stands in the tables."""
        return not self._queue and not self._writing

    def hurry(self) -> None:
        """Somebody waits until all is written."""
        self._hurry.set()

    def differing(self) -> list[str]:
        """Uids of ports whose status row is not what this host has said last."""
        if not self.is_written:
            return []
        rows, found = self.store.world.port_status.rows, []
        for uid in self._sent:
            told, row, written = self._told.get(uid), rows.get(uid), None
            if row and row.host_uid == self.host_uid:
                written = Result.of(row)
            if told and told != written and self._bound(uid) is not None:
                found.append(uid)
        return found

    def again(self, uid: str) -> None:
        """Write what was said last of a port again."""
        self._queue[uid] = self._told[uid]
        self._wake.set()

    # ---- taking in

    def acked(self, units: Iterable[Unit], ack: pb.Ack) -> None:
        """An Ack: the units it is the first about, and the full set of failures."""
        failures = {failure.key: _short(failure) for failure in ack.failures if self._may_speak_of(failure.key)}
        affected = {key for key in failures.keys() | self.failures.keys() if self._differs(key, failures)}
        self.failures = failures
        moved = self._placed(ack)
        uids = {key.removeprefix(_LOCALPORT) for key in affected if key.startswith(_LOCALPORT)}
        uids.update(uid for key in affected if key.startswith(_RULES) for uid in self._guarded_by(key))
        for unit in units:
            for uid, version in unit.sent.items():
                uids.add(uid)
                if version is None:
                    self._sent.pop(uid, None)
                    self._devices.pop(uid, None)
                else:
                    self._sent[uid] = version
        for uid in uids | (moved & self._sent.keys()):
            self._tell(uid)

    def _placed(self, ack: pb.Ack) -> set[str]:
        """Take in on which devices ports are; returns those of which that is news."""
        if not ack.devices and not ack.devices_whole:
            return set()
        told = {said.port_uid: said.device for said in ack.devices if self._may_speak_of(_LOCALPORT + said.port_uid)}
        told = {uid: device for uid, device in told.items() if len(device) <= _LONGEST_DEVICE}
        before, self._devices = self._devices, told if ack.devices_whole else self._devices | told
        news = {uid for uid in before.keys() | told.keys() if before.get(uid) != self._devices.get(uid)}
        if ack.devices_whole:  # what an earlier session was told may be so no more
            rows = self.store.world.port_status.rows
            news |= {uid for uid in self._own() if uid in rows and rows[uid].device != self._devices.get(uid, "")}
        return news

    def _own(self) -> Iterable[str]:
        """The uids of the ports that are bound to this host."""
        world = self.store.world
        for host in world.hosts_by_uid.keys(self.host_uid):
            for name in world.ports_by_host.keys(host):
                yield world.ports.rows[name].uid

    def _may_speak_of(self, key: str) -> bool:
        """A host speaks for the ports that are bound to it, and for those that it still has to let go."""
        if not key.startswith(_LOCALPORT):
            return len(key) <= _LONGEST_KEY
        uid, world = key.removeprefix(_LOCALPORT), self.store.world
        if uid in self._sent or self._bound(uid) is not None:
            return True
        return any(place[0] == self.host_uid for place in world.tombstones_by_port.keys(uid))

    def _differs(self, key: str, failures: dict[str, pb.KeyFailure]) -> bool:
        return failures.get(key) != self.failures.get(key)

    def began_anew(self) -> None:
        """The host was booted or installed again: what was applied is not there until it says so."""
        for uid in self._own():
            if (known := self._known(uid)) and known.applied:
                self._told[uid] = self._queue[uid] = Result(b"", b"", "", "")
                self._wake.set()

    def bound(self, uid: str) -> None:
        """A port was bound to this host, which may have it already: it came back before it was gone."""
        self._told.pop(uid, None)
        if uid in self._sent:
            self._tell(uid)

    def _tell(self, uid: str) -> None:
        """Queue what there is to say; only the host that the port is bound to speaks for it."""
        before, version = self._known(uid), self._sent.get(uid)
        if version is None:
            self._told.pop(uid, None)
            self._queue.pop(uid, None)
            after = None
        elif self._bound(uid) is None:
            return
        else:
            policy, device = self._policy_of(uid), self._devices.get(uid, "")
            after = Result(version, version, "", "", policy, device)
            if failure := self.failures.get(_LOCALPORT + uid):
                applied = before.applied if before else b""
                after = Result(
                    applied, failure.version or version, failure.reason or "FAILED", failure.text, policy, device
                )
            self._told[uid] = after
        if after != before:
            self._queue[uid] = after
            self._wake.set()

    def _guarded_by(self, key: str) -> Iterable[str]:
        """The uids of this host's ports that rules (rules/<identity>) guard."""
        world, number = self.store.world, key.removeprefix(_RULES)
        for name in world.ports_by_identity.keys(int(number) if number.isdecimal() else 0):
            uid = world.ports.rows[name].uid
            if uid in self._sent and self._bound(uid) is not None:
                yield uid

    def _policy_of(self, uid: str) -> str:
        world = self.store.world
        for name in world.ports_by_uid.keys(uid):
            spec = world.ports.rows[name].spec
            network = world.networks.rows.get(spec.network)
            failure = self.failures.get(f"{_RULES}{spec.identity}")
            if failure and network and network.spec.guarded:
                return f"{failure.reason or 'FAILED'}: {failure.text}"
        return ""

    def _bound(self, uid: str) -> Intent[PortSpec] | None:
        """The port, if it is bound to this host."""
        ports, hosts = self.store.world.ports, self.store.world.hosts
        for name in self.store.world.ports_by_uid.keys(uid):
            host = hosts.rows.get(ports.rows[name].spec.host)
            if host is not None and host.uid == self.host_uid:
                return ports.rows[name]
        return None

    def _known(self, uid: str) -> Result | None:
        """What was said last of this port on this host."""
        if uid in self._told:
            return self._told[uid]
        row = self.store.world.port_status.rows.get(uid)
        if row is None or row.host_uid != self.host_uid:
            return None
        return Result.of(row)

    # ---- writing

    async def run(self) -> None:
        """Write, until cancelled; returns when this is not the host's session any more."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._writing = True
            while self._queue:
                batch = {uid: self._queue.pop(uid) for uid in list(self._queue)[:_BATCH]}
                try:
                    await self._write(batch)
                except _Replaced:
                    return
                except (StoreUnavailable, OutcomeUnknown, _KeyGone) as error:
                    log.warning("port status not written yet", host_uid=self.host_uid, error=str(error))
                    self._queue = {**batch, **self._queue}
                    await asyncio.sleep(_AGAIN)
            self._writing = False
            self._progressed()
            # The first is written at once, what follows closely together, unless somebody waits for it.
            self._hurry.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DELAY):
                    await self._hurry.wait()

    async def _write(self, batch: dict[str, Result | None]) -> None:
        for uid in (uid for uid, result in batch.items() if result is None):
            await self._forget(uid)
        # On condition that the ports are still bound to this host: a word that comes late must not stand in place of
        # that of the host which has the port now.
        bound = {uid: port for uid, result in batch.items() if result and (port := self._bound(uid))}
        puts = [self._put(uid, result) for uid, result in batch.items() if result and uid in bound]
        for uid in (uid for uid, result in batch.items() if result and uid not in bound):
            self._told.pop(uid, None)
        if not puts:
            return
        unmoved = [modified(self.store.keys.intent(port.name), port.mod_revision) for port in bound.values()]
        result = await self.store.etcd.txn([self._mine, *unmoved], puts, [get(self._mine.key)])
        if result.succeeded:
            await self.store.passed(result.revision)
            return
        self._check_key(result)
        await self.store.barrier()
        again: dict[str, Result | None] = {uid: batch[uid] for uid in bound}
        self._queue = again | self._queue

    async def _forget(self, uid: str) -> None:
        """The port lives and left this host; its status row goes unless another host has spoken since."""
        key = self.store.keys.port_status(uid)
        page = await self.store.etcd.range(key)
        for kv in page.kvs:
            if store_pb2.PortStatusRow.FromString(kv.value).host_uid == self.host_uid:
                unchanged = modified(key, kv.mod_revision)
                result = await self.store.etcd.txn([self._mine, unchanged], [delete(key)], [get(self._mine.key)])
                if not result.succeeded:
                    self._check_key(result)

    def _check_key(self, failed: TxnResult) -> None:
        """Was it the session key that a transaction failed for? Raises _KeyGone, _Replaced."""
        found = failed.responses[0]
        if not isinstance(found, Page) or not found.kvs:
            raise _KeyGone("the lease was lost")
        if found.kvs[0].value != self._mine.operand:
            raise _Replaced

    def _put(self, uid: str, result: Result) -> Put:
        row = store_pb2.PortStatusRow(
            host_uid=self.host_uid,
            applied=result.applied,
            tried=result.tried,
            reason=result.reason,
            text=result.text,
            policy=result.policy,
            device=result.device,
            since=timestamp(),
        )
        return put(self.store.keys.port_status(uid), row.SerializeToString())

    # ---- tombstones and the host's own row

    async def note_removed(self, synced: int) -> None:
        """Mark the tombstones that this host has carried out: it is synced past them and does not hold the port.

        A port that failed there may be there as it was, or still be there at all: its tombstones wait.
        """
        store = self.store
        rows = store.world.tombstones.rows
        due = {
            key
            for key in store.world.tombstones_by_host.keys(self.host_uid)
            if not rows[key].acked
            and rows[key].revision <= synced
            and (rows[key].due or not rows[key].moved_to)
            and not self._has_failed(rows[key].port_uid)
        }
        if not due:
            return
        prefix = store.keys.tombstone(self.host_uid, "")
        _, found = await store.etcd.scan(prefix, prefix_end(prefix))
        for kv in found:
            parts = store.keys.relative(kv.key).split("/")
            key = (parts[2], parts[3], parts[4] if len(parts) > 4 else "")
            if key not in due or kv.mod_revision > synced:  # a move became due later than it was written
                continue
            message = store_pb2.Tombstone.FromString(kv.value)
            message.acked = True
            write = put(kv.key, message.SerializeToString())
            await store.etcd.txn([self._mine, modified(kv.key, kv.mod_revision)], [write])

    def _has_failed(self, port_uid: str) -> bool:
        return _LOCALPORT + port_uid in self.failures or endpoint_key(port_uid) in self.failures

    async def note_facts(self, facts: pb.Facts) -> None:
        """Keep what the host says of itself, if it is news."""

        def edit(row: store_pb2.HostStatusRow) -> None:
            row.underlay_mtu = facts.underlay_mtu
            row.ovs_version, row.datapath = _cut(facts.ovs_version), _cut(facts.datapath)
            told = {c.type: c for c in facts.conditions[:_MOST_CONDITIONS] if c.type not in _OURS}
            clear_conditions(row, *(c.type for c in row.conditions if c.type not in told.keys() | {_UNACCOUNTED}))
            for kind, c in told.items():
                set_condition(row, kind=_cut(kind), text=_cut(c.text), remedy=_cut(c.remedy))

        await edit_host_status(self.store.etcd, self.store.keys, self.host_uid, edit, [self._mine])

    async def note_unaccounted(self, keys: Iterable[str]) -> None:
        """Keep the names of ports that the host has and the store does not, without proof."""
        unaccounted = sorted(key for key in keys if key.startswith(_LOCALPORT) and len(key) <= _LONGEST_KEY)
        unaccounted = unaccounted[:_MOST_UNACCOUNTED]

        def edit(row: store_pb2.HostStatusRow) -> None:
            row.unaccounted[:] = unaccounted
            if not unaccounted:
                row.accepted = 0
                clear_conditions(row, _UNACCOUNTED)
                return
            text = f"{len(unaccounted)} ports on the host are not in the store, and nobody deleted them"
            set_condition(row, kind=_UNACCOUNTED, text=text, remedy="`teal host accept` removes them from the host")

        await edit_host_status(self.store.etcd, self.store.keys, self.host_uid, edit, [self._mine])

    async def close(self, synced: int) -> None:
        """The session is over: give its key up and note how far the host is."""

        def edit(row: store_pb2.HostStatusRow) -> None:
            row.last_synced = synced
            row.since.CopyFrom(timestamp())

        try:
            await edit_host_status(self.store.etcd, self.store.keys, self.host_uid, edit, [self._mine])
            await self.store.etcd.txn([self._mine], [delete(self._mine.key)])
        except StoreError as error:
            log.info("session key left to its lease", host_uid=self.host_uid, error=str(error))


def _cut(text: str) -> str:
    return text[:_LONGEST_TEXT]


def _short(failure: pb.KeyFailure) -> pb.KeyFailure:
    """A failure with texts that can be kept."""
    if len(failure.text) > _LONGEST_TEXT or len(failure.reason) > _LONGEST_KEY or len(failure.version) > _LONGEST_KEY:
        failure.text, failure.reason = _cut(failure.text), failure.reason[:_LONGEST_KEY]
        failure.version = failure.version[:_LONGEST_KEY]
    return failure
