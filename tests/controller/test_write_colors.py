"""Colors of live networks: naming, adding, taking out, numbers in a routing domain, ports in a color."""

from __future__ import annotations

from typing import Any

import pytest

from controller.caller import current_caller
from controller.errors import ApiError, FailedPrecondition, Invalid, NotFound
from controller.features.colors_check import numbered
from controller.watch import Interest, Watches
from tealnet.v1 import network_pb2, port_pb2, system_pb2
from tests.controller.consistent import inconsistencies
from tests.controller.writing import Replicated, Writing, refusal, writing

WEB = "tenants/acme/networks/web"


async def acme(site: Writing) -> Replicated:
    await site.one.tenant("acme")
    return site.one


def segments(one: Replicated, name: str = WEB) -> dict[str, tuple[str, int, int]]:
    """Uid, VNI and number by color."""
    found = one.store.world.networks.rows[name].spec.segments
    return {s.color: (s.uid, s.vni, s.color_number) for s in found}


async def test_naming_changes_one_row_and_back() -> None:
    """The base segment gets a name and loses it: same uid, VNI, ports, references."""
    async with writing() as site:
        one = await acme(site)
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        port = await one.port("acme/p", addresses=["10.0.0.5"])
        before, rows, references = segments(one), dict(one.store.world.ports.rows), await site.keys("k/r")
        named = await one.colors("acme/web", "blue", "green")
        assert list(named.colors) == ["blue", "green"]
        now = segments(one)
        assert now["blue"][:2] == before["base"][:2] and now["blue"][2] and now["green"][2] != now["blue"][2]
        assert one.store.world.ports.rows == rows
        assert await site.keys("k/r") == references
        got = await one.ports.GetPort(port_pb2.GetPortRequest(name=port.name), None)
        assert (got.color, got.etag) == ("blue", port.etag)
        split = await one.split("acme/web")
        assert dict(split.weights) == {"blue": 100, "green": 0}
        assert await inconsistencies(one.store) == []

        error = await refusal(one.colors("acme/web"))
        assert isinstance(error, FailedPrecondition) and error.reason == "COLORS_LEFT"
        await one.colors("acme/web", "blue")
        unnamed = await one.colors("acme/web")
        assert not unnamed.colors
        assert segments(one) == {"base": (*before["base"][:2], 0)}
        assert one.store.world.ports.rows == rows
        none = await refusal(one.split("acme/web"))
        assert isinstance(none, NotFound) and f"{WEB} has no colors: `teal color add acme/web COLOR`" in none.text
        nowhere = await refusal(one.split("acme/nope"))
        assert isinstance(nowhere, NotFound) and nowhere.text == "tenants/acme/networks/nope/trafficSplit not found"
        assert not await site.keys("w/o/split")
        assert await inconsistencies(one.store) == []


async def test_twins() -> None:
    """Addresses and MACs are unique in a color: green may be a perfect twin of blue."""
    async with writing() as site:
        one = await acme(site)
        await one.network("acme/web", cidrs=["10.0.0.0/24", "fd00::/64"], colors=["blue", "green"])
        addresses = ["10.0.0.5", "fd00::5"]
        blue = await one.port("acme/web-blue", color="blue", addresses=addresses)
        green = await one.port("acme/web-green", color="green", addresses=addresses)
        assert (blue.color, green.color) == ("blue", "green")
        assert blue.mac == green.mac
        error = await refusal(one.port("acme/other", color="green", addresses=["10.0.0.5"]))
        assert error.reason == "ADDRESS_IN_USE" and "web-green" in error.text
        given = "02:00:00:00:00:07"
        await one.port("acme/m1", color="blue", mac=given)
        await one.port("acme/m2", color="green", mac=given)
        assert (await refusal(one.port("acme/m3", color="green", mac=given))).reason == "MAC_IN_USE"
        network = await one.networks.GetNetwork(network_pb2.GetNetworkRequest(name=WEB), None)
        usage = [(a.cidr, a.color, a.used) for a in network.status.addresses]
        assert usage == [
            ("10.0.0.0/24", "blue", 2), ("fd00::/64", "blue", 2),
            ("10.0.0.0/24", "green", 2), ("fd00::/64", "green", 2),
        ]  # fmt: skip
        assert await inconsistencies(one.store) == []


async def test_addresses_are_exhausted_and_in_quarantine_by_color() -> None:
    async with writing() as site:
        one = await acme(site)
        await one.network("acme/web", cidrs=["10.0.0.0/29"], colors=["blue", "green"])
        for number in range(5):
            await one.port(f"acme/b{number}", color="blue")
        await one.delete_port("tenants/acme/ports/b4")
        error = await refusal(one.port("acme/more", color="blue"))
        assert error.reason == "ADDRESSES_EXHAUSTED"
        assert f"color blue of {WEB}" in error.text and "4 are held by ports" in error.text, error.text
        assert "1 in quarantine" in error.text
        assert [len((await one.port(f"acme/g{number}", color="green")).addresses) for number in range(5)] == [1] * 5


