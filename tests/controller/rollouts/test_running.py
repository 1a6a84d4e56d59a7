"""Rollouts on a real etcd: controllers in this process, agents played by the test, leaders that lose their term."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from controller.etcd import Etcd
from controller.etcd.embedded import Durability, EmbeddedEtcd, Options
from controller.etcd.types import created, delete, prefix_end
from controller.names import split_of
from controller.rollouts.leader import Leader
from controller.rollouts.plan import RolloutSpec
from controller.rows import Intent
from controller.server import Controller
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.v1 import (
    host_pb2,
    host_pb2_grpc,
    network_pb2,
    network_pb2_grpc,
    port_pb2,
    port_pb2_grpc,
    rollout_pb2,
    rollout_pb2_grpc,
    split_pb2,
    split_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
    tenant_pb2,
    tenant_pb2_grpc,
)
from tests.controller.consistent import inconsistencies
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


async def test_a_canary_goes_all_the_way() -> None:
    async with stage() as acme:
        await acme.start(*CANARY)
        await acme.reaches("SUCCEEDED")
        assert acme.weights == {"green": 100} and acme.row.spec.run.is_done
        assert await inconsistencies(acme.one.store) == []
        got = await acme.ask("Get")
        reasons = [entry.reason for entry in got.history]
        assert reasons == [
            "Started", "Prepared", "GatesPassed", "Applied", "HoldOver", "Applied", "Done",
        ]  # fmt: skip
        rows = acme.one.store.world.rollout_steps.rows
        await until(lambda: len(rows) == 2, "both steps are recorded")
        got = await acme.ask("Get")
        for shown, number in zip(got.status.steps, (1, 2), strict=True):
            assert [host.host for host in shown.hosts] == ["hosts/h1", "hosts/h2"]
            assert shown.step == number and shown.first_applied.ToNanoseconds() <= shown.last_applied.ToNanoseconds()
        events = await acme.api.system.ListEvents(system_pb2.ListEventsRequest(name=NAME))
        assert [event.reason for event in events.events] == ["Created", *reasons]
        reports = acme.one.store.world.rollout_reports.rows
        await until(lambda: not reports, "nobody reports any more", 15)
        await acme.ask("Delete")
        await until(lambda: not rows, "the steps go with it")
        assert await inconsistencies(acme.one.store) == []


async def test_whoever_leads_it_ends_the_same() -> None:
    """Terms end at every moment of it, again and again."""
    async with stage() as acme:
        await acme.start(step(0.3, blue=90, green=10), step(0.3, blue=50, green=50), step(0.3, green=100))
        await acme.no_leader_lasts(12)
        await acme.reaches("SUCCEEDED", seconds=20)
        assert acme.weights == {"green": 100}
        assert [entry.step for entry in (await acme.ask("Get")).history if entry.reason == "Applied"] == [1, 2, 3]
        assert await inconsistencies(acme.one.store) == []


async def test_a_leader_that_slept_writes_nothing() -> None:
    async with stage("a") as acme:
        await acme.start(step(30, blue=90, green=10), step(0, green=100))
        await acme.reaches("SHIFTING", 1)
        await until(lambda: acme.row.spec.run.applied)
        asleep = Leader(acme.one.chores.rollouts, created(acme.one.store.keys.chores, 1))  # of a term long over
        task = asyncio.create_task(asleep.run())
        await acme.ask("Advance")
        await acme.reaches("SUCCEEDED")
        before = acme.row.mod_revision
        await acme.one.store.barrier()
        assert acme.row.mod_revision == before and not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        history = (await acme.ask("Get")).history
        assert len({(entry.reason, entry.step) for entry in history}) == len(history), "each transition once"


async def test_a_host_that_does_not_apply_rolls_it_back() -> None:
    async with stage() as acme:
        await acme.start(step(0.2, blue=90, green=10), step(0, green=100), step_timeout=seconds(1))
        await acme.reaches("SHIFTING", 1)
        await until(lambda: acme.row.spec.run.applied)
        acme.agents[1].acks = False
        await acme.reaches("ROLLED_BACK")
        run = acme.row.spec.run
        assert acme.weights == {"blue": 100} and not run.settled
        got = await acme.ask("Get")
        assert any(entry.reason == "HostBehind" and "h2" in entry.text for entry in got.history)
        await until(lambda: acme.one.store.world.rollout_reports.rows)
        await until_shown(acme, lambda rollout: list(rollout.status.behind) == ["hosts/h2"])
        assert (await acme.ask("Get")).status.conditions[0].type == "HostsBehind"
        assert await inconsistencies(acme.one.store) == []
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await acme.ask("Delete")
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        acme.agents[1].acks = True
        await acme.agents[1].ack()
        await until(lambda: acme.row.spec.run.is_done, "settled", 15)
        assert await inconsistencies(acme.one.store) == []


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


async def test_failures_that_are_about_the_step_count_others_do_not() -> None:
    async with stage() as acme:
        other = pb.KeyFailure(key="localport/" + "0" * 32, reason="NO_SUCH_DEVICE")
        acme.agents[0].failures = [other] * 3
        acme.agents[1].failures = [pb.KeyFailure(key=f"weights/{network_uid(acme)}", reason="GROUP", text="no room")]
        await acme.start(step(0, green=100), step_timeout=seconds(1))
        await acme.reaches("ROLLED_BACK")
        assert any(entry.reason == "HostBehind" for entry in (await acme.ask("Get")).history)


def network_uid(acme: Stage) -> str:
    return acme.one.store.world.networks.rows[WEB].uid


async def test_a_lost_host_that_is_gone_on_without() -> None:
    async with stage() as acme:
        # A port of the target on it could not be ACTIVE, and its gate would wait for it.
        await acme.api.ports.DeletePort(port_pb2.DeletePortRequest(name="tenants/acme/ports/green-2"))
        await acme.start(
            step(0.2, blue=90, green=10), step(0, green=100), on_lost=STATE.ON_LOST_PROCEED, deadline=seconds(60)
        )
        await acme.reaches("SHIFTING", 1)
        acme.agents[1].pings = False  # silent: the session ends
        acme.agents[1].call.cancel()
        await acme.reaches("SUCCEEDED", seconds=20)
        run = acme.row.spec.run
        assert acme.weights == {"green": 100} and run.without and not run.settled
        got = await until_shown(acme, lambda rollout: rollout.status.conditions)
        assert got.status.conditions[0].type == "SucceededWithSplit" and "h2" in got.status.conditions[0].text
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await acme.api.networks.UpdateNetwork(
                network_pb2.UpdateNetworkRequest(network=network_pb2.Network(name=WEB, colors=["green"]))
            )
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await acme.api.hosts.FenceHost(host_pb2.FenceHostRequest(name="hosts/h2"))
        await until(lambda: acme.row.spec.run.is_done, "a fenced host is nobody to wait for", 15)
        assert await inconsistencies(acme.one.store) == []


async def test_the_time_to_confirm() -> None:
    async with stage() as acme:
        await acme.start(step(0, green=100), confirm_within=seconds(3))
        await acme.reaches("CONFIRMING")
        await until(lambda: acme.one.store.world.confirmations.rows, "the key is there")
        await acme.no_leader_lasts(2)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await acme.ask("Pause")
        assert "confirm it or roll it back" in (refused.value.details() or "")
        await acme.reaches("ROLLED_BACK", seconds=15)
        assert acme.weights == {"blue": 100} and acme.closed == ("green",)
        with pytest.raises(grpc.aio.AioRpcError):
            await acme.ask("Confirm")


async def test_confirmed_in_time() -> None:
    async with stage() as acme:
        await acme.start(step(0, green=100), confirm_within=seconds(60))
        await acme.reaches("CONFIRMING")
        await until(lambda: acme.row.spec.run.armed)
        answer = await acme.ask("Confirm")
        assert answer.state == STATE.STATE_SUCCEEDED and answer.reason == "Confirmed"
        await until(lambda: not acme.one.store.world.confirmations.rows)
        assert acme.weights == {"green": 100} and acme.row.spec.run.is_done
        assert await inconsistencies(acme.one.store) == []


async def test_pause_resume_advance() -> None:
    async with stage() as acme:
        await acme.start(step(100, blue=90, green=10), step(100, green=100))
        await acme.reaches("SHIFTING", 1)
        await acme.ask("Pause")
        await acme.no_leader_lasts(1)
        assert acme.row.spec.run.state.value == "PAUSED"
        await acme.ask("Resume")
        await acme.ask("Advance", step=1)
        await acme.reaches("SHIFTING", 2)
        with pytest.raises(grpc.aio.AioRpcError):
            await acme.ask("Advance", step=1)
        await until(lambda: acme.row.spec.run.applied)
        await acme.ask("Advance", step=2)
        await acme.reaches("SUCCEEDED")


async def test_gates() -> None:
    """Connections and probes that agents report to two replicas decide, whoever leads."""
    gates = [
        rollout_pb2.RolloutGate(endpoints=rollout_pb2.EndpointsGate()),
        rollout_pb2.RolloutGate(probe=rollout_pb2.ProbeGate(kind=rollout_pb2.ProbeGate.KIND_TCP, port=80)),
        rollout_pb2.RolloutGate(failed_connections=rollout_pb2.FailedConnectionsGate(max_percent=5, min_samples=20)),
    ]
    async with stage() as acme:
        color = acme.numbers["green"]
        acme.agents[0].failing = 1
        await acme.start(step(100, blue=90, green=10), step(0, green=100), gates=gates)
        await acme.reaches("VERIFYING")
        assert acme.weights == {"blue": 100}
        acme.agents[0].failing = 0
        await acme.reaches("SHIFTING", 1)
        assert {probe.port for agent in acme.agents for probe in agent.observe.probes} == {80}
        await until_shown(acme, lambda rollout: len(rollout.status.gates) == 3)
        for agent in acme.agents:
            agent.counted[color] = (3, 0, 0)
        got = await until_shown(acme, lambda rollout: shares(rollout)["green"].connections == 6)
        assert got.status.gates[2].result == rollout_pb2.GateStatus.RESULT_INCONCLUSIVE
        acme.agents[0].counted[color] = (3, 15, 0)
        acme.agents[1].counted[color] = (3, 15, 1)
        got = await until_shown(acme, lambda r: r.status.gates[2].result == rollout_pb2.GateStatus.RESULT_PASS)
        assert (shares(got)["green"].opened, shares(got)["green"].failed) == (30, 1)
        acme.agents[0].counted[color] = (3, 30, 9)
        await acme.reaches("ROLLED_BACK")
        assert acme.weights == {"blue": 100} and acme.closed == ("green",), "a gate has failed: it is cut"
        reasons = {entry.reason: entry.text for entry in (await acme.ask("Get")).history}
        assert "failed connections to green" in reasons["GateFailed"]


def shares(rollout: rollout_pb2.Rollout) -> dict[str, rollout_pb2.ColorShare]:
    return {color.color: color for network in rollout.status.networks for color in network.colors}


async def test_a_probe_that_fails_rolls_back_before_traffic_moves() -> None:
    gate = rollout_pb2.ProbeGate(kind=rollout_pb2.ProbeGate.KIND_ICMP, failures=2)
    async with stage("a") as acme:
        acme.agents[1].failing = 1
        await acme.start(step(0, green=100), gates=[rollout_pb2.RolloutGate(probe=gate)])
        await acme.reaches("ROLLED_BACK")
        got = await acme.ask("Get")
        assert got.step == 0 and "connection refused" in got.text


async def test_an_external_gate() -> None:
    answers: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {answers[0]} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        root = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        gate = rollout_pb2.ExternalGate(url=f"{root}green", interval=seconds(1), failures=2)
        gates = [rollout_pb2.RolloutGate(external=gate)]
        async with stage("a", rollout_urls=(root,)) as acme:
            answers[:] = [503]
            await acme.start(step(30, green=100), gates=gates)
            await until_shown(acme, lambda rollout: "status 503" in rollout.status.waiting)
            answers[:] = [200]
            await acme.reaches("SHIFTING", 1)
            answers[:] = [302]
            await acme.reaches("ROLLED_BACK")
            texts = [entry.text for entry in (await acme.ask("Get")).history if entry.reason == "GateFailed"]
            assert "status 302" in texts[0], "redirects are not followed"


async def test_connections_are_drained_then_cut() -> None:
    async with stage() as acme:
        numbers = acme.numbers
        for agent in acme.agents:
            agent.counted[numbers["blue"]] = (2, 0, 0)
        await acme.start(step(0, green=100), on_open=split_pb2.ON_OPEN_DRAIN, drain_timeout=seconds(100))
        await acme.reaches("DRAINING")
        got = await until_shown(acme, lambda rollout: "4 open" in rollout.status.waiting)
        assert not acme.closed and got.status.waiting
        for agent in acme.agents:
            agent.counted[numbers["blue"]] = (0, 0, 0)
        await acme.reaches("SUCCEEDED")
        assert acme.closed == ("blue",) and acme.weights == {"green": 100}


async def test_all_hosts_hold_a_step_until_its_instant() -> None:
    async with stage() as acme:
        at_once = rollout_pb2.ApplyAt(lead=seconds(2.5))
        await acme.start(step(1.5, blue=90, green=10), step(1.5, green=100), apply_at=at_once)
        got = await until_shown(acme, lambda rollout: sum(host.armed for host in rollout.status.hosts) == 2)
        assert got.step == 1
        await acme.reaches("SUCCEEDED", seconds=20)
        assert not any(entry.reason == "NotArmed" for entry in (await acme.ask("Get")).history)
        got = await until_shown(acme, lambda rollout: all(len(one.hosts) == 2 for one in rollout.status.steps))
        assert [one.skew.ToNanoseconds() for one in got.status.steps] == [0, 0]


async def test_a_clock_that_is_off_makes_them_switch_at_once() -> None:
    async with stage() as acme:
        acme.agents[1].offset = 300_000_000
        await acme.start(
            step(0.2, blue=90, green=10), step(0, green=100), apply_at=rollout_pb2.ApplyAt(lead=seconds(3))
        )
        await acme.reaches("SUCCEEDED", seconds=20)
        entries = [entry for entry in (await acme.ask("Get")).history if entry.reason == "NotArmed"]
        assert [entry.step for entry in entries] == [1, 2] and "h2 would not be in time" in entries[0].text


async def test_watchers_see_it_move() -> None:
    async with stage() as acme:
        watch = acme.api.system.Watch(system_pb2.WatchRequest(parent=NAME, kinds=["rollout"]))
        await acme.start(*CANARY)
        states: list[State] = []
        with_hosts = False
        async with asyncio.timeout(15):
            async for response in watch:
                if response.object.WhichOneof("object") == "rollout":
                    rollout = response.object.rollout
                    states.append(rollout.state)
                    with_hosts |= len(rollout.status.hosts) == 2
                    if rollout.state == STATE.STATE_SUCCEEDED and with_hosts:
                        break
        order = [state for i, state in enumerate(states) if not i or states[i - 1] != state]
        assert order == sorted(order) and order[-1] == STATE.STATE_SUCCEEDED, "never back in time"
        watch.cancel()


async def test_nothing_is_left() -> None:
    async with stage("a") as acme:
        await acme.start(step(0, green=100))
        await acme.reaches("SUCCEEDED")
        await acme.ask("Delete")
        keys = acme.one.store.keys
        prefixes = keys.rollout_report("", "")[:-2], keys.rollout_step("", 0)[:-2], keys.rollout_of("")
        reports = acme.one.store.world.rollout_reports.rows
        await until(lambda: not reports, "nobody reports any more", 15)
        for prefix in prefixes:
            _, found = await acme.etcd.scan(prefix, prefix_end(prefix))
            assert not found
