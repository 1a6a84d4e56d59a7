"""Colors under races of two replicas: etcd decides, and what is left is whole."""

from __future__ import annotations

import asyncio
from typing import Any

from controller.errors import Aborted, ApiError, FailedPrecondition, Invalid, NotFound
from tests.controller.consistent import inconsistencies
from tests.controller.writing import Replicated, outcome, writing


def name(ident: str) -> str:
    return f"tenants/acme/networks/{ident}"


async def known(answer: Any, replica: Replicated) -> None:
    await replica.store.passed(answer.revision)


async def test_a_color_goes_while_a_port_comes_into_it() -> None:
    async with writing(replicas=2) as site:
        one, two = site.replicas
        await one.tenant("acme")
        both_refused = created = 0
        for number in range(100):
            ident = f"n{number}"
            await known(await one.network(f"acme/{ident}", cidrs=["10.0.0.0/24"], colors=["blue", "green"]), two)
            port, removed = await asyncio.gather(
                outcome(two.port(f"acme/p{number}", ident, color="green")), outcome(one.colors(f"acme/{ident}", "blue"))
            )
            if isinstance(port, ApiError):
                assert isinstance(port, Invalid), port
                both_refused += isinstance(removed, ApiError)
            else:
                assert isinstance(removed, FailedPrecondition) and removed.reason == "COLOR_IN_USE", removed
                created += 1
        assert await inconsistencies(one.store) == []
        rows, networks = one.store.world.ports.rows.values(), one.store.world.networks.rows
        assert all(networks[row.spec.network].spec.color_of(row.spec.segment_uid) == "green" for row in rows)
        assert (both_refused, len(rows)) == (0, created)


async def test_eight_names_from_two_sides() -> None:
    """Two networks bring five names each into one router: one of them stays out."""
    async with writing(replicas=2) as site:
        one, two = site.replicas
        await one.tenant("acme")
        for number in range(30):
            router = await one.router(f"acme/r{number}")
            await known(router, two)
            first, second = ({"router": router.name, "colors": list(colors)} for colors in ("abcde", "vwxyz"))
            results = await asyncio.gather(
                outcome(one.network(f"acme/a{number}", cidrs=["10.0.0.0/24"], **first)),
                outcome(two.network(f"acme/b{number}", cidrs=["10.0.1.0/24"], **second)),
            )
            (refused,) = [result for result in results if isinstance(result, ApiError)]
            assert isinstance(refused, FailedPrecondition) and refused.reason == "TOO_MANY_COLORS"
        assert await inconsistencies(one.store) == []


async def test_attach_against_add() -> None:
    """One network comes to a router with a new name while another gets a new name there: one number for each."""
    async with writing(replicas=2) as site:
        one, two = site.replicas
        await one.tenant("acme")
        for number in range(40):
            router = await one.router(f"acme/r{number}")
            here = {"cidrs": ["10.0.0.0/24"], "router": router.name, "colors": ["blue"]}
            await one.network(f"acme/a{number}", **here)
            # `new` has the number that is left for `red` where there is `blue`.
            await known(await one.network(f"acme/b{number}", cidrs=["10.0.1.0/24"], colors=["new"]), two)
            results = await asyncio.gather(
                outcome(one.colors(f"acme/a{number}", "blue", "red", "green")),
                outcome(two.update_network(name(f"b{number}"), "router", router=router.name)),
            )
            assert not [result for result in results if isinstance(result, ApiError)], results
        assert await inconsistencies(one.store) == []
        assert await inconsistencies(two.store) == []


async def test_a_color_goes_while_weight_comes_to_it() -> None:
    async with writing(replicas=2) as site:
        one, two = site.replicas
        await one.tenant("acme")
        for number in range(60):
            ident = f"acme/n{number}"
            await known(await one.network(ident, cidrs=["10.0.0.0/24"], colors=["blue", "green"]), two)
            weighed, removed = await asyncio.gather(
                outcome(two.weights(f"{ident} blue=1 green=1", force=True)), outcome(one.colors(ident, "blue"))
            )
            if isinstance(weighed, ApiError):
                assert isinstance(weighed, Invalid) and removed.colors == ["blue"], (weighed, removed)
            else:
                assert isinstance(removed, FailedPrecondition) and removed.reason == "COLOR_HAS_WEIGHT", removed
        assert await inconsistencies(one.store) == []


async def test_a_base_is_named_while_ports_come_and_go() -> None:
    """Nobody is refused: a port that names no color is of the one segment, whatever it is called."""
    async with writing(replicas=2) as site:
        one, two = site.replicas
        await one.tenant("acme")
        for number in range(40):
            ident = f"n{number}"
            await one.network(f"acme/{ident}", cidrs=["10.0.0.0/24"])
            await known(await one.port(f"acme/old{number}", ident), two)
            results = await asyncio.gather(
                outcome(one.colors(f"acme/{ident}", "blue")),
                outcome(two.port(f"acme/new{number}", ident)),
                outcome(two.delete_port(f"tenants/acme/ports/old{number}")),
            )
            assert not [result for result in results if isinstance(result, ApiError)], results
            unnamed, weighed = await asyncio.gather(
                outcome(one.colors(f"acme/{ident}")), outcome(two.weights(f"acme/{ident} blue=7", force=True))
            )
            assert not isinstance(unnamed, ApiError), unnamed
            assert not isinstance(weighed, ApiError) or weighed.reason == "NO_COLORS", weighed
        assert await inconsistencies(one.store) == []
        assert not await site.keys("w/o/split")


async def test_a_network_goes_while_its_weights_change() -> None:
    async with writing(replicas=2) as site:
        one, two = site.replicas
        await one.tenant("acme")
        for number in range(40):
            ident = f"acme/n{number}"
            await known(await one.network(ident, cidrs=["10.0.0.0/24"], colors=["blue", "green"]), two)
            weighed, gone = await asyncio.gather(
                outcome(two.weights(f"{ident} green=1", force=True)), outcome(one.delete_network(name(f"n{number}")))
            )
            assert gone is None, gone
            assert not isinstance(weighed, ApiError) or isinstance(weighed, NotFound), weighed
        assert await inconsistencies(one.store) == []
        assert not await site.keys("w/o/split")


async def test_weights_of_two_networks_from_two_sides() -> None:
    """Both networks always have the weights of one and the same call."""
    async with writing(replicas=2) as site:
        one, two = site.replicas
        await one.tenant("acme")
        for ident in ("web", "db"):
            await known(await one.network(f"acme/{ident}", cidrs=["10.0.0.0/24"], colors=["blue", "green"]), two)

        async def flip(replica: Replicated, color: str) -> None:
            for number in range(1, 60):
                both = [f"acme/{ident} {color}={number}" for ident in ("web", "db")]
                answer = await outcome(replica.weights(*both, force=True))
                # Who loses again and again is told so (A5).
                assert not isinstance(answer, ApiError) or isinstance(answer, Aborted), answer

        torn: list[Any] = []

        def look(_: int, __: Any) -> None:
            web, db = (row.spec.weights for row in one.store.world.splits.rows.values())
            if web != db:
                torn.append((web, db))

        one.store.subscribe(look)
        await asyncio.gather(flip(one, "blue"), flip(two, "green"))
        assert not torn
