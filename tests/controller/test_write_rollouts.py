"""Rollouts by the API: what is refused and why, what they hold, what users may ask of them. Nobody runs them here."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from controller.errors import AlreadyExists, ApiError, FailedPrecondition, Invalid, NotFound, ResourceExhausted
from tealnet.v1 import network_pb2, port_pb2, rollout_pb2, split_pb2, system_pb2, tenant_pb2
from tests.controller.consistent import inconsistencies
from tests.controller.writing import Replicated, Writing, outcome, refusal, writing

WEB = "tenants/acme/networks/web"
STATE, ACTION = rollout_pb2.Rollout, system_pb2.PlanResult
TCP = rollout_pb2.ProbeGate.KIND_TCP


def step(hold: int = 0, **weights: int) -> rollout_pb2.RolloutStep:
    return rollout_pb2.RolloutStep(weights=weights, hold=Duration(seconds=hold))


async def acme(site: Writing) -> Replicated:
    """A network, blue and green with a port each, all traffic on blue."""
    one = site.one
    await one.tenant("acme")
    await one.network("acme/web", cidrs=["10.0.0.0/24"], colors=["blue", "green"])
    await one.port("acme/blue-1", color="blue", addresses=["10.0.0.5"])
    await one.port("acme/green-1", color="green", addresses=["10.0.0.5"])
    return one


async def test_what_it_holds_until_it_is_over() -> None:
    async with writing() as site:
        one = await acme(site)
        made = await one.rollout("acme/r", description="new web")
        assert (made.state, made.origin, made.target) == (STATE.STATE_PENDING, "blue", "green")
        assert made.etag and made.revision and not made.history
        assert await inconsistencies(one.store) == []
        for call, reason in (
            (lambda: one.weights("acme/web green=1", force=True), "ROLLOUT_ACTIVE"),
            (lambda: one.rollout("acme/other"), "ROLLOUT_ACTIVE"),
            (lambda: one.colors("acme/web", "blue"), "COLOR_IN_USE"),
            (lambda: one.delete_network(WEB), "IN_USE"),
            (lambda: one.delete_network(WEB, force=True), "ROLLOUT_ACTIVE"),
            (lambda: one.ask("Delete", "acme/r"), "ROLLOUT_ACTIVE"),
        ):
            error = await refusal(call())
            assert isinstance(error, FailedPrecondition), error
            assert error.reason == reason and "acme/r" in error.text, (error.reason, error.text)
        assert "tenants/acme/ports/green-1" in one.store.world.ports.rows, "nothing went before it was refused"
        back = await one.ask("Rollback", "acme/r", text="never mind")
        assert (back.state, back.text) == (STATE.STATE_ROLLED_BACK, "never mind"), "nothing has moved yet"
        assert [entry.actor for entry in back.history] == ["admin"]
        assert back.etag == made.etag, "what was asked for is the same"
        assert await inconsistencies(one.store) == []
        await one.weights("acme/web green=1", force=True)
        await one.rollout("acme/back", target="blue", steps=[step(blue=1)])
        await one.ask("Delete", "acme/r")
        assert isinstance(await refusal(one.ask("Get", "acme/r")), NotFound)
        assert await inconsistencies(one.store) == []


async def test_a_plan_is_never_changed() -> None:
    async with writing() as site:
        one = await acme(site)
        made = await one.rollout("acme/r", gates=[rollout_pb2.RolloutGate(endpoints=rollout_pb2.EndpointsGate())])

        async def update(**body: Any) -> Any:
            rollout = rollout_pb2.Rollout(name=made.name, **body)
            return await one.rollouts.UpdateRollout(rollout_pb2.UpdateRolloutRequest(rollout=rollout), None)

        again = await update(networks=[WEB], target="green", origin="blue", steps=[step(green=100)])
        assert again.revision == made.revision, "the same document again"
        assert (await update(description="why")).description == "why"
        error = await refusal(update(target="blue"))
        assert isinstance(error, FailedPrecondition) and error.reason == "ROLLOUT_FIXED"
        assert isinstance(await refusal(one.rollout("acme/r")), AlreadyExists)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"networks": []}, "rollout.networks"),
        ({"networks": [WEB, WEB]}, "rollout.networks[1]"),
        ({"networks": ["tenants/other/networks/web"]}, "rollout.networks[0]"),
        ({"target": ""}, "rollout.target"),
        ({"target": "red", "steps": [step(red=1)]}, "rollout.networks[0]"),
        ({"origin": "green"}, "rollout.origin"),
        ({"steps": []}, "rollout.steps"),
        ({"steps": [step(blue=100)]}, "rollout.steps[0].weights"),
        ({"steps": [step(red=1), step(green=1)]}, "rollout.steps[0].weights"),
        ({"steps": [step(blue=1000, green=1), step(green=1)]}, "rollout.steps[0].weights"),
        ({"steps": [step(green=1, hold=30)], "deadline": Duration(seconds=20)}, "rollout.deadline"),
        ({"drain_timeout": Duration(seconds=20)}, "rollout.drain_timeout"),
        ({"on_open": split_pb2.ON_OPEN_DRAIN}, "rollout.drain_timeout"),
        ({"step_timeout": Duration(nanos=1)}, "rollout.step_timeout"),
        ({"gates": [rollout_pb2.RolloutGate()]}, "rollout.gates[0]"),
        ({"gates": [rollout_pb2.RolloutGate(probe=rollout_pb2.ProbeGate(kind=TCP))]}, "rollout.gates[0].probe.port"),
        (
            {"gates": [rollout_pb2.RolloutGate(external=rollout_pb2.ExternalGate(url="http://10.0.0.1/x"))]},
            "rollout.gates[0].external.url",
        ),
    ],
)
async def test_bad_plans(body: dict[str, Any], field: str, shared: Replicated) -> None:
    error = await refusal(shared.rollout("acme/bad", **body))
    assert isinstance(error, Invalid), error
    assert field in [violation.field for violation in error.violations], error.text


@pytest.fixture
async def shared() -> Any:
    async with writing(rollout_urls=("https://checks.example.com/web/",)) as site:
        yield await acme(site)


async def test_external_gates_ask_only_what_is_allowed(shared: Replicated) -> None:
    def gate(url: str) -> list[rollout_pb2.RolloutGate]:
        return [rollout_pb2.RolloutGate(external=rollout_pb2.ExternalGate(url=url))]

    for url in (
        "https://checks.example.com/web/../admin",
        "https://checks.example.com/web/%2e%2e/admin",
        "https://checks.example.com/other",
        "https://checks.example.com:444/web/x",
        "https://checks.example.com.evil.example/web/x",
        "https://a@checks.example.com/web/x",
        "http://checks.example.com/web/x",
        "file:///web/x",
    ):
        assert isinstance(await refusal(shared.rollout("acme/r", gates=gate(url))), Invalid), url
    await shared.rollout("acme/r", gates=gate("https://checks.example.com/web/green?deep=1"))


async def test_plans_for_another_world() -> None:
    async with writing(quota_rollouts=1) as site:
        one = await acme(site)
        await one.network("acme/plain", cidrs=["10.1.0.0/24"])
        await one.network("acme/empty", cidrs=["10.2.0.0/24"], colors=["blue", "green"])
        plain, empty = "tenants/acme/networks/plain", "tenants/acme/networks/empty"
        for body, reason in (
            ({"networks": [plain]}, "NO_COLORS"),
            ({"networks": [empty]}, "COLOR_EMPTY"),
            ({"target": "blue", "origin": "green", "steps": [step(blue=1)]}, "ORIGIN_EMPTY"),
        ):
            error = await refusal(one.rollout("acme/r", **body))
            assert isinstance(error, FailedPrecondition) and error.reason == reason, error
        assert isinstance(await refusal(one.rollout("acme/r", target="blue", steps=[step(blue=1)])), Invalid)
        assert isinstance(await refusal(one.rollout("acme/r", networks=["tenants/acme/networks/no"])), NotFound)
        await one.rollout("acme/r")
        error = await refusal(one.rollout("acme/s"))
        assert isinstance(error, ResourceExhausted | FailedPrecondition)
        assert await inconsistencies(one.store) == []


async def test_commands() -> None:
    async with writing() as site:
        one = await acme(site)
        await one.rollout("acme/r", confirm_within=Duration(seconds=60))
        assert (await one.ask("Pause", "acme/r")).state == STATE.STATE_PAUSED
        assert (await one.ask("Pause", "acme/r")).state == STATE.STATE_PAUSED
        for verb, reason in (("Advance", "PAUSED"), ("Confirm", "NOT_CONFIRMING")):
            error = await refusal(one.ask(verb, "acme/r"))
            assert isinstance(error, FailedPrecondition) and error.reason == reason
        assert (await one.ask("Resume", "acme/r")).state == STATE.STATE_PENDING
        error = await refusal(one.ask("Advance", "acme/r", step=2))
        assert isinstance(error, FailedPrecondition) and error.reason == "OTHER_STEP"
        dry = await one.ask("Rollback", "acme/r", validate_only=True)
        assert dry.state == STATE.STATE_ROLLED_BACK
        assert (await one.ask("Get", "acme/r")).state == STATE.STATE_PENDING
        assert (await one.ask("Rollback", "acme/r")).state == STATE.STATE_ROLLED_BACK
        assert (await one.ask("Rollback", "acme/r")).state == STATE.STATE_ROLLED_BACK
        error = await refusal(one.ask("Pause", "acme/r"))
        assert isinstance(error, FailedPrecondition) and error.reason == "ROLLOUT_OVER"


async def test_racing_creates_have_one_winner() -> None:
    async with writing(replicas=3) as site:
        await acme(site)
        for replica in site.replicas:
            await replica.store.barrier()
        calls = [outcome(site.replicas[i % 3].rollout(f"acme/r{i}")) for i in range(9)]
        found = await asyncio.gather(*calls)
        refused = [answer for answer in found if isinstance(answer, ApiError)]
        assert len(refused) == 8 and {error.reason for error in refused} == {"ROLLOUT_ACTIVE"}
        assert await inconsistencies(site.one.store) == []


async def test_a_tenant_goes_with_its_rollouts() -> None:
    async with writing() as site:
        one = await acme(site)
        await one.rollout("acme/r")
        await one.tenants.DeleteTenant(tenant_pb2.DeleteTenantRequest(name="tenants/acme", force=True), None)
        assert not one.store.world.rollouts.rows and not await site.keys("k/u/rollout")
        assert await inconsistencies(one.store) == []


async def test_a_color_that_no_rollout_uses_may_go() -> None:
    async with writing() as site:
        one = await acme(site)
        await one.colors("acme/web", "blue", "green", "red")
        await one.rollout("acme/r")
        got = await one.colors("acme/web", "blue", "green")
        assert isinstance(got, network_pb2.Network)


async def test_a_plan_sees_what_the_documents_before_make() -> None:
    async with writing() as site:
        one = site.one
        await one.tenant("acme")
        request = system_pb2.PlanRequest()
        network = network_pb2.Network(name=WEB, cidrs=["10.0.0.0/24"], colors=["blue", "green"])
        request.items.add().object.network.CopyFrom(network)
        rollout = rollout_pb2.Rollout(
            name="tenants/acme/rollouts/r", networks=[WEB], target="green", steps=[step(green=100)]
        )
        without = system_pb2.PlanRequest()
        without.CopyFrom(request)
        without.items.add().object.rollout.CopyFrom(rollout)
        results = (await one.api.planner.plan(without)).results
        assert [result.action for result in results] == [ACTION.ACTION_CREATE, ACTION.ACTION_FAIL]
        assert "has no ports" in results[1].error.message
        for color in ("blue", "green"):
            port = port_pb2.Port(name=f"tenants/acme/ports/{color}", network=WEB, color=color, addresses=["10.0.0.5"])
            request.items.add().object.port.CopyFrom(port)
        request.items.add().object.rollout.CopyFrom(rollout)
        request.items.add().object.rollout.CopyFrom(rollout)
        request.items[-1].object.rollout.name = "tenants/acme/rollouts/second"
        results = (await one.api.planner.plan(request)).results
        assert [result.action for result in results] == [*[ACTION.ACTION_CREATE] * 4, ACTION.ACTION_FAIL]
        assert "is moved by tenants/acme/rollouts/r already" in results[4].error.message
        assert results[3].after.rollout.origin == "blue"
