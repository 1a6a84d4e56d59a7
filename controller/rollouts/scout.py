"""What the leader finds out for one rollout: who has what is written, and what the gates say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

import structlog

from controller.admission import FOREIGN_HISTORY
from controller.etcd import StoreError
from controller.names import short, split_of
from controller.rollouts.external import Answer, fetch, is_allowed
from controller.rollouts.gates import Counts, Evidence, Tally, judge
from controller.rollouts.machine import left
from controller.rollouts.plan import External, RolloutSpec, State
from controller.rollouts.transition import Applied, Judgement
from controller.rows import Intent
from controller.status import Status
from controller.store import Store
from controller.sync import Outcome, Subjects, Sync
from tealnet.store.v1 import store_pb2
from tealnet.v1 import port_pb2

log = structlog.get_logger()

_ASK = 1.0  # seconds that one question may take
_PAUSE = 0.25  # seconds between two
_AFTERCARE = 5.0  # … when it is over, and somebody is behind still
_ASKING = frozenset({State.VERIFYING, State.SHIFTING, State.DRAINING, State.CONFIRMING, State.PAUSED})


class Scout:
    """Of one rollout in one term. `jobs` run beside; `look` is told the row as it is."""

    def __init__(
        self,
        store: Store,
        sync: Sync,
        status: Status,
        row: Intent[RolloutSpec],
        *,
        urls: tuple[str, ...],
        pulse: Callable[[], None],
    ) -> None:
        self.store, self.sync, self.status, self.row = store, sync, status, row
        self.urls, self.pulse = urls, pulse
        self.reports: Mapping[str, store_pb2.RolloutReport] = {}  # by replica
        self._applied: tuple[int, Applied] | None = None  # revision asked for, answer
        self._changed = asyncio.Event()
        self._counts = Counts()
        self._targets: dict[str, list[tuple[str, str, str]]] = {}  # ports with state and reason, by network
        self._tallies = {i: Tally() for i, gate in enumerate(row.spec.plan.gates) if isinstance(gate, External)}

    def look(self, row: Intent[RolloutSpec]) -> None:
        """The row as it is in the tables."""
        if row.mod_revision != self.row.mod_revision:
            self.row = row
            self._changed.set()
        rows = self.store.world.rollout_reports.rows
        self.reports = {replica: report for (uid, replica), report in rows.items() if uid == row.uid}
        self._counts.take(row.spec.run.serial, row.spec.plan.target, self.reports)
        self._targets = self._ports()

    def jobs(self) -> list[Coroutine[Any, Any, None]]:
        """To be run until it is over."""
        externals = ((i, gate) for i, gate in enumerate(self.row.spec.plan.gates) if isinstance(gate, External))
        return [self._ask(), *(self._fetch(i, gate) for i, gate in externals)]

    @property
    def hosts(self) -> set[str]:
        """Uids of the hosts in scope that are in session."""
        return self.sync.hosts_in(self._domains()) & self.store.world.sessions.rows.keys()

    # ---- who has it

    @property
    def wants_applied(self) -> bool:
        """Whether something depends on who has what is written."""
        run = self.row.spec.run
        match run.state:
            case State.PREPARING | State.ROLLING_BACK:
                return True
            case State.SHIFTING | State.CONFIRMING:
                return not run.applied
            case State.DRAINING:
                return run.closing
            case State.SUCCEEDED | State.ROLLED_BACK:
                return not run.settled
        return False

    @property
    def applied(self) -> Applied | None:
        """Who does not have what this very row says; None: not known."""
        return self._applied[1] if self._applied and self._applied[0] == self.row.mod_revision else None

    async def _ask(self) -> None:
        while True:
            if not self.wants_applied:
                self._changed.clear()
                await self._changed.wait()
                continue
            row = self.row
            try:
                outcome = await self.sync.ask(
                    revision=row.mod_revision, domains=self._domains(), timeout=_ASK, about=self._about()
                )
                self._applied = row.mod_revision, self._who(outcome)
                self.pulse()
            except StoreError as error:
                log.warning("hosts not asked", rollout=row.name, error=str(error))
            pause = _AFTERCARE if row.spec.run.is_over else _PAUSE
            self._changed.clear()
            if self.row is row:
                await self._sleep(pause)

    async def _sleep(self, seconds: float) -> None:
        """Or until the row has changed."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass

    def _domains(self) -> frozenset[int]:
        of_network = self.sync.sessions.resources.of_hosts.domain_of_network.rows
        return frozenset(of_network[n] for n in self.row.spec.plan.networks if n in of_network)

    def _about(self) -> Subjects:
        """The step's keys: the weights of the networks, and the target's segments and endpoints."""
        weights = (f"weights/{before.uid}" for before in self.row.spec.run.networks)
        return frozenset([*weights, *(f"vni/{vni}" for vni in self._vnis())])

    def _vnis(self) -> Iterable[int]:
        for name in self.row.spec.plan.networks:
            if network := self.store.world.networks.rows.get(name):
                yield from (s.vni for s in network.spec.segments if s.color == self.row.spec.plan.target)

    def _who(self, outcome: Outcome) -> Applied:
        failing = {failed.host_uid for failed in outcome.failed}
        behind, silent, lost = {}, {}, {}
        for host in outcome.hosts - (outcome.synced - failing):
            if not self._owes(host, outcome.revision):
                continue
            if host in outcome.behind or host in failing:
                behind[host] = self._name(host)
            elif host in outcome.lost or self._state(host) == FOREIGN_HISTORY:
                lost[host] = self._name(host)
            else:
                silent[host] = self._name(host)
        return Applied(behind, silent, lost)

    def _owes(self, host_uid: str, revision: int) -> bool:
        """It may forward by older weights: it was in session once, and had a port in a domain at this revision.

        One that came later can't know of its port without the weights: a session is a consistent cut.
        """
        world = self.store.world
        status = world.host_status.rows.get(host_uid)
        if status is None or not status.instance_uid:
            return False
        if any(not row.acked for row in map(world.tombstones.rows.get, world.tombstones_by_host.keys(host_uid)) if row):
            return True
        holdings, domains = self.sync.sessions.resources.of_hosts, self._domains()
        for host in world.hosts_by_uid.keys(host_uid):
            for name in world.ports_by_host.keys(host):
                holding = holdings.holdings.rows.get(name)
                is_there = holding and holdings.domain_of_vni.rows.get(holding.vni) in domains
                if is_there and world.ports.rows[name].create_revision <= revision:
                    return True
        return False

    def _state(self, host_uid: str) -> str:
        row = self.store.world.host_status.rows.get(host_uid)
        return row.state if row else ""

    def _name(self, host_uid: str) -> str:
        return short(next(iter(self.store.world.hosts_by_uid.keys(host_uid)), host_uid))

    # ---- the target, and connections

    @property
    def has_targets(self) -> bool:
        """Every network has a port of the target that is bound to a host."""
        return all(any(port[1] != "UNBOUND" for port in ports) for ports in self._targets.values())

    def _ports(self) -> dict[str, list[tuple[str, str, str]]]:
        found: dict[str, list[tuple[str, str, str]]] = {}
        world = self.store.world
        for name in self.row.spec.plan.networks:
            network = world.networks.rows.get(name)
            segments = network.spec.segments if network else ()
            uids = [s.uid for s in segments if s.color == self.row.spec.plan.target]
            ports = sorted(port for uid in uids for port in world.ports_by_segment.keys(uid))
            found[name] = [(port, *self._port_state(port)) for port in ports]
        return found

    def _port_state(self, name: str) -> tuple[str, str]:
        status = self.status.port(name)
        return port_pb2.PortStatus.State.Name(status.state).removeprefix("STATE_"), status.reason

    def judge(self) -> tuple[Judgement, ...]:
        """All gates."""
        ports = [port for found in self._targets.values() for port in found]
        evidence = Evidence(ports=ports, reports=self.reports, counts=self._counts, tallies=self._tallies)
        return judge(self.row.spec.plan, self.row.spec.run, evidence)

    @property
    def open(self) -> int | None:
        """Connections to the colors that were left; None: not all hosts have said so since the last transition."""
        run = self.row.spec.run
        said = {host.host_uid for r in self.reports.values() for host in r.hosts if host.serial == run.serial}
        if run.state is not State.DRAINING or not self.sync.hosts_in(self._domains()) <= said:
            return None
        gone = left(self.row.spec.plan, run)
        return sum(c.connections for r in self.reports.values() for c in r.counts if c.color in gone)

    @property
    def unarmed(self) -> tuple[str, ...]:
        """Hosts that do not hold the step until its instant, or whose clock is too far off, or that say nothing."""
        run, plan = self.row.spec.run, self.row.spec.plan
        if not run.apply_at or run.applied:
            return ()
        hosts = {host.host_uid: host for report in self.reports.values() for host in report.hosts}
        in_scope = self.sync.hosts_in(self._domains())
        missing = [uid for uid in in_scope if not self._is_armed(hosts.get(uid), plan.max_offset)]
        return tuple(sorted(map(self._name, missing)))

    def _is_armed(self, said: store_pb2.RolloutHostReport | None, most: float) -> bool:
        if said is None or not said.clock_uncertainty_ns:
            return False
        if abs(said.clock_offset_ns) + said.clock_uncertainty_ns > most * 1e9:
            return False
        rows = self.store.world.splits.rows
        splits = ((i, rows.get(split_of(network))) for i, network in enumerate(self.row.spec.plan.networks))
        wanted = {(i, split.mod_revision) for i, split in splits if split is not None}
        return wanted <= {(epoch.network, epoch.epoch) for epoch in said.epochs}

    # ---- external gates

    async def _fetch(self, index: int, gate: External) -> None:
        """Ask as long as traffic may depend on it."""
        tally = self._tallies[index]
        while True:
            if self.row.spec.run.state in _ASKING:
                answer = await self._answer(gate)
                is_fine = gate.status.first <= answer.status <= gate.status.last
                tally.note(answer.text or ("" if is_fine else f"status {answer.status}"))
                self.pulse()
            await asyncio.sleep(gate.interval if self.row.spec.run.state in _ASKING else _PAUSE)

    async def _answer(self, gate: External) -> Answer:
        if not is_allowed(gate.url, self.urls):  # the setting may have changed since
            return Answer(0, "this site does not allow it any more")
        return await fetch(gate.url, gate.timeout)