async def test_which_color_a_port_is_of() -> None:
    async with writing() as site:
        one = await acme(site)
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        error = await refusal(one.port("acme/p", color="blue"))
        assert isinstance(error, Invalid) and "has no colors" in error.text
        await one.colors("acme/web", "blue")
        only = await one.port("acme/p")  # there is only one: it need not be said
        assert only.color == "blue"
        await one.colors("acme/web", "blue", "green")
        for body in ({}, {"color": "red"}, {"color": "Not A Name"}):
            error = await refusal(one.port("acme/q", **body))
            assert isinstance(error, Invalid)
            assert error.violations[0].field == "port.color"
        assert "blue, green" in (await refusal(one.port("acme/q", color="red"))).text
        error = await refusal(one.update_port(only.name, "color", color="green"))
        assert isinstance(error, Invalid) and "it is 'blue'" in error.text
        same = await one.update_port(only.name, "color", color="blue")
        assert same.etag == only.etag and same.revision == only.revision
        listed = port_pb2.ListPortsRequest(parent="tenants/acme", filter="color=blue")
        assert [p.name for p in (await one.ports.ListPorts(listed, None)).ports] == [only.name]


_BAD: list[tuple[dict[str, Any], str]] = [
    ({"colors": ["base"]}, "network.colors[0]"),
    ({"colors": ["Blue"]}, "network.colors[0]"),
    ({"colors": ["blue", "blue"]}, "network.colors[1]"),
    ({"colors": [f"c{n}" for n in range(9)]}, "network.colors"),
    ({"colors": ["blue"], "initial_weights": {"red": 1}}, "network.initial_weights"),
    ({"colors": ["blue", "green"], "initial_weights": {"blue": 0}}, "network.initial_weights"),
    ({"colors": ["blue", "green"], "initial_weights": {"blue": 256, "green": 1}}, "network.initial_weights"),
    ({"colors": ["blue", "green"], "initial_weights": {"blue": 1_000_001}}, "network.initial_weights"),
]


async def test_fields_that_are_refused() -> None:
    async with writing() as site:
        one = await acme(site)
        for body, field in _BAD:
            error = await refusal(one.network("acme/web", cidrs=["10.0.0.0/24"], **body))
            assert isinstance(error, Invalid), (body, error)
            assert field in [violation.field for violation in error.violations], (body, error)
        assert not await site.keys("w/o/network")
        assert not await site.keys("k/u/vni")


async def test_initial_weights_are_read_once() -> None:
    async with writing() as site:
        one = await acme(site)
        body = {"colors": ["blue", "green"], "initial_weights": {"blue": 255, "green": 1}}
        await one.network("acme/web", cidrs=["10.0.0.0/24"], **body)
        split = await one.split("acme/web")
        assert dict(split.weights) == {"blue": 255, "green": 1}
        assert [(c.color, c.slots) for c in split.colors] == [("blue", 255), ("green", 1)]
        await one.weights("acme/web green=100", force=True)
        moved = await one.split("acme/web")
        # Applying yesterday's file never moves traffic (A10).
        await one.update_network(WEB, "colors", "initial_weights", **body)
        await one.update_network(WEB, "initial_weights", initial_weights={"blue": 1})
        assert await one.split("acme/web") == moved


async def test_a_live_network_begins_with_all_traffic_where_it_was() -> None:
    async with writing() as site:
        one = await acme(site)
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        await one.port("acme/p")
        weights = {"initial_weights": {"blue": 95, "green": 5}}
        error = await refusal(one.colors("acme/web", "blue", "green", **weights))
        assert isinstance(error, Invalid) and "green has no ports yet" in error.text
        assert (await one.colors("acme/web", "blue", "green")).colors == ["blue", "green"]


async def test_a_color_in_use_stays() -> None:
    async with writing() as site:
        one = await acme(site)
        await one.network("acme/web", cidrs=["10.0.0.0/24"], colors=["blue", "green", "red"])
        before = segments(one)
        await one.port("acme/g", color="green")
        error = await refusal(one.colors("acme/web", "blue", "red"))
        assert isinstance(error, FailedPrecondition) and error.reason == "COLOR_IN_USE"
        assert "tenants/acme/ports/g" in error.text and "delete" in error.text
        error = await refusal(one.colors("acme/web", "green", "red"))
        assert error.reason == "COLOR_HAS_WEIGHT" and "teal color set-weights acme/web COLOR=100" in error.text
        await one.weights("acme/web blue=90 red=10", force=True)
        error = await refusal(one.colors("acme/web", "blue", "green"))
        assert error.reason == "COLOR_HAS_WEIGHT" and "teal color set-weights acme/web blue=90" in error.text
        epoch = (await one.weights("acme/web blue=100", force=True)).revision
        await one.delete_port("tenants/acme/ports/g")
        await one.colors("acme/web", "blue", "red")
        assert (await one.split("acme/web")).revision == epoch  # the others' weights are not touched
        await one.colors("acme/web", "blue", "green", "red")  # of the same name, but another one
        now = segments(one)
        assert now["blue"] == before["blue"] and now["red"] == before["red"]
        assert now["green"][0] != before["green"][0] and now["green"][1] != before["green"][1]
        assert now["green"][2] == before["green"][2]  # by its name
        assert await inconsistencies(one.store) == []


