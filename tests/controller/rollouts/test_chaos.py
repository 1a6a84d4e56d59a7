"""Several rollouts on a real etcd at once, while terms end, hosts fail, users ask and somebody goes past the API."""

from __future__ import annotations

import asyncio
import random

import grpc
import pytest

from controller.etcd.types import delete, modified, present, put
from controller.intents.split import split_value
from controller.names import split_of
from controller.rollouts.machine import expected
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.v1 import network_pb2, port_pb2, rollout_pb2
from tests.controller.consistent import inconsistencies
from tests.controller.rollouts.stage import Stage, seconds, stage, step
from tests.controller.running import until
from tests.samples import samples

NETWORKS = [f"tenants/acme/networks/n{i}" for i in range(3)]
NAMES = [f"tenants/acme/rollouts/r{i}" for i in range(3)]
TURNS = 45


async def furnish(acme: Stage) -> None:
    for i, network in enumerate(NETWORKS):
        body = network_pb2.Network(cidrs=[f"10.{i + 1}.0.0/24"], colors=["blue", "green"])
        await acme.api.networks.CreateNetwork(
            network_pb2.CreateNetworkRequest(parent="tenants/acme", network_id=f"n{i}", network=body)
        )
        for color in ("blue", "green"):
            for host in ("h1", "h2"):
                address = f"10.{i + 1}.0.{5 + int(host[1])}"
                port = port_pb2.Port(network=network, color=color, host=f"hosts/{host}", addresses=[address])
                await acme.api.ports.CreatePort(
                    port_pb2.CreatePortRequest(parent="tenants/acme", port_id=f"n{i}-{color}-{host}", port=port)
                )


async def begin(acme: Stage, i: int, dice: random.Random) -> None:
    rollout = rollout_pb2.Rollout(
        networks=[NETWORKS[i]], target="green", deadline=seconds(60), step_timeout=seconds(2),
        steps=[step(dice.random(), blue=70, green=30), step(dice.random(), blue=30, green=70), step(0, green=100)],
        confirm_within=seconds(dice.choice([0, 2])), on_open=dice.choice(["ON_OPEN_KEEP", "ON_OPEN_CUT"]),
        on_behind=dice.choice(["ON_BEHIND_WAIT", "ON_BEHIND_ROLLBACK"]),
    )  # fmt: skip
    await acme.api.rollouts.CreateRollout(
        rollout_pb2.CreateRolloutRequest(parent="tenants/acme", rollout_id=f"r{i}", rollout=rollout)
    )


async def disturb(acme: Stage, dice: random.Random) -> None:
    name, agent = dice.choice(NAMES), dice.choice(acme.agents)
    match dice.choice(["term", "term", "ask", "ask", "ask", "hang", "heal", "heal", "fail", "edit", "nothing"]):
        case "term":
            await acme.etcd.txn((), [delete(acme.one.store.keys.chores)])
        case "ask":
            verb = dice.choice(["Pause", "Resume", "Resume", "Advance", "Advance", "Confirm", "Rollback"])
            request = getattr(rollout_pb2, f"{verb}RolloutRequest")(name=name)
            try:
                await getattr(acme.api.rollouts, f"{verb}Rollout")(request)
            except grpc.aio.AioRpcError as error:
                assert error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED), error
        case "hang":
            agent.acks = False
        case "fail":
            uid = acme.one.store.world.networks.rows[dice.choice(NETWORKS)].uid
            agent.failures = [pb.KeyFailure(key=f"weights/{uid}", reason="GROUP")]
            if agent.acks:
                await agent.ack()
        case "heal":
            agent.acks, agent.failures = True, []
            await agent.ack()
        case "edit":
            row = acme.one.store.world.splits.rows[split_of(dice.choice(NETWORKS))]
            value = split_value(row, weights={"blue": 1, "green": 1}, closed=(), apply_at=0, write_id=b"x")
            key, held = acme.one.store.keys.intent(row.name), acme.one.store.keys.rollout_of(row.spec.network_uid)
            # When it is over, the weights are nobody's any more.
            await acme.etcd.txn([modified(key, row.mod_revision), present(held)], [put(key, value)])


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, samples(1, many=30) + 1))
async def test_whatever_happens_it_ends_as_it_says(seed: int) -> None:
    dice = random.Random(seed)
    async with stage() as acme:
        await furnish(acme)
        for i in range(len(NAMES)):
            await begin(acme, i, dice)
        for _ in range(TURNS):
            await disturb(acme, dice)
            await asyncio.sleep(dice.random() / 5)
        for agent in acme.agents:  # the last fault is over
            agent.acks, agent.failures = True, []
            await agent.ack()
        rows = acme.one.store.world.rollouts.rows
        for name in NAMES:
            if rows[name].spec.run.state.value == "PAUSED":
                await acme.api.rollouts.ResumeRollout(rollout_pb2.ResumeRolloutRequest(name=name))
        await until(lambda: all(rows[name].spec.run.is_done for name in NAMES), "all are done", 80)
        for name, network in zip(NAMES, NETWORKS, strict=True):
            spec = rows[name].spec
            weights = acme.one.store.world.splits.rows[split_of(network)].spec.weights
            assert weights == expected(spec.plan, spec.run)[network], (name, spec.run)
        assert await inconsistencies(acme.one.store) == []
        for i in range(len(NAMES)):
            request = rollout_pb2.DeleteRolloutRequest(name=NAMES[i])
            await acme.api.rollouts.DeleteRollout(request)
        assert await inconsistencies(acme.one.store) == []
        assert not acme.one.store.world.confirmations.rows
