"""Where the parts of the agent meet: resources into inputs, progress into Acks.

stream → resources → checkpoint → inputs → reconcile → devices
stream ←─────────── Ack, Facts ←─────────── applied, conditions
"""

from __future__ import annotations

import asyncio
import math
import platform
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from typing import Protocol

import structlog

from agent.checkpoint import Checkpoint
from agent.drivers.base import Failure
from agent.inputs import THIS, Inputs, This
from agent.reconcile import Applied, Reconciler
from agent.resources import FEATURES, Origin, Resources
from agent.stream import SessionOver, Unit
from agent.uncached import Uncached
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.stream import Row

log = structlog.get_logger()

EARLY = 0.3  # seconds before an instant at which several networks change are prepared for it
AWAKE = 0.005  # … from which on nobody sleeps
WRITE_AGAIN = 1.0  # seconds until a checkpoint that could not be written is tried again
LOOK_AGAIN = 1.0  # seconds: the clock may be set while something is held


def agent_version() -> str:
    """The version of the installed package."""
    try:
        return version("tealnet")
    except PackageNotFoundError:
        return "0"


@dataclass(frozen=True, slots=True)
class Local:
    """What this machine's own settings say, and what it is."""

    instance_uid: str
    boot_id: str
    vtep: str
    datapath: str  # "netdev" or "system"
    bridge: str
    tunnel: str
    tunnel_ofport: int
    tunnel_port: int
    zone_limit: int = 20_000


@dataclass(frozen=True, slots=True, order=True)
class Condition:
    """A lasting remark on this host, with what to do about it."""

    type: str
    text: str
    remedy: str = ""


class Sender(Protocol):
    """The way to the controller (`agent.stream.Stream`)."""

    def send(self, name: str, message: pb.FromAgent) -> None:
        """Tell it, if there is a session."""
        ...