async def test_a_color_that_goes_takes_its_closing_along() -> None:
    async with writing() as site:
        one = await acme(site)
        await one.network("acme/web", cidrs=["10.0.0.0/24"], colors=["blue", "green"])
        await one.weights("acme/web green=1", force=True, on_open="ON_OPEN_CUT")
        assert list((await one.split("acme/web")).closed) == ["blue"]
        await one.colors("acme/web", "green")
        await one.colors("acme/web", "green", "blue")
        assert not (await one.split("acme/web")).closed


def test_numbers() -> None:
    fresh = numbered(["blue", "green"], own={}, domain={})
    assert fresh == {"blue": 4, "green": 1}, "by their names, in any domain"
    assert numbered(["old"], own={}, domain={"blue": 4}) == {"old": 5}, "the next one that is free"
    assert numbered(["blue"], own={"blue": 2}, domain={"green": 1}) == {"blue": 2}, "as it is, where it can stay"
    assert numbered(["blue"], own={"blue": 2}, domain={"green": 2}) == {"blue": 4}
    assert numbered(["blue", "red"], own={"blue": 1, "red": 7}, domain={"blue": 7}) == {"blue": 7, "red": 4}
    eight = {f"c{n}": n for n in range(1, 9)}
    assert numbered(["c3"], own={"c3": 1}, domain=eight) == {"c3": 3}
    assert numbered(["blue"], own={}, domain=eight) is None


async def test_the_numbers_of_a_routing_domain() -> None:
    """The same name has the same number in all networks of a router, also after attaching and detaching."""
    async with writing() as site:
        one = await acme(site)
        router = "tenants/acme/routers/main"
        await one.router("acme/main")
        # In its own domain `old` takes 4, so `blue`, whose number by name that is, gets another.
        await one.network("acme/web", cidrs=["10.0.0.0/24"], colors=["old", "blue"])
        await one.network("acme/db", cidrs=["10.0.1.0/24"], colors=["blue", "green"], router=router)
        web, db = segments(one), segments(one, "tenants/acme/networks/db")
        assert (web["old"][2], web["blue"][2]) == (4, 5) and (db["blue"][2], db["green"][2]) == (4, 1)
        await one.update_network(WEB, "router", router=router)
        web = segments(one)
        assert web["blue"][2] == db["blue"][2] == 4 and web["old"][2] not in (1, 4)
        assert segments(one, "tenants/acme/networks/db") == db, "those that are there keep theirs"
        await one.update_network(WEB, "router")
        assert segments(one) == web, "a number that need not change does not"
        await one.update_network(WEB, "router", "colors", router=router, colors=["old", "blue", "green"])
        assert segments(one)["green"][2] == 1
        assert await inconsistencies(one.store) == []


async def test_eight_colors_in_a_routing_domain() -> None:
    async with writing() as site:
        one = await acme(site)
        router = "tenants/acme/routers/main"
        await one.router("acme/main")
        eight = [f"c{n}" for n in range(8)]
        await one.network("acme/web", cidrs=["10.0.0.0/24"], colors=eight, router=router)
        await one.network("acme/db", cidrs=["10.0.1.0/24"], colors=eight[:2], router=router)
        error = await refusal(one.network("acme/c", cidrs=["10.0.2.0/24"], colors=["c1", "ninth"], router=router))
        assert isinstance(error, FailedPrecondition) and error.reason == "TOO_MANY_COLORS"
        assert WEB in {b.subject for b in error.blockers} and "ninth" in error.text
        assert (await refusal(one.colors("acme/db", "c0", "c1", "ninth"))).reason == "TOO_MANY_COLORS"
        await one.network("acme/own", cidrs=["10.0.2.0/24"], colors=["ninth"])
        own = "tenants/acme/networks/own"
        assert (await refusal(one.update_network(own, "router", router=router))).reason == "TOO_MANY_COLORS"
        assert await inconsistencies(one.store) == []


