"""Runs the rollouts of one term: observes, decides by the machine, and writes one transition after the other.

Everything it knows it finds anew when a term begins; every write compares the term, the rollout and its splits, so one
whose term is over, or that slept, changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from controller.commit import Committer
from controller.draft import Draft
from controller.errors import ApiError
from controller.etcd import StoreError
from controller.etcd.types import Compare
from controller.events import Events
from controller.intents.rollout import carry_out, shares_of, splits_of
from controller.names import split_of
from controller.rollouts.clock import Clock
from controller.rollouts.machine import decide
from controller.rollouts.observer import LINGER, Note, Observer
from controller.rollouts.plan import RolloutSpec, Shares
from controller.rollouts.record import Record
from controller.rollouts.scout import Scout
from controller.rollouts.transition import QUIET, Key, Seen, Transition, Verdict
from controller.rows import Intent
from controller.status import Status
from controller.store import Change, Store
from controller.sync import Sync
from tealnet.v1 import rollout_pb2

log = structlog.get_logger()

_TICK = 0.25  # seconds
_AFTER_BUG = 10.0  # seconds
_AGAIN = 0.5  # seconds until a write that failed is tried again
_TABLES = frozenset({"rollouts", "splits", "confirmations", "rollout_reports"})
"""What is acted on at once; all else at the next tick."""
_RESULTS = {
    Verdict.PASS: rollout_pb2.GateStatus.RESULT_PASS,
    Verdict.FAIL: rollout_pb2.GateStatus.RESULT_FAIL,
    Verdict.INCONCLUSIVE: rollout_pb2.GateStatus.RESULT_INCONCLUSIVE,
}


class _Stale(Exception):
    """What was decided on is not so any more, or the term is over."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a leader needs."""

    store: Store
    sync: Sync
    status: Status
    events: Events
    committer: Committer
    observer: Observer
    urls: tuple[str, ...]  # that external gates may ask


