"""A rollout as a caller sees it: its run, its history, and what hosts and the leader report of it now. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from controller.names import split_of
from controller.rollouts.messages import state_number
from controller.rollouts.plan import RolloutSpec, Run, State
from controller.rows import Intent
from controller.world import World
from tealnet.store.v1 import store_pb2
from tealnet.v1 import common_pb2, rollout_pb2


class RolloutStatus:
    """Of one row at one moment."""

    def __init__(self, world: World, row: Intent[RolloutSpec]) -> None:
        self.world, self.row, self.run, self.plan = world, row, row.spec.run, row.spec.plan
        self.reports = [report for (uid, _), report in world.rollout_reports.rows.items() if uid == row.uid]
        term = world.terms.rows.get("chores")
        self.leader = world.rollout_reports.rows.get((row.uid, term.replica)) if term else None

    def fill(self, message: rollout_pb2.Rollout) -> None:
        """Everything that only the server says."""
        run = self.run
        message.state, message.step, message.reason, message.text = (
            state_number(run.state),
            run.step,
            run.reason,
            run.text,
        )
        stored = store_pb2.Stored.FromString(self.row.stored)
        message.history.extend(stored.issued.run.history)
        status = message.status
        status.networks.extend(map(self._network, range(len(self.plan.networks))))
        status.steps.extend(self._steps(stored.issued.run))
        status.hosts.extend(self._hosts())
        if self.leader:
            status.gates.extend(self.leader.gates)
            status.waiting = self.leader.waiting
            status.behind.extend(sorted(map(self._name, self.leader.behind)))
        status.conditions.extend(_conditions(run, list(status.behind) or sorted(map(self._name, run.without))))

    def _network(self, index: int) -> rollout_pb2.NetworkShares:
        name = self.plan.networks[index]
        shown = rollout_pb2.NetworkShares(network=name)
        network, split = self.world.networks.rows.get(name), self.world.splits.rows.get(split_of(name))
        if network is None or split is None:
            return shown
        shown.epoch = split.mod_revision
        weights = dict(split.spec.weights)
        for color in network.spec.colors:
            counts = [c for r in self.reports for c in r.counts if (c.network, c.color) == (index, color)]
            shown.colors.add(
                color=color,
                weight=weights.get(color, 0),
                connections=sum(c.connections for c in counts),
                opened=sum(c.opened for c in counts),
                failed=sum(c.failed for c in counts),
            )
        return shown

    # ---- steps

    def _steps(self, stored: store_pb2.RolloutRun) -> Iterable[rollout_pb2.StepStatus]:
        for step in range(1, self.run.step + 1):
            row = self.world.rollout_steps.rows.get((self.row.uid, step))
            written = next((entry.time for entry in stored.history if entry.step == step), None)
            if row is not None:
                yield self._step(step, row)
            elif step == self.run.step and self.run.state in (State.SHIFTING, State.PAUSED):
                shown = rollout_pb2.StepStatus(step=step, revision=self._epoch())
                found = applied_at(self.reports, self._epochs())
                hosts = (rollout_pb2.HostApplied(host=self._name(h), time=_moment(at)) for h, at in found.items())
                shown.hosts.extend(sorted(hosts, key=lambda host: host.host))
                if written:
                    shown.written.CopyFrom(written)
                yield shown
            else:
                yield rollout_pb2.StepStatus(step=step, written=written)

    def _step(self, step: int, row: store_pb2.RolloutStepRow) -> rollout_pb2.StepStatus:
        shown = rollout_pb2.StepStatus(step=step, revision=row.revision, written=row.written)
        times = [host.applied_at for host in row.hosts]
        hosts = (rollout_pb2.HostApplied(host=self._name(h.host_uid), time=_moment(h.applied_at)) for h in row.hosts)
        shown.hosts.extend(sorted(hosts, key=lambda host: host.host))
        if times:
            shown.first_applied.CopyFrom(_moment(min(times)))
            shown.last_applied.CopyFrom(_moment(max(times)))
            skew = Duration()
            skew.FromNanoseconds(max(times) - min(times))
            shown.skew.CopyFrom(skew)
        return shown

    def _epochs(self) -> dict[int, int]:
        rows = self.world.splits.rows
        found = ((i, rows.get(split_of(name))) for i, name in enumerate(self.plan.networks))
        return {i: row.mod_revision for i, row in found if row is not None}

    def _epoch(self) -> int:
        return max(self._epochs().values(), default=0)

    # ---- hosts

    def _hosts(self) -> list[rollout_pb2.RolloutHost]:
        hosts = (self._host(host) for report in self.reports for host in report.hosts)
        return sorted(hosts, key=lambda host: host.host)

    def _host(self, said: store_pb2.RolloutHostReport) -> rollout_pb2.RolloutHost:
        newest: dict[int, store_pb2.RolloutEpoch] = {}
        for epoch in said.epochs:
            if epoch.applied_at:
                newest[epoch.network] = epoch
        oldest = min(newest.values(), key=lambda epoch: epoch.epoch, default=store_pb2.RolloutEpoch())
        shown = rollout_pb2.RolloutHost(host=self._name(said.host_uid), epoch=oldest.epoch)
        shown.armed = any(not epoch.applied_at for epoch in said.epochs)
        if oldest.applied_at:
            shown.applied.CopyFrom(_moment(oldest.applied_at))
        if said.clock_uncertainty_ns:
            shown.clock_offset.FromNanoseconds(said.clock_offset_ns)
        return shown

    def _name(self, uid: str) -> str:
        return next(iter(self.world.hosts_by_uid.keys(uid)), uid)


def applied_at(reports: Iterable[store_pb2.RolloutReport], epochs: dict[int, int]) -> dict[str, int]:
    """When each host had these epochs (by the network's index) all: Unix time in ns, by host uid."""
    found = {}
    for report in reports:
        for host in report.hosts:
            times = {e.network: e.applied_at for e in host.epochs if e.applied_at and epochs.get(e.network) == e.epoch}
            if times and all(i in times for i in {e.network for e in host.epochs}):
                found[host.host_uid] = max(times.values())
    return found


def _moment(nanoseconds: int) -> Timestamp:
    moment = Timestamp()
    moment.FromNanoseconds(nanoseconds)
    return moment


def _conditions(run: Run, behind: list[str]) -> Iterable[common_pb2.Condition]:
    if not run.is_over or run.settled:
        return
    names = ", ".join(behind) or "not known yet"
    remedy = "`teal host fence HOST` if a host is gone for good"
    if run.state is State.SUCCEEDED and run.without:
        text = f"hosts that may still send by the old weights: {names}; until then the old colors cannot be taken out"
        yield common_pb2.Condition(type="SucceededWithSplit", text=text, remedy=remedy)
    elif behind:
        text = f"hosts that do not have the final weights yet: {names}"
        yield common_pb2.Condition(type="HostsBehind", text=text, remedy=remedy)
