"""A real controller in this process, and agents that are played by the test."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import grpc.aio

from controller import server
from controller.server import Controller
from controller.settings import Settings
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.agent.v1 import agent_pb2_grpc
from tealnet.core.digest import Digest, version
from tealnet.core.pki import Ca, Leaf
from tests.controller.shared import shared_etcd

DEADLINE = 30.0
"""Seconds for what takes well below one: for a busy machine; nobody waits that long for what comes."""


async def until(condition: Callable[[], Any], what: str = "the condition", seconds: float = DEADLINE) -> Any:
    """Wait until `condition()` is true; returns its value."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not come true in {seconds} s"
        await asyncio.sleep(0.005)
    return found


@dataclass
class Site:
    """A directory with a CA and a controller that runs."""

    directory: Path
    ca: Ca
    settings: Settings
    controller: Controller

    def channel(self, leaf: Leaf) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(self.ca.cert_pem, leaf.key_pem, leaf.cert_pem)
        options = [("grpc.ssl_target_name_override", "controller"), ("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(self.settings.listen[0], credentials, options)

    def stranger(self) -> grpc.aio.Channel:
        """To where hosts without a certificate ask for one."""
        credentials = grpc.ssl_channel_credentials(self.ca.cert_pem)
        options = [("grpc.ssl_target_name_override", "controller")]
        return grpc.aio.secure_channel(self.settings.join_listen, credentials, options)


def prepare(directory: Path, **settings: Any) -> tuple[Ca, Settings]:
    ca = Ca.create("tealnet.local")
    ca.save(directory)
    ca.issue("controller", dns=["controller"]).save(directory, "controller")
    defaults: dict[str, Any] = dict(
        listen=(f"unix:{directory}/api.sock",),
        join_listen=f"unix:{directory}/join.sock",
        metrics_listen="",
        data_dir=directory / "data",
        etcd_fsync="off",
        ca=directory / "ca.crt",
        cert=directory / "controller.crt",
        key=directory / "controller.key",
        ca_key=str(directory / "ca.key"),
    )
    chosen = Settings(**(defaults | settings))
    return ca, chosen


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Controller]:
    """A controller until the end of the block."""
    stop = asyncio.Event()
    started: asyncio.Future[Controller] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(server.run(settings, stop, started))
    both: list[asyncio.Future[Any]] = [task, started]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        yield started.result()
    finally:
        stop.set()
        async with asyncio.timeout(20):
            await task


@contextlib.asynccontextmanager
async def site(*, embedded: bool = False, **settings: Any) -> AsyncIterator[Site]:
    """A whole site in a directory of its own (short, because of unix sockets).

    Its store is a cluster of the etcd that tests share, unless it is to be `embedded`.
    """
    with tempfile.TemporaryDirectory(prefix="tn") as name, mock.patch.object(server, "STORE_PATIENCE", 5.0):
        directory = Path(name)
        if not embedded:
            endpoint, cluster = shared_etcd()
            settings = {"etcd": (endpoint,), "cluster": cluster, "compact": "off", **settings}
        ca, chosen = prepare(directory, **settings)
        async with running(chosen) as controller:
            yield Site(directory, ca, chosen, controller)


@dataclass
class FakeAgent:
    """Keeps what it is sent, by scope, as the protocol says; acks by itself unless told not to."""

    name: str
    vtep: str
    instance: str = "instance-1"
    boot: str = "boot"
    scopes: dict[str, dict[str, bytes]] = field(default_factory=dict)
    unaccounted: dict[str, bytes] = field(default_factory=dict)
    revision: int = 0
    welcome: pb.Welcome | None = None
    refused: pb.Refused | None = None
    lineage: pb.Lineage = field(default_factory=pb.Lineage)
    cluster_uid: str = ""
    units: list[list[pb.Update]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    failures: list[pb.KeyFailure] = field(default_factory=list)
    devices: dict[str, str] = field(default_factory=dict)  # by port uid
    told_devices: dict[str, str] | None = None  # in this session
    rule_report: pb.RuleReport | None = None  # what to answer when asked; None: nothing
    acks: bool = True
    takes: bool = True
    pings: bool = True
    features: tuple[str, ...] = ("colors",)
    pinged: pb.Ping = field(default_factory=pb.Ping)  # the last one heard
    observe: pb.Observe = field(default_factory=pb.Observe)
    counted: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # color → connections, opened, failed
    failing: int = 0  # endpoints that do not answer probes
    offset: int = 1000  # of its clock, in ns
    held: dict[str, pb.Weights] = field(default_factory=dict)  # until their apply_at
    applied_at: dict[int, int] = field(default_factory=dict)  # epoch → Unix time in ns
    later: list[asyncio.Future[None]] = field(default_factory=list)
    spoil: set[str] = field(default_factory=set)  # scopes to claim a digest mismatch for, once
    call: Any = None
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.asynccontextmanager
    async def connected(self, place: Site, leaf: Leaf | None = None) -> AsyncIterator[FakeAgent]:
        """In session (or refused) until the end of the block."""
        self.welcome, self.refused, self.done = None, None, asyncio.Event()
        self.units, self.asked, self.told_devices = [], [], None
        leaf = leaf or place.ca.issue(f"host/{self.name}")
        async with place.channel(leaf) as channel:
            self.call = agent_pb2_grpc.AgentServiceStub(channel).Connect()
            await self.say(pb.FromAgent(hello=self.hello()))
            tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._ping())]
            try:
                await until(lambda: self.welcome or self.refused or self.done.is_set(), "an answer to Hello")
                yield self
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self.call.cancel()

    def hello(self) -> pb.Hello:
        digests = []
        for name, held in self.scopes.items():
            digest = Digest.of(held.items())
            digests.append(pb.ScopeDigest(scope=name, digest=digest.bytes(), count=digest.count))
        return pb.Hello(
            cluster_uid=self.cluster_uid,
            lineage=self.lineage,
            revision=self.revision,
            instance_uid=self.instance,
            boot_id=self.boot,
            agent_version="test",
            features=self.features,
            vtep=self.vtep,
            scopes=digests,
        )

    async def say(self, message: pb.FromAgent) -> None:
        """One at a time: gRPC takes no second message of a stream while one is being sent."""
        async with self.writing:
            await self.call.write(message)

    async def ack(self) -> None:
        ack = pb.Ack(revision=self.revision, applied_at=time.time_ns(), failures=self.failures)
        ack.unaccounted.extend(sorted(self.unaccounted))
        devices = {} if self.told_devices == self.devices else self.devices
        ack.devices.extend(pb.PortDevice(port_uid=uid, device=device) for uid, device in devices.items())
        ack.devices_whole = self.told_devices is None
        self.told_devices = dict(self.devices)
        await self.say(pb.FromAgent(ack=ack))

    async def taken(self) -> None:
        """Take the last unit, if it was held back."""
        await self.say(pb.FromAgent(taken=pb.Taken(unit=self.units[-1][0].unit)))

    def weights(self) -> dict[str, pb.Weights]:
        """What it was sent, by key."""
        bodies = {key: body for held in self.scopes.values() for key, body in held.items()}
        return {key: pb.Weights.FromString(body) for key, body in bodies.items() if key.startswith("weights/")}

    def _hold(self) -> None:
        """Weights whose instant is ahead are not applied yet; the first ones of all are."""
        now = time.time_ns()
        ahead = {key: w for key, w in self.weights().items() if w.apply_at > now and self.applied_at}
        for key, weights in ahead.items():
            delay = (weights.apply_at - now) / 1e9
            asyncio.get_running_loop().call_later(delay, partial(self._switch, key, weights))
        self.held = ahead
        self.failures = [failure for failure in self.failures if failure.reason != "Armed"]
        self.failures += [pb.KeyFailure(key=key, reason="Armed") for key in ahead]

    def _switch(self, key: str, weights: pb.Weights) -> None:
        if self.held.get(key) == weights:
            del self.held[key]
            self.applied_at[weights.epoch] = weights.apply_at
            self.failures = [failure for failure in self.failures if failure.key != key]
            self.later.append(asyncio.ensure_future(self._said()))

    async def _said(self) -> None:
        await self.ack()
        await self.report()

    async def report(self) -> None:
        """What was asked for, as it is now."""
        now = time.time_ns()
        observed = pb.Observed(number=self.observe.number, at=now, since=1)
        observed.clock.CopyFrom(pb.Clock(offset_ns=self.offset, uncertainty_ns=1000))
        for uid in self.observe.networks:
            if (found := self.weights().get(f"weights/{uid.hex()}")) is None:
                continue
            network = observed.networks.add(network_uid=uid)
            if found.network_number in (held.network_number for held in self.held.values()):
                network.armed_epoch = found.epoch
                network.epoch = max(self.applied_at, default=0)
                network.applied_at = self.applied_at.get(network.epoch, 0)
            else:
                network.epoch, network.applied_at = found.epoch, self.applied_at.setdefault(found.epoch, now)
            for color, (connections, opened, failed) in self.counted.items():
                network.colors.add(color=color, connections=connections, opened=opened, failed=failed)
        for probe in self.observe.probes:
            text = "10.0.0.5: connection refused" if self.failing else ""
            observed.probes.add(id=probe.id, targets=1, failing=self.failing, tries=1, text=text, last_at=now)
        await self.say(pb.FromAgent(observed=observed))

    async def _ping(self) -> None:
        while True:
            if self.pings:
                await self.say(pb.FromAgent(ping=pb.Ping(number=1, sent_at=time.time_ns())))
            if self.pings and self.observe.networks:
                await self.report()
            await asyncio.sleep(0.3)

    async def _read(self) -> None:
        staged: list[pb.Update] = []
        try:
            while isinstance(message := await self.call.read(), pb.ToAgent):
                match message.WhichOneof("message"):
                    case "welcome":
                        self.welcome, self.cluster_uid = message.welcome, message.welcome.cluster_uid
                        self.lineage = message.welcome.lineage
                    case "refused":
                        self.refused = message.refused
                        return
                    case "want_rule_report" if self.rule_report is not None:
                        await self.say(pb.FromAgent(rule_report=self.rule_report))
                    case "want_versions":
                        await self._versions(message.want_versions.scope)
                    case "ping":
                        self.pinged = message.ping
                    case "observe":
                        self.observe = message.observe
                        await self.report()
                    case "update":
                        staged.append(message.update)
                        if message.update.last:
                            await self._merge(staged)
                            staged = []
        except grpc.aio.AioRpcError:
            pass
        finally:
            self.done.set()

    async def _versions(self, scope: str) -> None:
        self.asked.append(scope)
        held = dict(self.scopes.get(scope, {}))
        if scope == "host":
            held |= self.unaccounted
        found = [pb.KeyVersion(key=key, version=version(body)) for key, body in held.items()]
        await self.say(pb.FromAgent(versions=pb.Versions(scope=scope, versions=found)))

    async def _merge(self, parts: list[pb.Update]) -> None:
        deltas = [delta for part in parts for delta in part.scopes]
        wholes = {delta.scope for delta in deltas if delta.whole}
        for name in wholes:
            old = self.scopes.get(name, {})
            self.unaccounted |= {key: body for key, body in old.items() if key.startswith("localport/")}
            self.scopes[name] = {}
        for delta in deltas:
            if delta.dropped:
                self.scopes.pop(delta.scope, None)
                continue
            held = self.scopes.setdefault(delta.scope, {})
            for removal in delta.removals:
                body = held.pop(removal.key, None)
                if not removal.key.startswith("localport/"):
                    continue
                if removal.proof:
                    self.unaccounted.pop(removal.key, None)
                elif body is not None:
                    self.unaccounted[removal.key] = body
        for delta in deltas:
            for resource in delta.upserts:
                for held in self.scopes.values():
                    held.pop(resource.key, None)
                self.unaccounted.pop(resource.key, None)
                self.scopes[delta.scope][resource.key] = resource.body
        self.revision = parts[-1].revision
        self.lineage = parts[-1].lineage
        self.units.append(parts)
        mismatched = [d.scope for d in deltas if d.HasField("digest") and not self._agrees(d)]
        if self.takes:
            await self.say(pb.FromAgent(taken=pb.Taken(unit=parts[0].unit, mismatched=mismatched)))
        self._hold()
        if self.acks and not mismatched:
            await self.ack()

    def _agrees(self, delta: pb.ScopeDelta) -> bool:
        if delta.scope in self.spoil:
            self.spoil.discard(delta.scope)
            return False
        digest = Digest.of(self.scopes.get(delta.scope, {}).items())
        return (digest.bytes(), digest.count) == (delta.digest.digest, delta.digest.count)
