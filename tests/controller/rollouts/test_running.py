"""Rollouts on a real etcd: controllers in this process, agents played by the test, leaders that lose their term."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from controller.etcd.types import created, prefix_end
from controller.rollouts.leader import Leader
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.v1 import (
    host_pb2,
    network_pb2,
    port_pb2,
    rollout_pb2,
    split_pb2,
    system_pb2,
)
from tests.controller.consistent import inconsistencies
from tests.controller.rollouts.stage import CANARY, NAME, STATE, WEB, Stage, State, seconds, stage, step, until_shown
from tests.controller.running import until


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
        await acme.start(step(0.5, blue=90, green=10), step(0.5, green=100), apply_at=at_once)
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
            step(0.2, blue=90, green=10), step(0, green=100), apply_at=rollout_pb2.ApplyAt(lead=seconds(1.5))
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
