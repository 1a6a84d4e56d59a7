"""What a replica's hosts report for rollouts: asked for while one runs, and written at most once a second.

The leader that runs a rollout may be another replica than those that hold the sessions, so what it needs goes through
the store: one row per rollout and replica (`w/s/rollout/…`), on the lease of the replica whose sessions it is from.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import structlog

from controller.etcd import StoreError
from controller.etcd.types import Compare, Op, created, delete, put
from controller.observing import Counters
from controller.replica import Replica
from controller.rollouts.plan import Probe, ProbeKind, RolloutSpec, State
from controller.rows import Intent
from controller.selectors import selector
from controller.session import Session
from controller.sessions import Sessions
from controller.store import Change, Store
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.store.v1 import store_pb2
from tealnet.v1 import rollout_pb2

log = structlog.get_logger()

_EVERY = 1.0  # seconds
_LEAST = 0.1  # … when a host holds a step until its instant: that is decided on half of the lead before
LINGER = 5.0  # seconds that hosts are asked after the end: what they say of it comes later than their Acks
_NEEDED = "colors"  # the feature of agents that can answer
_PROBING = frozenset({State.VERIFYING, State.SHIFTING, State.DRAINING, State.CONFIRMING, State.PAUSED})
_KINDS = {ProbeKind.ICMP: pb.Probe.KIND_ICMP, ProbeKind.TCP: pb.Probe.KIND_TCP, ProbeKind.HTTP: pb.Probe.KIND_HTTP}
Place = tuple[int, int]
"""A probe's place: index of its gate, index of its network."""


@dataclass(slots=True)
class Note:
    """What the leader adds to its own replica's row."""

    gates: tuple[rollout_pb2.GateStatus, ...] = ()
    waiting: str = ""
    behind: tuple[str, ...] = ()  # host uids


@dataclass(slots=True)
class _Watched:
    """One rollout that is watched."""

    row: Intent[RolloutSpec]
    probes: dict[int, Place] = field(default_factory=dict)  # by probe id
    opened: dict[tuple[int, str], list[int]] = field(default_factory=dict)  # network index, color → [opened, failed]
    written: bytes = b""
    over_at: float = 0.0  # when it was first seen to be done
    note: Note = field(default_factory=Note)


