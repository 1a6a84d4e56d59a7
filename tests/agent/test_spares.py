"""Links made in advance: which port takes one over, how many there are, and what a new process makes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest

from agent import names
from agent.facts import Facts
from agent.features.spares import spare_link
from agent.inputs import THIS, Inputs, This
from agent.layer import Layer
from agent.objects import Guard, Link, Marks, Namespace, OvsPort
from agent.spares import Spares
from tealnet.core.delta import Delta
from tealnet.core.rows.stream import Attach, LocalPort, Segment
from tealnet.core.tables import Graph
from tests.agent.core_rig import until
from tests.fakes.device import DictDevice

MTU, SIZE = 1430, 4
HERE = This("h" * 32, 1, ip_address("192.0.2.1"), "netdev", "br-int", "vxlan0", 1, 4789)


def port(number: int, *, kind: Attach = Attach.NETNS, where: str = "", vni: int = 1) -> LocalPort:
    return LocalPort(
        uid=f"{number:032x}",
        vni=vni,
        addresses=(ip_address(f"10.0.0.{number}"),),
        mac=f"02:00:00:00:00:{number:02x}",
        identity=1,
        sources=(),
        tenant="acme",
        name=f"p{number}",
        kind=kind,
        where=where or f"w{number}",
        interface="eth0",
    )


class Host:
    """An agent's facts on devices that are always as they are wanted."""

    def __init__(self, *, size: int = SIZE) -> None:
        self.inputs = Inputs(Graph())
        self.there: dict[str, dict[Any, Any]] = {"netns": {}, "link": {}, "guard": {}, "ovsdb": {}}
        self.coming: dict[str, set[Any]] = {"netns": set(), "link": set()}
        self.rests = True
        self.spares = Spares(
            self.inputs,
            size=size,
            there=self.there.__getitem__,
            has=lambda layer, key: key in self.there[layer] or key in self.coming[layer],
            at_rest=lambda: self.rests,
            made=self.made,
        )
        self.facts = Facts(self.inputs, ovs=self.ovs, flush=self.nothing, revalidate=self.done, spares=self.spares)
        self.inputs.this.put(THIS, HERE)
        for vni, mtu in ((1, MTU), (2, 1400)):
            self.inputs.segments.put(vni, Segment(vni, domain=1, color=0, network_number=vni, mtu=mtu, subnets=()))

    def ovs(self) -> Any:
        ports = [p for p in self.there["ovsdb"].values() if isinstance(p, OvsPort)]
        return SimpleNamespace(
            ofports={p.device: p.ofport for p in ports}, used_ofports=frozenset(p.ofport for p in ports)
        )

    async def nothing(self, zones: Any) -> None:
        pass

    async def done(self) -> None:
        pass

    def observe(self) -> None:
        for layer in ("netns", "link", "guard", "ovsdb"):
            self.facts.observe(layer, self.there[layer])

    def made(self) -> None:
        """The rows of new spares have come: they are given numbers and made."""
        self.facts.issue()
        for device, mtu in self.inputs.spares.rows.items():
            number = self.inputs.issued.rows[device]
            self.there["netns"][names.spare_namespace(device)] = Namespace(names.spare_namespace(device))
            self.there["link"][device] = spare_link(device, mtu=mtu)
            self.there["guard"][device] = Guard(device)
            self.there["ovsdb"]["port", device] = OvsPort("br-int", device, number, Marks.POOL)
        self.observe()

    def want(self, *ports: LocalPort) -> None:
        self.inputs.localports.replace_all({row.uid: row for row in ports})
        self.facts.issue()

    async def filled(self, *ports: LocalPort) -> dict[str, int]:
        """With these ports, when spares have been made; returns their numbers."""
        self.observe()
        self.want(*ports)
        runner = asyncio.create_task(self.spares.run())
        self.spares.kick()
        await until(lambda: len(self.inputs.spares.rows) == SIZE)
        runner.cancel()
        return {device: self.inputs.issued.rows[device] for device in self.inputs.spares.rows}


async def test_a_port_takes_a_spare_over_with_its_number() -> None:
    host = Host()
    numbers = await host.filled(port(1))
    host.want(port(1), port(2))
    device = host.inputs.device(port(2))
    assert host.inputs.taken.rows == {port(2).uid: device}
    assert host.inputs.issued.rows[port(2).uid] == numbers[device] == host.inputs.ofports.rows[device]
    assert device not in host.inputs.spares.rows and device not in host.inputs.issued.rows
    assert host.inputs.device(port(1)) == names.device(port(1)), "there was none when it came"


def _unplugged(host: Host) -> None:
    for device in list(host.inputs.spares.rows):
        del host.there["ovsdb"]["port", device]


def _unguarded(host: Host) -> None:
    host.there["guard"].clear()


def _harmed(host: Host) -> None:
    for device, link in host.there["link"].items():
        host.there["link"][device] = replace(link, flaw="the MTU of the host side is 1")


def _there(host: Host) -> None:
    host.there["netns"]["acme.w2"] = Namespace("acme.w2")


def _own(host: Host) -> None:
    host.there["link"][names.device(port(2))] = spare_link(names.device(port(2)), mtu=MTU)


