"""A stage for rollouts on a real etcd: controllers in this process, agents played by the test, an admin's API."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from controller.etcd import Etcd
from controller.etcd.embedded import Durability, EmbeddedEtcd, Options
from controller.etcd.types import delete
from controller.names import split_of
from controller.rollouts.plan import RolloutSpec
from controller.rows import Intent
from controller.server import Controller
from tealnet.v1 import (
    host_pb2,
    host_pb2_grpc,
    network_pb2,
    network_pb2_grpc,
    port_pb2,
    port_pb2_grpc,
    rollout_pb2,
    rollout_pb2_grpc,
    split_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
    tenant_pb2,
    tenant_pb2_grpc,
)
from tests.controller.running import FakeAgent, Site, prepare, running, until

WEB, NAME = "tenants/acme/networks/web", "tenants/acme/rollouts/r"
STATE = rollout_pb2.Rollout
State = rollout_pb2.Rollout.State


@dataclass
class Stage:
    """Replicas on one etcd, two hosts in session with the first and the last of them, a network in two colors."""

    sites: list[Site]
    etcd: Etcd
    agents: list[FakeAgent] = field(default_factory=list)
    api: Any = None

    @property
    def controllers(self) -> list[Controller]:
        return [site.controller for site in self.sites]

    @property
    def one(self) -> Controller:
        return self.controllers[0]

    @property
    def row(self) -> Intent[RolloutSpec]:
        return self.one.store.world.rollouts.rows[NAME]

    @property
    def weights(self) -> dict[str, int]:
        return dict(self.one.store.world.splits.rows[split_of(WEB)].spec.weights)

    @property
    def closed(self) -> tuple[str, ...]:
        return self.one.store.world.splits.rows[split_of(WEB)].spec.closed

    @property
    def numbers(self) -> dict[str, int]:
        return {s.color: s.color_number for s in self.one.store.world.networks.rows[WEB].spec.segments}

    async def start(self, *steps: rollout_pb2.RolloutStep, **body: Any) -> rollout_pb2.Rollout:
        rollout = rollout_pb2.Rollout(networks=[WEB], target="green", steps=steps, **body)
        request = rollout_pb2.CreateRolloutRequest(parent="tenants/acme", rollout_id="r", rollout=rollout)
        made: rollout_pb2.Rollout = await self.api.rollouts.CreateRollout(request)
        return made

    async def ask(self, verb: str, **more: Any) -> rollout_pb2.Rollout:
        request = getattr(rollout_pb2, f"{verb}RolloutRequest")(name=NAME, **more)
        answer: rollout_pb2.Rollout = await getattr(self.api.rollouts, f"{verb}Rollout")(request)
        return answer

    async def reaches(self, state: str, step: int = 0, seconds: float = 10) -> None:
        def there() -> bool:
            run = self.row.spec.run
            return run.state.value == state and (not step or run.step == step)

        try:
            await until(there, f"{state} of step {step}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {await self.ask('Get')}") from None

    async def no_leader_lasts(self, turns: int) -> None:
        """End one term after the other."""
        terms = self.one.store.world.terms.rows
        for _ in range(turns):
            old = (await until(lambda: terms.get("chores"))).create_revision
            await self.etcd.txn((), [delete(self.one.store.keys.chores)])
            await until(lambda old=old: (now := terms.get("chores")) and now.create_revision != old)  # type: ignore[misc]


@dataclass
class Api:
    """The services of one replica, as an admin."""

    channel: grpc.aio.Channel

    def __post_init__(self) -> None:
        self.tenants: Any = tenant_pb2_grpc.TenantServiceStub(self.channel)
        self.hosts: Any = host_pb2_grpc.HostServiceStub(self.channel)
        self.networks: Any = network_pb2_grpc.NetworkServiceStub(self.channel)
        self.ports: Any = port_pb2_grpc.PortServiceStub(self.channel)
        self.splits: Any = split_pb2_grpc.TrafficSplitServiceStub(self.channel)
        self.rollouts: Any = rollout_pb2_grpc.RolloutServiceStub(self.channel)
        self.system: Any = system_pb2_grpc.SystemServiceStub(self.channel)

    async def furnish(self) -> None:
        await self.tenants.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id="acme", tenant=tenant_pb2.Tenant()))
        for number in (1, 2):
            host = host_pb2.Host(vtep=f"192.0.2.{number}")
            await self.hosts.CreateHost(host_pb2.CreateHostRequest(host_id=f"h{number}", host=host))
        network = network_pb2.Network(cidrs=["10.0.0.0/24"], colors=["blue", "green"])
        await self.networks.CreateNetwork(
            network_pb2.CreateNetworkRequest(parent="tenants/acme", network_id="web", network=network)
        )
        for color in ("blue", "green"):
            for number in (1, 2):
                address = f"10.0.0.{4 + number}"
                port = port_pb2.Port(network=WEB, color=color, host=f"hosts/h{number}", addresses=[address])
                await self.ports.CreatePort(
                    port_pb2.CreatePortRequest(parent="tenants/acme", port_id=f"{color}-{number}", port=port)
                )


def step(hold: float = 0.0, **weights: int) -> rollout_pb2.RolloutStep:
    made = rollout_pb2.RolloutStep(weights=weights)
    made.hold.FromNanoseconds(int(hold * 1e9))
    return made


def seconds(number: float) -> Duration:
    made = Duration()
    made.FromNanoseconds(int(number * 1e9))
    return made


CANARY = step(0.4, blue=90, green=10), step(0.2, green=100)


@contextlib.asynccontextmanager
async def stage(replicas: str = "ab", **settings: Any) -> AsyncIterator[Stage]:
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tn"))) / "etcd"
        options = Options(directory, durability=Durability.MEMORY)
        server = await stack.enter_async_context(EmbeddedEtcd(options))
        etcd = await stack.enter_async_context(Etcd([server.endpoint]))
        sites = []
        for name in replicas:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tn")))
            ca, made = prepare(place, replica=name, etcd=(server.endpoint,), lost_after=3, **settings)
            sites.append(Site(place, ca, made, await stack.enter_async_context(running(made))))
        found = Stage(sites, etcd)
        admin = await stack.enter_async_context(sites[0].channel(sites[0].ca.issue("admin")))
        found.api = Api(admin)
        await found.api.furnish()
        for number, site in ((1, sites[0]), (2, sites[-1])):
            agent = FakeAgent(f"h{number}", f"192.0.2.{number}", instance=f"instance-{number}")
            await stack.enter_async_context(agent.connected(site))
            found.agents.append(agent)
        yield found


async def until_shown(acme: Stage, holds: Any, deadline: float = 10) -> rollout_pb2.Rollout:
    """By the API, as it changes."""
    changes = acme.api.system.Watch(system_pb2.WatchRequest(parent=NAME, kinds=["rollout"]))
    try:
        async with asyncio.timeout(deadline):
            async for response in changes:
                if response.object.WhichOneof("object") and holds(response.object.rollout):
                    found: rollout_pb2.Rollout = response.object.rollout
                    return found
        raise AssertionError("the watch has ended")
    finally:
        changes.cancel()