class Core:
    """Implements `agent.stream.Core`. `issue` gives numbers to new local ports before anything is derived from them."""

    def __init__(
        self,
        *,
        local: Local,
        resources: Resources,
        checkpoint: Checkpoint,
        inputs: Inputs,
        reconciler: Reconciler,
        issue: Callable[[], None],
    ) -> None:
        self.local, self.resources, self.checkpoint = local, resources, checkpoint
        self.sender: Sender | None = None
        self.on_resources: Callable[[], None] = lambda: None
        self.on_observe: Callable[[pb.Observe | None], None] = lambda wanted: None
        self.on_want_rules: Callable[[pb.WantRuleReport | None], None] = lambda wanted: None
        self.on_armed: Callable[[], None] = lambda: None
        self.on_progress: Callable[[], None] = lambda: None
        # What an Ack waits for beside the devices.
        self.before_ack: list[Callable[[], Awaitable[None]]] = [checkpoint.durable]
        self.more_failures: Callable[[], Mapping[str, Failure]] = dict
        self.server = ""  # in session with
        self.problem: SessionOver | None = None
        self.mismatches = 0  # digests that did not match; a bug if not 0
        self.uncached = Uncached(inputs, reconciler)
        self._inputs, self._reconciler, self._issue = inputs, reconciler, issue
        self._facts = pb.Facts()
        self._ack: pb.Ack | None = None
        self._placed: dict[str, str] | None = None  # port uid → device as told in this session; None: nothing yet
        self._whole = False  # the inputs are a complete cut of the resources
        self._progress = asyncio.Event()
        self._armed = asyncio.Event()  # what is held may have changed
        reconciler.on_progress = self.progressed

    def progressed(self) -> None:
        """More may be true than was said."""
        self._progress.set()
        self.uncached.kick()
        self.on_progress()

    # -- beginning

    def restore(self) -> None:
        """Start from the checkpoint: it is what was wanted last, whether a controller answers or not."""
        records = self.checkpoint.load()
        self._put(self.resources.load(records))
        self._whole = self.resources.complete
        if records:
            resources = self.resources
            log.info("started from the checkpoint", revision=resources.revision, resources=len(resources))
        self._describe()

    def ready(self) -> bool:
        """The inputs are whole: a complete cut of resources, and who we are. Nothing is touched before."""
        return self._whole and bool(self._inputs.this.rows)

    def _describe(self) -> None:
        origin, local = self.resources.origin, self.local
        if not origin.host_uid or not origin.vtep:
            return
        this = This(
            host_uid=origin.host_uid,
            host_number=origin.host_number,
            vtep=ip_address(origin.vtep),
            datapath=local.datapath,
            bridge=local.bridge,
            tunnel=local.tunnel,
            tunnel_ofport=local.tunnel_ofport,
            tunnel_port=local.tunnel_port,
            zone_limit=local.zone_limit,
        )
        self._inputs.this.put(THIS, this)
        self._reconciler.take(self.resources.revision)
        self._reconciler.kick()

    # -- the stream's side

    def hello(self) -> pb.Hello:
        """See `agent.stream.Core`."""
        resources, origin = self.resources, self.resources.origin
        return pb.Hello(
            cluster_uid=origin.cluster_uid,
            lineage=pb.Lineage(number=origin.lineage_number, id=origin.lineage_id),
            revision=resources.revision,
            instance_uid=self.local.instance_uid,
            boot_id=self.local.boot_id,
            agent_version=agent_version(),
            features=sorted(FEATURES),
            vtep=self.local.vtep,
            scopes=[
                pb.ScopeDigest(scope=name, digest=digest.bytes(), count=digest.count)
                for name, digest in sorted(resources.digests().items())
            ],
        )

    async def greeted(self, welcome: pb.Welcome) -> None:
        """See `agent.stream.Core`."""
        old = self.resources.origin
        try:
            ip_address(welcome.vtep)
        except ValueError as error:
            raise SessionOver("ProtocolError", f"welcome: {error}") from error
        lineage = welcome.lineage if welcome.lineage.id else pb.Lineage(number=old.lineage_number, id=old.lineage_id)
        origin = Origin(
            cluster_uid=welcome.cluster_uid,
            lineage_number=lineage.number,
            lineage_id=lineage.id,
            host_uid=welcome.host_uid,
            host_number=welcome.host_number,
            vtep=welcome.vtep,
        )
        if old.cluster_uid and origin.cluster_uid != old.cluster_uid:
            log.warning("an admin has given this host to another cluster", old=old.cluster_uid, new=origin.cluster_uid)
        if origin != old:
            await self.checkpoint.save(self.resources.greet(origin), snapshot=self.resources.snapshot)
            self._describe()

    async def take(self, unit: Unit) -> pb.Taken:
        """See `agent.stream.Core`. In the checkpoint before anything is changed by it, on disk before any Ack of it."""
        began = time.monotonic()
        await self.uncached.prepare(self.resources.changing(unit.parts))
        armed = dict(self.resources.armed)
        merged = self.resources.merge(unit.parts)
        if merged.mismatched:
            self.mismatches += 1
            log.error("digest does not match", unit=unit.number, scopes=merged.mismatched)
        written = asyncio.create_task(self.checkpoint.write(merged.record, snapshot=self.resources.snapshot))
        await asyncio.sleep(0)  # it is written while the rest is derived
        self._put(merged.rows)
        self.uncached.forget(held=self.resources.armed)
        if self._ack is not None and self._ack.revision >= self.resources.revision:
            self._ack = None  # sent again, or another history: what was said says nothing about this unit
        self._issue()
        await self._reconciler.derive(before=written)
        first, self._whole = not self._whole, True
        self._reconciler.take(self.resources.revision)
        if first:  # what is there may have to go, even if nothing is wanted
            self._reconciler.kick()
        self._armed.set()
        if armed != self.resources.armed:
            self.on_armed()
        self.on_resources()
        took = 1000 * (time.monotonic() - began)
        log.debug("unit taken", unit=unit.number, began=round(began, 6), ms=round(took, 2))
        return pb.Taken(unit=unit.number, mismatched=merged.mismatched)

    async def switch(self) -> None:
        """Apply what is held when its instant has come; for ever."""
        prepared = 0
        while True:
            self._armed.clear()
            armed = self.resources.armed
            instant = min(armed.values(), default=math.inf)
            left = self.until_instant()
            rest = left - (AWAKE if instant == prepared else EARLY)
            if rest > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if rest == math.inf else min(rest, LOOK_AGAIN)):
                        await self._armed.wait()
            elif instant != prepared:
                prepared = int(instant)
                await self.uncached.prepare([key for key, at in armed.items() if at == instant], within=left)
            elif left > 0:
                await asyncio.sleep(0)  # a timer may be late by some milliseconds, all hosts switch at one instant
            else:
                self._put(self.resources.release())
                self._reconciler.take(self.resources.revision)
                self.on_resources()

    def until_instant(self) -> float:
        """Seconds until something that is held is applied; inf: nothing is."""
        return (min(self.resources.armed.values(), default=math.inf) - self.resources.clock.now()) / 1e9

    async def persist(self) -> None:
        """Write the checkpoint as soon as the disk takes it again; for ever."""
        while True:
            await asyncio.sleep(WRITE_AGAIN)
            await self.checkpoint.catch_up(self.resources.snapshot)

    def versions(self, scope: str) -> pb.Versions:
        """See `agent.stream.Core`."""
        held = self.resources.versions(scope)
        return pb.Versions(
            scope=scope, versions=[pb.KeyVersion(key=key, version=version) for key, version in held.items()]
        )

    def latest(self) -> dict[str, pb.FromAgent]:
        """See `agent.stream.Core`."""
        out = {"facts": pb.FromAgent(facts=self._facts)}
        self._placed = None
        if self._ack is not None:
            out["ack"] = pb.FromAgent(ack=self._with_devices(self._ack))
        return out

    def want_rule_report(self, wanted: pb.WantRuleReport) -> None:
        """See `agent.stream.Core`."""
        self.on_want_rules(wanted)

    def observe(self, wanted: pb.Observe) -> None:
        """See `agent.stream.Core`."""
        self.on_observe(wanted)

    def armed_epoch(self, key: str) -> int:
        """The epoch of weights that are held until their instant; 0: none."""
        held = self.resources.find(key) if key in self.resources.armed else None
        return pb.Weights.FromString(held.body).epoch if held else 0

    def session_changed(self, *, server: str, problem: SessionOver | None) -> None:
        """See `agent.stream.Core`."""
        if problem is not None and (self.problem is None or self.problem.reason != problem.reason or self.server):
            log.warning("no session with a controller", reason=problem.reason, text=problem.text)
        if server:
            log.info("in session with a controller", server=server, revision=self.resources.revision)
        if not server:
            self.on_observe(None)
            self.on_want_rules(None)
        self.server, self.problem = server, problem

    def _put(self, rows: Mapping[str, Row | None]) -> None:
        for key, row in rows.items():
            self._inputs.put(key, row)

    # -- what we say

    def report(self, *, underlay_mtu: int, ovs_version: str, conditions: Iterable[Condition]) -> None:
        """Tell the controller what is so on this host, if that has changed."""
        facts = pb.Facts(
            underlay_mtu=underlay_mtu,
            ovs_version=ovs_version,
            datapath=self.local.datapath,
            kernel=platform.release(),
            conditions=[pb.HostCondition(type=c.type, text=c.text, remedy=c.remedy) for c in sorted(conditions)],
        )
        if facts != self._facts:
            self._facts = facts
            if self.sender is not None:
                self.sender.send("facts", pb.FromAgent(facts=facts))

    async def acknowledge(self) -> None:
        """Say what has been applied, as it becomes true; for ever."""
        while True:
            await self._progress.wait()
            self._progress.clear()
            applied = self._reconciler.applied()
            if applied is None or applied.revision < (self._ack.revision if self._ack is not None else 1):
                continue  # at work on what was said to be done or to have failed, or on the first of all: no word of it
            failures = self.failures(applied)  # before anything is waited for: what changes meanwhile has its own turn
            if self._reconciler.take_narrowed():
                began = time.monotonic()
                await self._reconciler.revalidated()
                log.debug("revalidated", ms=round(1000 * (time.monotonic() - began), 2))
            for wait in self.before_ack:
                await wait()
            self._say(applied.revision, {**self.more_failures(), **failures})

    def failures(self, applied: Applied) -> dict[str, Failure]:
        """By resource key: what is not on the devices as it is wanted, the full current set."""
        problems = self.resources.problems.items()
        held = {key: Failure(p.reason, p.text, retriable=False) for key, p in problems}
        return {**self.more_failures(), **applied.failures, **held}

    def _say(self, revision: int, failures: Mapping[str, Failure]) -> None:
        last = self._ack
        ack = pb.Ack(
            revision=revision,
            failures=[
                pb.KeyFailure(
                    key=key,
                    version=self.resources.version(key),
                    reason=failure.reason,
                    text=failure.text,
                    retriable=failure.retriable,
                )
                for key, failure in sorted(failures.items())
            ],
            unaccounted=self.resources.unaccounted(),
        )
        if last is not None:
            ack.applied_at = last.applied_at
            if ack == last and not self._moved():
                return
        ack.applied_at = time.time_ns()
        self._ack = ack
        if self.sender is not None:
            self.sender.send("ack", pb.FromAgent(ack=self._with_devices(ack)))

    def _moved(self) -> dict[str, str]:
        """Ports on devices that are not called after them, as far as that has not been told in this session."""
        told = self._placed or {}
        return {uid: device for uid, device in self._inputs.taken.rows.items() if told.get(uid) != device}

    def _with_devices(self, ack: pb.Ack) -> pb.Ack:
        devices = [pb.PortDevice(port_uid=uid, device=device) for uid, device in self._moved().items()]
        out = pb.Ack(devices=devices, devices_whole=self._placed is None)
        out.MergeFrom(ack)
        self._placed = dict(self._inputs.taken.rows)
        return out