def _coming(host: Host) -> None:
    """It was wanted, or another port of its name, before it could choose: it will not be the spare's."""
    host.coming["netns"].add("acme.w2")


@pytest.mark.parametrize("change", [_unplugged, _unguarded, _harmed, _there, _own, _coming])
async def test_only_one_that_is_ready_and_only_for_a_port_that_has_nothing(change: Callable[[Host], None]) -> None:
    host = Host()
    await host.filled(port(1))
    change(host)
    host.observe()
    host.want(port(1), port(2))
    assert not host.inputs.taken.rows
    assert port(2).uid in host.inputs.issued.rows


def test_what_is_wanted_or_under_way_is_something_of_its_own() -> None:
    """Where a namespace comes from is no difference in what it is: a spare chosen later would not become it."""
    layer = Layer("netns", DictDevice("netns"), Delta(), clock=lambda: 0.0)
    assert not layer.has("acme.w2")
    layer.delta.want("acme.w2", Namespace("acme.w2"))
    assert layer.has("acme.w2")
    layer.under_way.add("acme.w2")
    layer.delta.want("acme.w2", None)
    assert layer.has("acme.w2")


@pytest.mark.parametrize(
    "other",
    [
        port(2, kind=Attach.NETNS_PATH, where="/run/netns/cni-1"),
        port(2, kind=Attach.DEVICE, where="tap0"),
        port(2, where="w1"),  # a second interface of a namespace that is there
        port(2, vni=2),  # of another MTU
    ],
)
async def test_who_takes_none(other: LocalPort) -> None:
    host = Host()
    await host.filled(port(1))
    host.want(port(1), other)
    assert not host.inputs.taken.rows and len(host.inputs.spares.rows) == SIZE


async def test_there_are_none_where_nobody_could_take_them() -> None:
    host = Host()
    host.observe()
    host.want(port(1, kind=Attach.DEVICE, where="tap0"))
    host.spares.kick()
    assert not host.spares._wake.is_set()
    await host.filled(port(1))
    host.want()
    assert not host.inputs.spares.rows


async def test_none_are_made_while_there_is_something_else_to_do_or_enough() -> None:
    host = Host()
    await host.filled(port(1))
    host.want(*(port(number) for number in (1, 2, 3)))
    assert len(host.inputs.spares.rows) == SIZE // 2
    host.rests, runner = False, asyncio.create_task(host.spares.run())
    host.spares.kick()
    await asyncio.sleep(0.7)
    assert len(host.inputs.spares.rows) == SIZE // 2
    host.rests = True
    await until(lambda: len(host.inputs.spares.rows) == SIZE)
    runner.cancel()


async def test_a_setting_of_none() -> None:
    host = Host(size=0)
    host.observe()
    host.want(port(1))
    host.spares.kick()
    assert not host.spares._wake.is_set()


async def test_a_new_process_finds_what_is_whose() -> None:
    """By the namespace that a device of the pool leads to; numbers stay with it."""
    before = Host()
    await before.filled(port(1))
    before.want(port(1), port(2))
    taken = before.inputs.taken.rows[port(2).uid]
    link = before.there["link"][taken]
    before.there["link"][taken] = replace(link, netns=names.netns(port(2)), mac=port(2).mac)
    after = Host()
    after.there = before.there
    after.inputs.localports.replace_all({row.uid: row for row in (port(1), port(2))})
    after.observe()
    assert after.inputs.taken.rows == {port(2).uid: taken}
    assert after.inputs.spares.rows == before.inputs.spares.rows
    for key in (port(2).uid, *before.inputs.spares.rows):
        assert after.inputs.issued.rows[key] == before.inputs.issued.rows[key]


async def test_what_nobody_wants_any_more_is_nobodys() -> None:
    """Its port went while no process was there: the device is not a spare again, and its number comes free."""
    before = Host()
    await before.filled(port(1))
    before.want(port(1), port(2))
    taken = before.inputs.taken.rows[port(2).uid]
    before.there["link"][taken] = Link(taken, names.netns(port(2)), "eth0", port(2).mac, MTU, Marks.POOL)
    after = Host()
    after.there = before.there
    after.inputs.localports.replace_all({port(1).uid: port(1)})
    after.observe()
    assert not after.inputs.taken.rows and taken not in after.inputs.spares.rows
    runner = asyncio.create_task(after.facts.run())
    del after.there["ovsdb"]["port", taken]
    after.observe()
    await until(lambda: taken not in after.inputs.issued.rows)
    runner.cancel()


async def test_a_number_and_a_device_come_free_together() -> None:
    host = Host()
    await host.filled(port(1))
    host.want(port(1), port(2))
    taken = host.inputs.taken.rows[port(2).uid]
    runner = asyncio.create_task(host.facts.run())
    host.want(port(1))
    host.observe()
    assert host.inputs.taken.rows, "it is plugged still"
    del host.there["ovsdb"]["port", taken], host.there["link"][taken]
    host.observe()
    await until(lambda: not host.inputs.taken.rows)
    assert port(2).uid not in host.inputs.issued.rows
    runner.cancel()
