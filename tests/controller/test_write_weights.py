"""SetWeights: shares, several networks in one revision, open connections, what is refused, drains, retries."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.drains import Drains
from controller.errors import Aborted, FailedPrecondition, Invalid, NotFound
from controller.etcd.types import absent, put
from controller.events import Events
from controller.intents.split import split_value
from tealnet.core.identity import Kind
from tealnet.core.rows.colors import SLOTS, slots
from tealnet.store.v1 import store_pb2
from tealnet.v1 import split_pb2, system_pb2
from tests.controller.consistent import inconsistencies
from tests.controller.writing import Replicated, Writing, become, refusal, writing

WEB, DB = "tenants/acme/networks/web", "tenants/acme/networks/db"
SPLIT = f"{WEB}/trafficSplit"


async def two_networks(site: Writing) -> Replicated:
    one = site.one
    await one.tenant("acme")
    await one.network("acme/web", cidrs=["10.0.0.0/24"], colors=["blue", "green"])
    await one.network("acme/db", cidrs=["10.0.1.0/24"], colors=["blue", "green", "red"])
    return one


async def test_several_networks_in_one_revision() -> None:
    async with writing() as site:
        one = await two_networks(site)
        answer = await one.weights("acme/web blue=95 green=5", "acme/db blue=1 green=0 red=1", force=True)
        assert [split.revision for split in answer.splits] == [answer.revision] * 2
        assert [dict(split.weights) for split in answer.splits] == [
            {"blue": 95, "green": 5},
            {"blue": 1, "green": 0, "red": 1},
        ]
        web, db = answer.splits
        assert [(c.color, c.slots) for c in web.colors] == [("blue", 243), ("green", 13)]
        assert [(c.color, c.slots) for c in db.colors] == [("blue", 128), ("green", 0), ("red", 128)]
        assert await one.split("acme/web") == web
        listed = await one.splits.ListTrafficSplits(split_pb2.ListTrafficSplitsRequest(parent="tenants/acme"), None)
        assert [split.name for split in listed.splits] == [f"{DB}/trafficSplit", SPLIT]
        request = split_pb2.ListTrafficSplitsRequest(parent="tenants/acme", filter="network=web")
        assert [s.name for s in (await one.splits.ListTrafficSplits(request, None)).splits] == [SPLIT]
        same = await one.weights("acme/web blue=95 green=5", force=True)
        assert same.splits[0] == web and same.revision == web.revision, "nothing changes, nothing is written"
        assert await inconsistencies(one.store) == []


async def test_one_that_is_refused_moves_none() -> None:
    async with writing() as site:
        one = await two_networks(site)
        before = await one.split("acme/web")
        error = await refusal(one.weights("acme/web green=1", "acme/db teal=1", force=True))
        assert isinstance(error, Invalid) and "there are blue, green, red" in error.text
        assert error.violations[0].field == "networks[1].weights"
        assert await one.split("acme/web") == before


_BAD: list[tuple[dict[str, Any], str]] = [
    ({"networks": []}, "networks"),
    ({"networks": [{"network": "web", "weights": {"blue": 1}}]}, "networks[0].network"),
    ({"networks": [{"network": "tenants/globex/networks/web", "weights": {"blue": 1}}]}, "networks[0].network"),
    ({"networks": [{"network": WEB}]}, "networks[0].weights"),
    ({"networks": [{"network": WEB, "weights": {"blue": 0}}]}, "networks[0].weights"),
    ({"networks": [{"network": WEB, "weights": {"blue": 256, "green": 1}}]}, "networks[0].weights"),
    ({"networks": [{"network": WEB, "weights": {"blue": 1}}] * 2}, "networks[1]"),
    ({"networks": [{"network": WEB, "weights": {"blue": 1}, "affinity": 7}]}, "networks[0].affinity"),
    ({"networks": [{"network": WEB, "weights": {"blue": 1}}], "on_open": 9}, "on_open"),
    ({"networks": [{"network": WEB, "weights": {"blue": 1}}], "on_open": "ON_OPEN_DRAIN"}, "drain_timeout"),
    ({"networks": [{"network": WEB, "weights": {"blue": 1}}], "drain_timeout": {"seconds": 5}}, "drain_timeout"),
]


async def test_requests_that_are_refused() -> None:
    async with writing() as site:
        one = await two_networks(site)
        for body, field in _BAD:
            request = split_pb2.SetWeightsRequest(parent="tenants/acme", **body)
            error = await refusal(one.splits.SetWeights(request, None))
            assert isinstance(error, Invalid), (body, error)
            assert field in [violation.field for violation in error.violations], (body, error)
        await one.network("acme/plain", cidrs=["10.0.2.0/24"])
        error = await refusal(one.weights("acme/plain blue=1"))
        assert error.reason == "NO_COLORS" and "teal color add acme/plain" in error.text
        assert isinstance(await refusal(one.weights("acme/none blue=1")), NotFound)


async def test_a_color_needs_an_active_port() -> None:
    async with writing() as site:
        one = await two_networks(site)
        error = await refusal(one.weights("acme/web blue=95 green=5"))
        assert isinstance(error, FailedPrecondition) and error.reason == "COLOR_EMPTY"
        host = await one.host("h1")
        port = await one.port("acme/g", color="green", host="hosts/h1")
        error = await refusal(one.weights("acme/web blue=95 green=5"))
        assert error.reason == "COLOR_NOT_ACTIVE" and "1 UNKNOWN" in error.text
        wanted = one.api.presenter.status.resources
        wanted.collect()
        version = wanted.scope(f"host/{host.uid}").chunks[f"localport/{port.uid}"].version
        status = store_pb2.PortStatusRow(host_uid=host.uid, applied=version, tried=version).SerializeToString()
        session = store_pb2.Session(replica="replica-0", session="s").SerializeToString()
        keys = one.store.keys
        done = await site.etcd.txn((), [put(keys.port_status(port.uid), status), put(keys.session(host.uid), session)])
        await one.store.passed(done.revision)
        await one.weights("acme/web blue=95 green=5")
        # Less for a color is always possible, and what has no more than before is not asked about.
        await one.weights("acme/web blue=9 green=91")
        error = await refusal(one.weights("acme/web blue=10 green=90"))
        assert error.reason == "COLOR_EMPTY" and "color blue" in error.text


async def test_another_replica_knows_at_once_what_was_made() -> None:
    async with writing(replicas=2) as site:
        one, two = site.replicas
        await two_networks(site)
        for number in range(20):
            await one.network(f"acme/n{number}", cidrs=["10.0.0.0/24"], colors=["blue", "green"])
            await one.port(f"acme/p{number}", f"n{number}", color="green")
            error = await refusal(two.weights(f"acme/n{number} green=1"))
            assert error.reason == "COLOR_NOT_ACTIVE", error


async def test_etag_and_request_id() -> None:
    async with writing() as site:
        one = await two_networks(site)
        first = await one.split("acme/web")
        request = split_pb2.SetWeightsRequest(parent="tenants/acme", force=True, request_id="r1")
        request.networks.add(network=WEB, weights={"green": 1}, etag=first.etag)
        done = await one.splits.SetWeights(request, None)
        again = await one.splits.SetWeights(request, None)
        assert again == done
        await one.weights("acme/web blue=1", force=True)
        request.request_id = ""
        assert isinstance(await refusal(one.splits.SetWeights(request, None)), Aborted)
        request.request_id = "r1"
        assert dict((await one.splits.SetWeights(request, None)).splits[0].weights) == {"blue": 1, "green": 0}
        request.networks[0].weights["blue"] = 7
        assert (await refusal(one.splits.SetWeights(request, None))).reason == "REQUEST_ID_REUSED"


async def test_validate_only() -> None:
    async with writing() as site:
        one = await two_networks(site)
        before = await one.split("acme/web")
        answer = await one.weights("acme/web green=1", force=True, validate_only=True)
        assert dict(answer.splits[0].weights) == {"green": 1, "blue": 0}
        assert await one.split("acme/web") == before


async def test_a_rollout_keeps_others_out() -> None:
    async with writing() as site:
        one = await two_networks(site)
        uid = one.store.world.networks.rows[WEB].uid
        holder = store_pb2.Holder(name="tenants/acme/rollouts/r1", uid="1" * 32).SerializeToString()
        await site.etcd.txn((), [put(one.store.keys.rollout_of(uid), holder)])
        error = await refusal(one.weights("acme/db blue=1", "acme/web blue=1", force=True))
        assert isinstance(error, FailedPrecondition) and error.reason == "ROLLOUT_ACTIVE"
        assert "tenants/acme/rollouts/r1" in error.text and "teal rollout" in error.text


async def test_open_connections() -> None:
    """CUT closes, DRAIN closes later, KEEP changes nothing; weight opens again."""
    async with writing() as site:
        one = await two_networks(site)

        async def states(words: str, **more: Any) -> dict[str, str]:
            answer = await one.weights(words, force=True, **more)
            state = split_pb2.ColorStatus.State.Name
            return {c.color: state(c.state).removeprefix("STATE_") for c in answer.splits[0].colors}

        drain = {"on_open": "ON_OPEN_DRAIN", "drain_timeout": {"seconds": 60}}
        assert await states("acme/db green=1") == {"blue": "IDLE", "green": "OPEN", "red": "IDLE"}
        assert await states("acme/db green=1", **drain) == {"blue": "DRAINING", "green": "OPEN", "red": "DRAINING"}
        assert await states("acme/db green=1 red=1") == {"blue": "DRAINING", "green": "OPEN", "red": "OPEN"}
        assert await states("acme/db green=1", on_open="ON_OPEN_CUT") == {
            "blue": "CLOSED", "green": "OPEN", "red": "CLOSED",
        }  # fmt: skip
        assert await states("acme/db green=1", **drain) == {"blue": "CLOSED", "green": "OPEN", "red": "CLOSED"}
        assert await states("acme/db blue=1") == {"blue": "OPEN", "green": "IDLE", "red": "CLOSED"}
        assert list((await one.split("acme/db")).closed) == ["red"]


async def test_affinity() -> None:
    async with writing() as site:
        one = await two_networks(site)
        assert (await one.split("acme/web")).affinity == split_pb2.AFFINITY_CONNECTION
        request = split_pb2.SetWeightsRequest(parent="tenants/acme", force=True)
        request.networks.add(network=WEB, weights={"blue": 1}, affinity="AFFINITY_SOURCE")
        await one.splits.SetWeights(request, None)
        assert (await one.weights("acme/web blue=1", force=True)).splits[0].affinity == split_pb2.AFFINITY_SOURCE


async def test_drains_end() -> None:
    """The leader closes what is due, fenced by its term; whoever is not the leader any more changes nothing."""
    async with writing() as site:
        one = await two_networks(site)
        events = Events(site.etcd, one.store.keys)
        chores = one.store.keys.chores
        begin = await one.weights(
            "acme/web green=1", force=True, on_open="ON_OPEN_DRAIN", drain_timeout={"nanos": 50_000_000}
        )
        over = Drains(one.store, absent(one.store.keys.domain_prefix + b"x"), events)
        await site.etcd.txn((), [put(chores, b"another")])
        fenced = Drains(one.store, absent(chores), events)
        await over.step()
        await fenced.step()
        assert (await one.split("acme/web")).revision == begin.revision, "not before its time"
        deadline = time.monotonic() + 5
        while not (await one.split("acme/web")).closed:
            assert time.monotonic() < deadline
            await fenced.step()
            if time.monotonic() > deadline - 4.5:
                await over.step()
        split = await one.split("acme/web")
        assert list(split.closed) == ["blue"] and not split.drains and split.revision > begin.revision
        assert dict(split.weights) == {"blue": 0, "green": 1}
        (event,) = [e for e in await events.read(one.store.world.networks.rows[WEB].uid) if e.reason == "ColorClosed"]
        assert event.name == SPLIT


async def test_a_new_leader_counts_from_when_it_first_saw_the_drain() -> None:
    async with writing() as site:
        one = await two_networks(site)
        timeout = 0.05
        await one.weights(
            "acme/web green=1", force=True, on_open="ON_OPEN_DRAIN", drain_timeout={"nanos": int(timeout * 1e9)}
        )
        begin = time.monotonic()
        while time.monotonic() < begin + timeout:
            await one.store.barrier()
        late = Drains(one.store, absent(one.store.keys.domain_prefix), Events(site.etcd, one.store.keys))
        begin = time.monotonic()
        await late.step()
        assert not (await one.split("acme/web")).closed
        while not (await one.split("acme/web")).closed:
            assert time.monotonic() < begin + 5
            await late.step()
        assert time.monotonic() - begin >= timeout


async def test_events_of_the_network_tell_its_weights() -> None:
    async with writing() as site:
        one = await two_networks(site)
        await one.weights("acme/web blue=95 green=5", force=True, on_open="ON_OPEN_CUT")
        found = await Events(site.etcd, one.store.keys).read(one.store.world.networks.rows[WEB].uid)
        (event,) = [e for e in found if e.reason == "WeightsSet"]
        assert (event.name, event.actor) == (SPLIT, "admin")
        assert "blue=95 green=5" in event.text


async def test_a_step_of_a_rollout_writes_the_split() -> None:
    async with writing() as site:
        one = await two_networks(site)
        await one.weights("acme/db blue=1", force=True, on_open="ON_OPEN_DRAIN", drain_timeout={"seconds": 60})
        world, key = one.store.world, one.store.keys.intent(f"{DB}/trafficSplit")
        row = world.splits.rows[f"{DB}/trafficSplit"]
        assert {drain.color for drain in row.spec.drains} == {"green", "red"}
        value = split_value(row, weights={"green": 3, "red": 0}, closed={"blue", "green"}, apply_at=7, write_id=b"w")
        done = await site.etcd.txn((), [put(key, value)])
        await one.store.passed(done.revision)
        spec = world.splits.rows[f"{DB}/trafficSplit"].spec
        assert (spec.weights, spec.closed, spec.drains, spec.apply_at) == ((("green", 3),), ("blue",), (), 7)
        assert (await one.weights("acme/db red=1", force=True)).splits[0].HasField("apply_at") is False


async def test_plan_does_not_take_splits() -> None:
    async with writing() as site:
        one = await two_networks(site)
        item = system_pb2.PlanItem(object=system_pb2.Object(split={"name": SPLIT, "weights": {"blue": 1}}))
        answer = await one.api.planner.plan(system_pb2.PlanRequest(items=[item]))
        assert "SetWeights" in answer.results[0].error.message


async def test_a_plan_of_colors_and_their_ports() -> None:
    async with writing() as site:
        one = await two_networks(site)
        item = system_pb2.PlanItem
        network = {"name": "tenants/acme/networks/new", "cidrs": ["10.0.5.0/24"], "colors": ["blue", "green"]}
        items = [item(object=system_pb2.Object(network=network))]
        for color in ("green", "red"):
            port = {"name": f"tenants/acme/ports/{color}", "network": network["name"], "color": color}
            items.append(item(object=system_pb2.Object(port=port)))
        in_use = {"name": DB, "colors": ["red"]}
        items.append(item(object=system_pb2.Object(network=in_use), update_mask={"paths": ["colors"]}))
        made, green, red, refused = (await one.api.planner.plan(system_pb2.PlanRequest(items=items))).results
        assert made.action == green.action == system_pb2.PlanResult.ACTION_CREATE
        assert green.after.port.color == "green"
        assert "no color of" in red.error.message
        assert "set-weights" in refused.error.message


async def test_whose_weights_they_are() -> None:
    async with writing() as site:
        one = await two_networks(site)
        become(Kind.TENANT_ADMIN, "acme")
        assert (await one.weights("acme/web green=1", force=True)).splits
        network = await one.splits.GetTrafficSplit(split_pb2.GetTrafficSplitRequest(name=SPLIT), None)
        assert network.colors[0].color == "blue"
        become(Kind.TENANT_ADMIN, "globex")
        assert isinstance(await refusal(one.split("acme/web")), NotFound)
        listed = await one.splits.ListTrafficSplits(split_pb2.ListTrafficSplitsRequest(parent="tenants/-"), None)
        assert not listed.splits


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8))
def test_slots(weights: list[int]) -> None:
    shares = slots(weights)
    total = sum(weights)
    assert sum(shares) == (SLOTS if total else 0)
    for weight, share in zip(weights, shares, strict=True):
        assert abs(share - weight * SLOTS / (total or 1)) < 1
        assert (share > 0) or weight * SLOTS < total or not weight


@pytest.mark.parametrize(
    ("weights", "shares"), [([1, 1, 1], [86, 85, 85]), ([95, 5], [243, 13]), ([99, 1], [253, 3]), ([0, 7], [0, 256])]
)
def test_slots_of(weights: list[int], shares: list[int]) -> None:
    assert slots(weights) == shares