async def test_vnis_are_issued_and_released() -> None:
    async with writing(vni_first=5000, vni_last=5002) as site:
        one = await acme(site)
        await one.network("acme/web", cidrs=["10.0.0.0/24"], colors=["blue", "green"])
        assert {vni for _, vni, _ in segments(one).values()} < {5000, 5001, 5002}
        error = await refusal(one.colors("acme/web", "blue", "green", "red", "teal"))
        assert error.reason == "POOL_EXHAUSTED" and "VNI of " in error.text
        await one.colors("acme/web", "blue")
        await one.colors("acme/web", "blue", "red")  # the last one that is free: green's is only released
        assert (await refusal(one.network("acme/db", cidrs=["10.0.0.0/24"]))).reason == "POOL_EXHAUSTED"
        await one.delete_network(WEB)
        released = await site.keys("k/u/vni")
        assert len(released) == 3
        assert not await site.keys("w/o/split")


async def test_watchers_hear_of_it() -> None:
    """A port's color is its segment's, and a split shows all colors: both are told when the network changes."""
    async with writing() as site:
        one = await acme(site)
        await one.network("acme/web", cidrs=["10.0.0.0/24"])
        await one.port("acme/p")
        watches, caller = Watches(one.store), current_caller()
        interest = Interest("tenants/acme", frozenset(), lambda _: True, lambda *_: True, spec_only=False)
        stream = watches.watch(interest, 0, lambda kind, row: one.api.presenter.render(kind, row, caller))
        kind = system_pb2.WatchResponse
        while (await anext(stream)).type != kind.TYPE_SYNCED:
            pass

        async def told(count: int) -> dict[str, Any]:
            found = [await anext(stream) for _ in range(count)]
            return {str(r.object.WhichOneof("object")): (r.type, r.object) for r in found}

        await one.colors("acme/web", "blue")
        heard = await told(3)
        assert {what: change for what, (change, _) in heard.items()} == {
            "network": kind.TYPE_MODIFIED, "split": kind.TYPE_ADDED, "port": kind.TYPE_MODIFIED,
        }  # fmt: skip
        assert heard["port"][1].port.color == "blue"
        await one.colors("acme/web", "blue", "green")
        heard = await told(2)
        assert dict(heard["split"][1].split.weights) == {"blue": 100, "green": 0}
        await one.weights("acme/web blue=1 green=1", force=True)
        assert dict((await told(1))["split"][1].split.weights) == {"blue": 1, "green": 1}
        await stream.aclose()


async def test_delete_with_everything() -> None:
    async with writing() as site:
        one = await acme(site)
        await one.network("acme/web", cidrs=["10.0.0.0/24"], colors=["blue", "green"])
        for color in ("blue", "green"):
            await one.port(f"acme/{color}", color=color, addresses=["10.0.0.5"])
        error = await refusal(one.delete_network(WEB))
        assert isinstance(error, FailedPrecondition) and error.reason == "IN_USE"
        await one.delete_network(WEB, force=True)
        assert not await site.keys("w/o/split") and not await site.keys("k/r/segment")
        assert await inconsistencies(one.store) == []


async def test_a_batch_in_two_colors() -> None:
    async with writing() as site:
        one = await acme(site)
        await one.network("acme/web", cidrs=["10.0.0.0/24"], colors=["blue", "green"])
        request = port_pb2.BatchCreatePortsRequest(parent="tenants/acme")
        for number in range(20):
            for color in ("blue", "green", "red"):
                port = port_pb2.Port(network=WEB, color=color, addresses=[f"10.0.0.{number + 2}"])
                request.requests.add(port_id=f"{color}-{number}", port=port)
        answer = await one.ports.BatchCreatePorts(request, None)
        made = [result.port for result in answer.results if result.HasField("port")]
        assert len(made) == 40 and {port.color for port in made} == {"blue", "green"}
        assert len({port.mac for port in made}) == 20
        assert sum(result.HasField("error") for result in answer.results) == 20
        assert await inconsistencies(one.store) == []


@pytest.mark.parametrize("new", [["green"], ["green", "blue"], ["blue", "green", "red"]])
async def test_validate_only_writes_nothing(new: list[str]) -> None:
    async with writing() as site:
        one = await acme(site)
        await one.network("acme/web", cidrs=["10.0.0.0/24"], colors=["blue"])
        before = await site.keys("")
        request = network_pb2.UpdateNetworkRequest(network={"name": WEB, "colors": new}, validate_only=True)
        try:
            answer = await one.networks.UpdateNetwork(request, None)
            assert list(answer.colors) == new
        except ApiError as error:
            assert error.reason == "COLOR_HAS_WEIGHT"
        after = await site.keys("")
        assert {k: v for k, v in after.items() if not k.startswith(("w/b", "w/s"))} == {
            k: v for k, v in before.items() if not k.startswith(("w/b", "w/s"))
        }
