"""Who had which step when: taken from reports while it is so, and written once (`w/s/step/…`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import structlog

from controller.etcd import StoreError
from controller.etcd.types import Compare, absent, created, put
from controller.hosts import timestamp
from controller.names import split_of
from controller.rollouts.plan import RolloutSpec, State
from controller.rollouts.status import applied_at
from controller.rows import Intent
from controller.store import Store
from tealnet.store.v1 import store_pb2

log = structlog.get_logger()

_PATIENCE = 5.0  # seconds, for hosts that do not say when they had a step


class _Step:
    """One step that this leader has seen: the epochs of its splits, and who had them when."""

    def __init__(self, epochs: dict[int, int]) -> None:
        self.epochs = epochs
        self.written = timestamp()
        self.hosts: dict[str, int] = {}
        self.asked: set[str] = set()  # hosts in scope when all had it
        self.applied_since = 0.0
        self.is_written = False

    def follow(self, epochs: dict[int, int]) -> None:
        """Its splits have been written again: not all held it until its instant, or somebody went past the API."""
        if epochs != self.epochs and not self.is_written:
            self.epochs, self.hosts = epochs, {}

    @property
    def is_due(self) -> bool:
        """All have said when they had it, or have had time to."""
        if not self.applied_since or self.is_written:
            return False
        return self.hosts.keys() >= self.asked or time.monotonic() - self.applied_since >= _PATIENCE


class Record:
    """Of one rollout in one term."""

    def __init__(self, store: Store, term: Compare, row: Intent[RolloutSpec]) -> None:
        self.store, self.term, self.row = store, term, row
        self._steps: dict[int, _Step] = {}

    @property
    def is_complete(self) -> bool:
        """Nothing is left to write."""
        return all(step.is_written for step in self._steps.values())

    def take(
        self, row: Intent[RolloutSpec], reports: Mapping[str, store_pb2.RolloutReport], hosts: Callable[[], set[str]]
    ) -> None:
        """The rollout and the reports as they are now; `hosts` says which are in scope."""
        run, self.row = row.spec.run, row
        if run.state is State.SHIFTING and run.step not in self._steps:
            found = self._steps[run.step] = _Step(self._epochs(row))
            found.is_written = (row.uid, run.step) in self.store.world.rollout_steps.rows
        if run.state is State.SHIFTING:
            self._steps[run.step].follow(self._epochs(row))
        for number, step in self._steps.items():
            if step.is_written:
                continue
            for host, at in applied_at(reports.values(), step.epochs).items():
                step.hosts.setdefault(host, at)
            if not step.applied_since and (run.applied or number != run.step or run.is_over):
                step.applied_since, step.asked = time.monotonic(), hosts()

    def _epochs(self, row: Intent[RolloutSpec]) -> dict[int, int]:
        rows = self.store.world.splits.rows
        found = ((i, rows.get(split_of(network))) for i, network in enumerate(row.spec.plan.networks))
        return {i: split.mod_revision for i, split in found if split is not None}

    async def write(self) -> None:
        """What is due. It is for people only: what can't be written is tried again, and nothing waits for it."""
        store = self.store
        for number, step in self._steps.items():
            if not step.is_due:
                continue
            message = store_pb2.RolloutStepRow(revision=max(step.epochs.values(), default=0), written=step.written)
            for host, at in sorted(step.hosts.items()):
                message.hosts.add(host_uid=host, applied_at=at)
            key = store.keys.rollout_step(self.row.uid, number)
            there = created(store.keys.intent(self.row.name), self.row.create_revision)
            try:
                await store.etcd.txn([self.term, there, absent(key)], [put(key, message.SerializeToString())])
                step.is_written = True
            except StoreError as error:
                log.warning("step of a rollout not recorded yet", rollout=self.row.name, step=number, error=str(error))
                return
