"""The stream of one host: what it is owed goes out in units, what it says comes in.

    Hello → admission → Welcome → (versions of scopes that differ) → units ⇄ Taken, Ack · pings both ways

A task per direction; nothing is queued but keys (`Outbox`). The session ends when anything ends it, and it can always
end: the agent keeps what it has and comes back.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from itertools import chain

import structlog

from controller.admission import Admitted, Refusal
from controller.etcd import LeaseNotFound, StoreError
from controller.etcd.types import absent, put, value_is
from controller.line import Line
from controller.metrics import Metrics
from controller.observing import Observing
from controller.outbox import Outbox
from controller.replica import Replica
from controller.report import Report
from controller.resources import Resources
from controller.rule_counts import RuleCounts
from controller.store import Store
from controller.turns import Turns
from tealnet.agent.v1 import agent_pb2 as pb

log = structlog.get_logger()

PING = 0.5  # seconds
SILENCE = 1.5  # seconds
_REPORTS = 5  # seconds that a host goes on telling of its rules when it was asked
Look = asyncio.Future[dict[str, bytes]]
"""Versions by key."""
FEATURES = ("l2", "router", "colors", "security")


class SessionOver(Exception):
    """The session ends; `reason` is for logs, `refusal` is told to the agent."""

    def __init__(self, reason: str, refusal: Refusal | None = None) -> None:
        super().__init__(reason)
        self.reason, self.refusal = reason, refusal


class Session:
    """A live session. `changed` and the like are called between two settled states; `run` does the rest."""

    def __init__(
        self,
        *,
        store: Store,
        resources: Resources,
        replica: Replica,
        metrics: Metrics,
        admitted: Admitted,
        hello: pb.Hello,
        line: Line,
        progressed: Callable[[], None],
        turns: Turns,
        denied: Callable[[str, pb.RuleReport], None],
    ) -> None:
        self.turns = turns
        self.store, self.resources, self.replica, self.metrics = store, resources, replica, metrics
        self.admitted, self.hello, self._line = admitted, hello, line
        self.host_uid, self.name = admitted.host.uid, admitted.name
        self.key_value = admitted.session
        self.outbox = Outbox(resources, self.host_uid)
        self.report = Report(store, host_uid=self.host_uid, session=self.key_value, progressed=progressed)
        self.rules, self.observing = RuleCounts(), Observing()
        self._progressed, self._denied = progressed, denied
        self.unaccounted: list[str] = []
        self._noted = False  # … and that was to be written
        self._facts: pb.Facts | None = None  # as last told
        self._asked: set[str] = set()  # scopes whose versions are awaited
        self._looks: dict[str, deque[Look]] = {}  # by scope, in the order of asking: somebody only looks
        self._unsent: list[str] = []  # scopes to ask versions of, for those who look
        self._asks_rules = False
        self._wake = asyncio.Event()
        self._over: SessionOver | None = None
        self._ended = asyncio.Event()
        self._heard = time.monotonic()
        self._echo = (0, 0)  # the agent's clock in its last ping, ours when it came: Unix time in ns
        self._tombstones = asyncio.Event()

    # ---- from the tables

    @property
    def synced(self) -> int:
        """Everything up to this revision is on the host's devices, or failed there."""
        return self.outbox.synced(self.store.revision)

    def begin(self) -> None:
        """Compare scopes with Hello's digests; from now on changes are marked."""
        told = {scope.scope: scope for scope in self.hello.scopes}
        wanted = self.resources.scopes_of(self.host_uid)
        self.outbox.owe(1)  # a first unit in any case: only its Ack says that what the host knows is on its devices
        for name in wanted:
            digest = self.resources.scope(name).digest(self.on_wire(name))
            theirs = told.pop(self.on_wire(name), None)
            if theirs is None:
                self.outbox.mark_whole(1, name)
            elif (theirs.digest, theirs.count) == (digest.digest, digest.count):
                self.outbox.scopes.add(name)
            else:
                self.outbox.scopes.add(name)
                self._asked.add(name)
        for name in told:
            self.outbox.drop(1, name)
        self._wake.set()

    def changed(self, revision: int, scope: str, keys: set[str]) -> None:
        """Keys of a scope are not what they were before `revision`."""
        self.outbox.mark(revision, scope, keys)
        self._wake.set()

    def hurry(self) -> None:
        """What has changed moves traffic: it is sent before what others are owed."""
        self.outbox.is_urgent = True
        self.turns.hurry(self)

    def rescoped(self, revision: int) -> tuple[set[str], set[str]]:
        """The host has other scopes now; returns those that came and those that went."""
        wanted = self.resources.scopes_of(self.host_uid)
        came, went = wanted - self.outbox.scopes, self.outbox.scopes - wanted
        for name in came:
            self.outbox.mark_whole(revision, name)
        for name in went:
            self._asked.discard(name)
            self.outbox.drop(revision, name)
        if came or went:
            self._wake.set()
        return came, went

    def accepted(self, revision: int) -> None:
        """The host's status row changed: an admin may have let unaccounted ports go."""
        row = self.store.world.host_status.rows.get(self.host_uid)
        if row is None or not row.accepted or row.accepted == self.outbox.accepted or not row.unaccounted:
            return
        self.outbox.accepted = row.accepted
        self.outbox.forgiven = {key.removeprefix("localport/") for key in row.unaccounted}
        gone = set(row.unaccounted) - self.resources.scope(self.outbox.own).chunks.keys()
        self.changed(revision, self.outbox.own, gone)

    def tombstones_changed(self) -> None:
        """There may be something to mark as carried out."""
        self._tombstones.set()

    def ask_rules(self) -> None:
        """Have the host tell what its rules have counted: `rules.wholes` grows when it has."""
        self._asks_rules = True
        self._wake.set()

    def end(self, reason: str, refusal: Refusal | None = None) -> None:
        """End the session soon."""
        if self._over is None:
            self._over = SessionOver(reason, refusal)
            self._ended.set()

    def on_wire(self, scope: str) -> str:
        """The stream's name of a scope."""
        return "host" if scope == self.outbox.own else scope

    # ---- the stream

    async def run(self) -> None:
        """Serve until the session is over; raises SessionOver (in a group) with the reason."""
        host = self.admitted.host.spec
        number, lineage = self.store.lineage
        welcome = pb.Welcome(
            cluster_uid=self.store.keys.cluster_uid,
            lineage=pb.Lineage(number=number, id=lineage),
            replica=self.replica.id,
            host_uid=self.host_uid,
            host_number=host.number,
            vtep=str(self.admitted.vtep),
            features=FEATURES,
        )
        await self.send(pb.ToAgent(welcome=welcome).SerializeToString())
        for name in sorted(self._asked):
            await self.send(pb.ToAgent(want_versions=pb.WantVersions(scope=self.on_wire(name))).SerializeToString())
        try:
            async with asyncio.TaskGroup() as group:
                for job in (
                    self._read,
                    self._write,
                    self._ping,
                    self._report,
                    self._mark_removed,
                    self._observe,
                    self._end,
                ):
                    group.create_task(job())
        finally:
            for look in chain.from_iterable(self._looks.values()):
                look.cancel()

    async def send(self, message: bytes) -> None:
        """Write one encoded ToAgent."""
        await self._line.write(message)

    async def _end(self) -> None:
        await self._ended.wait()
        assert self._over is not None
        raise self._over

    async def _report(self) -> None:
        await self.report.run()
        raise SessionOver("replaced", Refusal("Replaced", "this host has a newer session"))

    async def _observe(self) -> None:
        while True:
            await self.observing.wake.wait()
            await self.send(self.observing.message())

    async def _ping(self) -> None:
        number = 0
        while True:
            number += 1
            sent_at, received_at = self._echo
            ping = pb.Ping(number=number, sent_at=time.time_ns(), echo_sent_at=sent_at, echo_received_at=received_at)
            await self.send(pb.ToAgent(ping=ping).SerializeToString())
            slept = time.monotonic()
            await asyncio.sleep(PING)
            # When this process itself stood still, the silence is ours: listen again first.
            if (late := time.monotonic() - slept - PING) > PING:
                self._heard += late
            if time.monotonic() - self._heard > SILENCE:
                raise SessionOver("silent")

    @property
    def _is_ready(self) -> bool:
        """A unit is to be cut. A host that was just fenced is not told that its ports are gone."""
        return not self._over and not self._asked and self.outbox.is_due

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._asks_rules:
                self._asks_rules = False
                await self.send(pb.ToAgent(want_rule_report=pb.WantRuleReport(seconds=_REPORTS)).SerializeToString())
            while self._unsent:
                wanted = pb.WantVersions(scope=self.on_wire(self._unsent.pop(0)))
                await self.send(pb.ToAgent(want_versions=wanted).SerializeToString())
            if not self._is_ready:
                continue
            if not self.outbox.is_urgent:
                await self.turns.take(self)
            if not self._is_ready:
                continue
            unit = self.outbox.cut(self.store.revision, self.store.lineage)
            self.metrics.units.inc()
            for part in unit.parts:
                self.metrics.sent.inc(len(part))
                await self.send(part)
            unit.parts.clear()

    async def _read(self) -> None:
        while True:
            if (message := await self._line.read()) is None:
                raise SessionOver("closed by the agent")
            self._heard = time.monotonic()
            match message.WhichOneof("message"):
                case "versions":
                    self._on_versions(message.versions)
                case "taken":
                    self._on_taken(message.taken)
                case "ack":
                    await self._on_ack(message.ack)
                case "facts":
                    self._facts = message.facts
                    await self.report.note_facts(message.facts)
                case "rule_report":
                    self._on_rules(message.rule_report)
                case "observed":
                    self.observing.heard(message.observed)
                case "ping":
                    self._echo = message.ping.sent_at, time.time_ns()
                case None:
                    pass  # a message of a later version
                case other:
                    raise SessionOver("protocol", Refusal("Protocol", f"unexpected message: {other}"))

    def versions_of(self, scope: str) -> Look:
        """What the host says from now on that it has of a scope; cancelled when the session ends."""
        look: Look = asyncio.get_running_loop().create_future()
        self._looks.setdefault(scope, deque()).append(look)
        self._unsent.append(scope)
        self._wake.set()
        return look

    def _on_versions(self, versions: pb.Versions) -> None:
        name = self.outbox.own if versions.scope == "host" else versions.scope
        if name not in self._asked:  # dropped meanwhile, or never asked, or by somebody who looks
            if (looks := self._looks.get(name)) and not (look := looks.popleft()).done():
                look.set_result({v.key: v.version for v in versions.versions})
            return
        self._asked.discard(name)
        self.outbox.compare(1, name, {v.key: v.version for v in versions.versions})
        self._wake.set()

    def _on_taken(self, taken: pb.Taken) -> None:
        self.outbox.taken(taken.unit)
        for scope in taken.mismatched:
            name = self.outbox.own if scope == "host" else scope
            if name in self.outbox.scopes:
                self.metrics.mismatches.inc()
                log.error("digest mismatch, sending the scope whole", host=self.name, scope=scope)
                self.outbox.mark_whole(1, name)
        self._wake.set()

    async def _on_ack(self, ack: pb.Ack) -> None:
        units, failures = self.outbox.acked(ack.revision), self.report.failures
        self.report.acked(units, ack)
        if units or failures != self.report.failures:
            self._tombstones.set()
        self._progressed()
        unaccounted = sorted(ack.unaccounted)
        if unaccounted != self.unaccounted or (units and self._forgotten(unaccounted)):
            self.unaccounted, self._noted = unaccounted, True
            await self.report.note_unaccounted(unaccounted)

    def _on_rules(self, report: pb.RuleReport) -> None:
        self.rules.take(report)
        self._denied(self.admitted.host.name, report)
        self._progressed()

    def _forgotten(self, unaccounted: list[str]) -> bool:
        row = self.store.world.host_status.rows.get(self.host_uid)
        return sorted(row.unaccounted if row else ()) != unaccounted

    async def _mark_removed(self) -> None:
        while True:
            await self._tombstones.wait()
            self._tombstones.clear()
            try:
                await self.report.note_removed(self.synced)
            except StoreError as error:
                log.warning("removals not noted yet", host=self.name, error=str(error))
                await asyncio.sleep(1)
                self._tombstones.set()

    async def reclaim(self) -> None:
        """Write the session key again: it went, with its lease or by somebody's hand, and the session did not."""
        key = self.store.keys.session(self.host_uid)
        write = put(key, self.key_value, self.replica.lease_id)
        try:
            result = await self.store.etcd.txn([absent(key)], [write])
            if not result.succeeded:
                result = await self.store.etcd.txn([value_is(key, self.key_value)], [write])
        except LeaseNotFound:
            return  # the replica does not know yet that it needs a new one: then this is done again
        except StoreError as error:
            self.end(f"session key not written: {error}")
            return
        if not result.succeeded:
            self.end("replaced", Refusal("Replaced", "this host has a newer session"))
            return
        # What was to be written on condition of the key while it was not there is written now.
        self._tombstones.set()
        try:
            if self._facts is not None:
                await self.report.note_facts(self._facts)
            if self._noted:
                await self.report.note_unaccounted(self.unaccounted)
        except StoreError as error:
            self.end(f"host's row not written: {error}")