class Leader:
    """Of one term. `follow` is subscribed to the store, `run` lives as long as the term."""

    def __init__(self, tools: Tools, term: Compare) -> None:
        self.tools, self.term = tools, term
        self._running: dict[str, _Conduct] = {}  # by uid
        self._new = asyncio.Event()
        self._new.set()

    def follow(self, _: int, changes: list[Change]) -> None:
        """Something that may move a rollout."""
        tables = {change.table for change in changes}
        if "rollouts" in tables:
            self._new.set()
        if tables & _TABLES:
            for conduct in self._running.values():
                conduct.wake.set()

    async def run(self) -> None:
        """One task per rollout that is not done."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._new.wait()
                self._new.clear()
                for row in self.tools.store.world.rollouts.rows.values():
                    if not row.spec.run.is_done and row.uid not in self._running:
                        conduct = _Conduct(self.tools, self.term, row)
                        self._running[row.uid] = conduct
                        task = group.create_task(conduct.run())
                        task.add_done_callback(lambda _, uid=row.uid: self._forget(uid))  # type: ignore[misc]

    def _forget(self, uid: str) -> None:
        self._running.pop(uid, None)
        self._new.set()


class _Conduct:
    """Of one rollout in one term."""

    def __init__(self, tools: Tools, term: Compare, row: Intent[RolloutSpec]) -> None:
        self.tools, self.store, self.term = tools, tools.store, term
        self.name, self.uid = row.name, row.uid
        self.wake = asyncio.Event()
        self.clock = Clock()
        self.scout = Scout(tools.store, tools.sync, tools.status, row, urls=tools.urls, pulse=self.wake.set)
        self.record = Record(tools.store, term, row)

    @property
    def row(self) -> Intent[RolloutSpec] | None:
        """As it is in the tables; None: deleted."""
        row = self.store.world.rollouts.rows.get(self.name)
        return row if row and row.uid == self.uid else None

    async def run(self) -> None:
        """Until it is done, or deleted. What goes wrong with one rollout is no harm to others."""
        while True:
            try:
                await self._run_with_scout()
                return
            except* Exception as errors:
                log.exception("rollout not run, trying again", rollout=self.name, errors=errors.exceptions)
                text = f"this is a bug of the controller: {errors.exceptions[0]!r}"
                self.tools.observer.note(self.uid, Note(waiting=text))
            await asyncio.sleep(_AFTER_BUG)

    async def _run_with_scout(self) -> None:
        async with asyncio.TaskGroup() as group:
            scouting = [group.create_task(job) for job in self.scout.jobs()]
            try:
                await self._run()
            finally:
                self.tools.observer.note(self.uid, Note())
                for job in scouting:
                    job.cancel()

    async def _run(self) -> None:
        done_at = 0.0
        while (row := self.row) is not None:
            self.wake.clear()
            self.scout.look(row)
            self.record.take(row, self.scout.reports, lambda: self.scout.hosts)
            seen = self._seen(row)
            if transition := decide(row.spec.plan, row.spec.run, seen):
                await self._commit(row, transition, seen)
                continue
            self._note(row, seen)
            await self.record.write()
            if row.spec.run.is_done:
                done_at = done_at or time.monotonic()
                if self.record.is_complete or time.monotonic() - done_at >= LINGER:
                    return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK):
                    await self.wake.wait()

    def _seen(self, row: Intent[RolloutSpec]) -> Seen:
        run = row.spec.run
        elapsed, total = self.clock.read(run, time.monotonic())
        return Seen(
            elapsed=elapsed,
            total=total,
            wall=time.time_ns(),
            shares=self._shares(row),
            applied=self.scout.applied,
            gates=self.scout.judge(),
            targets=self.scout.has_targets,
            confirm=self.uid in self.store.world.confirmations.rows,
            open=self.scout.open,
            unarmed=self.scout.unarmed,
        )

    def _shares(self, row: Intent[RolloutSpec]) -> Mapping[str, Shares]:
        rows = self.store.world.splits.rows
        found = ((before.network, rows.get(split_of(before.network))) for before in row.spec.run.networks)
        return {network: shares_of(split) for network, split in found if split is not None}

    # ---- writing

    async def _commit(self, row: Intent[RolloutSpec], transition: Transition, seen: Seen) -> None:
        """One transaction; whatever comes of it, the tables say what is so now."""
        try:
            lease = 0
            if transition.key is Key.PUT:
                # Nobody renews it: when it ends, so does the time to confirm. It began with the state, before this.
                lease = await self.store.etcd.grant(math.ceil(row.spec.plan.confirm_within))
            build = await self._builder(row, transition, seen, lease)
            await self.tools.committer.commit(build)
        except _Stale:
            await asyncio.sleep(0)
            return
        except (ApiError, StoreError) as error:
            log.warning("rollout not moved yet", rollout=self.name, to=transition.run.state.value, error=str(error))
            await asyncio.sleep(_AGAIN)
            return
        log.info(
            "rollout moved", rollout=self.name, state=transition.run.state.value, step=transition.run.step,
            reason=transition.reason.value, text=transition.text,
        )  # fmt: skip

    async def _builder(
        self, row: Intent[RolloutSpec], transition: Transition, seen: Seen, lease: int
    ) -> Callable[[Draft], None]:
        events = None if transition.reason in QUIET else await self.tools.events.lease()

        def build(draft: Draft) -> None:
            term = self.store.world.terms.rows.get("chores")
            if term is None or term.create_revision != self.term.operand:
                raise _Stale
            draft.reading.checks[self.term.key] = self.term
            now = draft.reading.row("rollout", self.name)
            if now is None or now.mod_revision != row.mod_revision:
                raise _Stale
            found = {network: shares_of(split) for network, split in splits_of(draft, row.spec.run).items()}
            if found != seen.shares:
                raise _Stale
            carry_out(draft, now, transition, actor="", lease=lease)
            if events is not None:
                reason, text = transition.reason.value, f"{transition.run.state.value}: {transition.text}"
                event = self.tools.events.row(events, name=self.name, uid=self.uid, reason=reason, text=text, actor="")
                draft.add(event)

        return build

    # ---- telling

    def _note(self, row: Intent[RolloutSpec], seen: Seen) -> None:
        """For whoever watches."""
        gates = tuple(
            rollout_pb2.GateStatus(gate=j.gate, result=_RESULTS[j.verdict], text=j.text)
            for j in (() if row.spec.run.is_over else seen.gates)
        )
        behind = seen.applied
        uids = (*behind.behind, *behind.silent, *behind.lost) if behind else ()
        self.tools.observer.note(self.uid, Note(gates, self._waiting(row, seen), tuple(sorted(uids))))

    def _waiting(self, row: Intent[RolloutSpec], seen: Seen) -> str:
        run, plan = row.spec.run, row.spec.plan
        if self.scout.wants_applied:
            names = ", ".join(seen.applied.names) if seen.applied else "the hosts"
            return f"waits for {names}" if names else ""
        waits = [f"{j.gate}: {j.text}" for j in seen.gates if j.verdict is Verdict.INCONCLUSIVE]
        match run.state.value:
            case "SHIFTING" if (left := plan.steps[run.step - 1].hold - seen.elapsed) > 0:
                return f"holds for {left:.0f} s more"
            case "SHIFTING" | "VERIFYING" if waits:
                return f"waits for {'; '.join(waits)}"
            case "DRAINING":
                count = "" if seen.open is None else f" ({seen.open} open)"
                return f"waits for connections to end{count}, {max(0.0, plan.drain_timeout - seen.elapsed):.0f} s more"
            case "CONFIRMING":
                return "waits to be confirmed"
            case "PAUSED":
                return "waits to be resumed"
        return ""