class Observer:
    """Of one replica. `run` as long as the process lives."""

    def __init__(self, store: Store, sessions: Sessions, replica: Replica) -> None:
        self.store, self.sessions, self.replica = store, sessions, replica
        self.began = secrets.token_hex(8)
        self._watched: dict[str, _Watched] = {}  # by rollout uid
        self._leaving: set[str] = set()  # rollouts whose row is to go
        self._counters: dict[str, Counters] = {}  # by host uid
        self._held = False
        self._wake = asyncio.Event()
        store.subscribe(self._follow)

    def note(self, uid: str, note: Note) -> None:
        """By the leader: goes out with the next write."""
        if watched := self._watched.get(uid):
            watched.note = note

    def _follow(self, _: int, changes: list[Change]) -> None:
        if any(change.table == "rollouts" for change in changes):
            self._wake.set()

    def _on_held(self) -> None:
        self._held = True
        self._wake.set()

    def _pause(self) -> float:
        return _LEAST if self._held else _EVERY

    async def run(self) -> None:
        """Ask at once when a rollout has moved; collect and write once a second, and soon when a step is held."""
        last = -_EVERY
        while True:
            self._wake.clear()
            self._choose()
            self._ask()
            if not self._watched and not self._leaving:
                self._counters.clear()
                await self._wake.wait()
                continue
            if (now := time.monotonic()) >= last + self._pause():
                last, self._held = now, False
                self._collect()
                await self._write()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(last + self._pause() - time.monotonic()):
                    await self._wake.wait()

    def _choose(self) -> None:
        """Rollouts that run, and for a little while those that are done."""
        rows, now = self.store.world.rollouts.rows, time.monotonic()
        living = {row.uid: row for row in rows.values() if not row.spec.run.is_done or row.uid in self._watched}
        past = {uid for uid, watched in self._watched.items() if uid not in living or self._is_past(watched)}
        self._leaving |= past
        for uid in past:
            del self._watched[uid]
            living.pop(uid, None)
        for uid, row in living.items():
            watched = self._watched.setdefault(uid, _Watched(row))
            watched.row = row
            watched.probes = dict(self._probes(row))
            if not row.spec.run.is_done:
                watched.over_at = 0.0
            elif not watched.over_at:
                watched.over_at = now

    # ---- asking

    def _probes(self, row: Intent[RolloutSpec]) -> Iterable[tuple[int, Place]]:
        if row.spec.run.state not in _PROBING:
            return
        for i, gate in enumerate(row.spec.plan.gates):
            if isinstance(gate, Probe):
                for j, network in enumerate(row.spec.plan.networks):
                    if gate.network in ("", network):
                        digest = blake2b(f"{row.uid}/{i}/{j}".encode(), digest_size=8).digest()
                        yield int.from_bytes(digest, "big") >> 1, (i, j)

    def _ask(self) -> None:
        """Every session is told the whole set that it is to report."""
        for session in self.sessions.by_host.values():
            if _NEEDED not in session.hello.features:
                continue
            concerned = [w for w in self._watched.values() if not self._is_past(w) and self._concerns(w, session)]
            observe = pb.Observe(interval_ms=int(_EVERY * 1000))
            networks = {before.uid for watched in concerned for before in watched.row.spec.run.networks}
            observe.networks.extend(sorted(map(bytes.fromhex, networks)))
            for watched in concerned:
                observe.probes.extend(self._messages(watched))
            session.observing.on_held = self._on_held
            session.observing.want(observe, {watched.row.uid: watched.row.spec.run.serial for watched in concerned})

    def _is_past(self, watched: _Watched) -> bool:
        return bool(watched.over_at) and time.monotonic() - watched.over_at >= LINGER

    def _concerns(self, watched: _Watched, session: Session) -> bool:
        of_network = self.sessions.resources.of_hosts.domain_of_network.rows
        domains = (of_network.get(network) for network in watched.row.spec.plan.networks)
        return any(f"domain/{domain}" in session.outbox.scopes for domain in domains)

    def _messages(self, watched: _Watched) -> Iterable[pb.Probe]:
        plan, world = watched.row.spec.plan, self.store.world
        for ident, (i, j) in sorted(watched.probes.items()):
            gate, network = plan.gates[i], world.networks.rows.get(plan.networks[j])
            segment = next((s for s in network.spec.segments if s.color == plan.target), None) if network else None
            if isinstance(gate, Probe) and segment and (not gate.ports or self._selected(gate, segment.uid)):
                yield pb.Probe(
                    id=ident,
                    kind=_KINDS[gate.kind],
                    vni=segment.vni,
                    addresses=self._selected(gate, segment.uid),
                    port=gate.port,
                    interval_ms=int(gate.interval * 1000),
                    timeout_ms=int(gate.timeout * 1000),
                    path=gate.path if gate.kind is ProbeKind.HTTP else "",
                    host=gate.host,
                    status_from=gate.status.first if gate.kind is ProbeKind.HTTP else 0,
                    status_to=gate.status.last if gate.kind is ProbeKind.HTTP else 0,
                )

    def _selected(self, gate: Probe, segment_uid: str) -> list[bytes]:
        """The addresses that are asked; none: all."""
        if not gate.ports:
            return []
        matches, ports = selector(gate.ports), self.store.world.ports
        found = (ports.rows[name] for name in self.store.world.ports_by_segment.keys(segment_uid))
        return sorted(address.packed for port in found if matches(port.labels) for address in port.spec.addresses)

    # ---- collecting

    def _collect(self) -> None:
        """Add what was counted since the last time."""
        for host_uid, session in self.sessions.by_host.items():
            if not session.observing.last.number:
                continue
            added = self._counters.setdefault(host_uid, Counters()).take(session.observing.last)
            for watched in self._watched.values():
                for index, before in enumerate(watched.row.spec.run.networks):
                    for number, color in self._colors(before.network).items():
                        if more := added.get((before.uid, number)):
                            total = watched.opened.setdefault((index, color), [0, 0])
                            total[0] += more.opened
                            total[1] += more.failed

    def _colors(self, network: str) -> Mapping[int, str]:
        row = self.store.world.networks.rows.get(network)
        return {s.color_number: s.color for s in row.spec.segments if s.color_number} if row else {}

    def report(self, uid: str) -> store_pb2.RolloutReport:
        """What this replica has to say of a rollout."""
        watched = self._watched[uid]
        sessions = [s for s in self.sessions.by_host.values() if uid in s.observing.serials]
        note = watched.note
        report = store_pb2.RolloutReport(
            began=self.began, gates=note.gates, waiting=note.waiting, behind=sorted(note.behind)
        )
        report.hosts.extend(sorted((self._host(watched, s) for s in sessions), key=lambda host: host.host_uid))
        report.counts.extend(self._counts(watched, sessions))
        for ident, place in sorted(watched.probes.items(), key=lambda item: item[1]):
            report.probes.append(_probe(ident, place, sessions))
        return report

    def _host(self, watched: _Watched, session: Session) -> store_pb2.RolloutHostReport:
        observing = session.observing
        said = store_pb2.RolloutHostReport(
            host_uid=session.host_uid,
            serial=observing.serials.get(watched.row.uid, 0),
            clock_offset_ns=observing.last.clock.offset_ns,
            clock_uncertainty_ns=observing.last.clock.uncertainty_ns,
        )
        for index, before in enumerate(watched.row.spec.run.networks):
            for epoch in observing.epochs.get(before.uid, ()):
                said.epochs.add(network=index, epoch=epoch.epoch, applied_at=epoch.applied_at, late=epoch.late)
        return said

    def _counts(self, watched: _Watched, sessions: list[Session]) -> Iterable[store_pb2.RolloutColorCount]:
        for index, before in enumerate(watched.row.spec.run.networks):
            uid = bytes.fromhex(before.uid)
            for number, color in sorted(self._colors(before.network).items()):
                opened, failed = watched.opened.get((index, color), (0, 0))
                now = (
                    c.connections
                    for s in sessions
                    for n in s.observing.last.networks
                    if n.network_uid == uid
                    for c in n.colors
                    if c.color == number
                )
                yield store_pb2.RolloutColorCount(
                    network=index, color=color, connections=sum(now), opened=opened, failed=failed
                )

    # ---- writing

    async def _write(self) -> None:
        keys, rows = self.store.keys, self.store.world.rollout_reports.rows
        for uid in list(self._leaving):
            if await self._send((), [delete(keys.rollout_report(uid, self.replica.id))]):
                self._leaving.discard(uid)
        for uid, watched in self._watched.items():
            value = self.report(uid).SerializeToString()
            if value == watched.written and (uid, self.replica.id) in rows:
                continue
            there = created(keys.intent(watched.row.name), watched.row.create_revision)
            write = put(keys.rollout_report(uid, self.replica.id), value, self.replica.lease_id)
            watched.written = value if await self._send([there], [write]) else b""

    async def _send(self, compares: Sequence[Compare], ops: Sequence[Op]) -> bool:
        """Whether the store has answered."""
        try:
            await self.store.etcd.txn(compares, ops)
        except StoreError as error:
            log.warning("report for a rollout not written", error=str(error))
            return False
        return True


def _probe(ident: int, place: Place, sessions: list[Session]) -> store_pb2.RolloutProbeReport:
    """One probe, all hosts together."""
    report = store_pb2.RolloutProbeReport(gate=place[0], network=place[1])
    for session in sessions:
        for probe in session.observing.last.probes:
            if probe.id == ident and probe.targets and probe.last_at:
                failures = session.observing.failures.get(ident, 0)
                report.asking += 1
                report.passing += not failures
                if failures > report.failures:
                    report.failures, report.text = failures, probe.text
    return report
