"""Reconciling: order, blast radius, repair, restart after a crash anywhere; on devices that are dicts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.desired import LAYERS, Desired, Pairs, Wants
from agent.devices import link_place
from agent.drivers.base import DeviceUnavailable, Failure
from agent.facts import Facts
from agent.inputs import Inputs
from agent.layer import LAST_LOOK, LAST_RETRY
from agent.objects import Addressing, Guard, Link, Namespace, NetnsKind, NetnsRef, OvsPort, Zone
from agent.reconcile import Applied, Reconciler
from tealnet.core.rows.stream import Attach, LocalPort
from tealnet.core.tables import Graph, Read
from tests.fakes.device import Crash, DictDevice
from tests.samples import samples

BROKEN = Failure("Broken", "planned")
HOPELESS = Failure("Hopeless", "planned", retriable=False)


@dataclass(frozen=True)
class FakeFlow:
    """A flow that lets a port send by its number."""

    uid: str
    number: int
    identity: int


@dataclass
class OvsFacts:
    ofports: dict[str, int]
    used_ofports: frozenset[int]


def port(name: str, *, where: str = "space", identity: int = 1, interface: str = "") -> LocalPort:
    return LocalPort(
        uid=name,
        vni=5,
        addresses=(ip_address("10.0.0.5"),),
        mac="02:00:00:00:00:01",
        identity=identity,
        sources=(),
        tenant="acme",
        name=name,
        kind=Attach.NETNS,
        where=where,
        interface=interface or f"eth-{name}",
    )


class Machine:
    """The devices: they outlive any process. Every change is checked against what must be so at that moment."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, Hashable]] = []
        self.devices = {layer: DictDevice(layer, self.log) for layer in LAYERS}
        for layer, device in self.devices.items():
            device.before = lambda verb, key, layer=layer: self.check(layer, verb, key)  # type: ignore[misc]
        self.flushed: list[int] = []
        self.no_flush = False
        self.released: set[str] = set()  # to be made and plugged again; their numbers are still their own
        self.violations: list[str] = []
        self.crash_at = -1  # number of the change before which the process ends

    def content(self, layer: str) -> dict[Hashable, Any]:
        return self.devices[layer].content

    def everything(self) -> dict[str, dict[Hashable, Any]]:
        return {layer: dict(device.content) for layer, device in self.devices.items()}

    def numbers(self) -> dict[str, int]:
        return {value.device: value.ofport for value in self.content("ovsdb").values()}

    def check(self, layer: str, verb: str, key: Hashable) -> None:
        if len(self.log) == self.crash_at:
            raise Crash
        try:
            if verb == "write":
                self._check_write(layer, key)
            else:
                self._check_delete(layer, key)
        except AssertionError as error:  # a layer takes exceptions for bugs of its driver
            self.violations.append(f"{layer} {key}: {error}")

    def _check_write(self, layer: str, key: Any) -> None:
        if layer == "link" and key not in self.content("link"):
            assert ("port", key) not in self.content("ovsdb"), "made while a former one of that name is held"
        if layer in ("guard", "address"):
            assert key in self.content("link"), "there is no such device"
        if layer == "ovsdb":
            assert key[1] in self.content("guard"), "plugged before it is guarded"
            self.released.discard(key[1])
        if layer == "address":
            assert key in self.content("guard"), "up before it is guarded"
        if layer == "flow":
            assert f"tn-{key}" in self.content("guard"), "opened without a guard"
            device = f"tn-{key}"
            plugged = ("port", device) in self.content("ovsdb") or device in self.released
            assert plugged, "opened before it is plugged"

    def _check_delete(self, layer: str, key: Any) -> None:
        if layer == "ovsdb":
            flows = [flow for flow in self.content("flow").values() if f"tn-{flow.uid}" == key[1]]
            assert not flows, "unplugged before its flows are gone"
        if layer == "guard":
            assert ("port", key) not in self.content("ovsdb"), "unguarded before it is unplugged"
        if layer == "link":
            assert key not in self.content("guard"), "deleted before its guard"
        if layer == "netns":
            inside = [link for link in self.content("link").values() if link.netns.path == key]
            assert not inside, "deleted before what is in it"


class Process:
    """An agent's inner half on a machine, from its start until it is dropped."""

    def __init__(self, machine: Machine, *, ready: bool = True) -> None:
        self.machine = machine
        self.is_ready = ready
        self.now = 0.0
        self.graph = Graph()
        self.inputs = Inputs(self.graph)
        self.facts = Facts(
            self.inputs, ovs=self._ovs, flush=self._flush, revalidate=self._revalidate, release=self._release
        )
        self.desired = Desired(self._declare(), {"link": link_place})
        self.reconciler = Reconciler(
            graph=self.graph,
            desired=self.desired,
            drivers=machine.devices,
            watcher=self.facts,
            ready=lambda: self.is_ready,
            clock=lambda: self.now,
            in_use={"netns": lambda actual: {link.netns.path for link in actual["link"].values()}},
        )
        self.revision = 0
        self.ports: list[LocalPort] = []  # wanted last

    def _ovs(self) -> OvsFacts:
        numbers = self.machine.numbers()
        return OvsFacts(numbers, frozenset(numbers.values()))

    async def _flush(self, zones: Collection[int]) -> None:
        if self.machine.no_flush:
            raise DeviceUnavailable("no connection")
        self.machine.flushed += zones

    async def _release(self, devices: Collection[str]) -> None:
        await asyncio.sleep(0)
        for device in devices:
            if self.machine.content("ovsdb").pop(("port", device), None) is not None:
                self.machine.released.add(device)
                self.reconciler.reread("ovsdb")

    async def _revalidate(self) -> None:
        await asyncio.sleep(0)

    def _declare(self) -> list[Wants]:
        inputs = self.inputs

        def row(layer: str) -> Wants:
            def compute(read: Read, uid: str) -> Pairs | None:
                local = read.get(inputs.localports, uid)
                number, device = read.get(inputs.issued, uid), f"tn-{uid}"
                if local is None or number is None:
                    return None
                space = NetnsRef(NetnsKind.OURS, local.where)
                if layer == "flow":
                    opened = read.get(inputs.ofports, device) == number and read.get(inputs.guarded, device)
                    return ((uid, FakeFlow(uid, number, local.identity)),) if opened else None
                return {
                    "netns": ((local.where, Namespace(local.where)),),
                    "link": ((device, Link(device, space, local.interface, local.mac, 1430, uid)),),
                    "guard": ((device, Guard(device)),),
                    "ovsdb": ((("port", device), OvsPort("br-int", device, number, uid)),),
                    "address": ((device, Addressing(device, space, local.interface)),),
                    "zone": ((device, Zone(number, 100)),),
                }[layer]

            return Wants(layer, self.graph.derive(inputs.localports, compute), "localport")

        return [row(layer) for layer in LAYERS]

    def want(self, *ports: LocalPort) -> None:
        self.revision += 1
        self.ports = list(ports)
        self.inputs.localports.replace_all({row.uid: row for row in ports})
        self.facts.issue()
        self.reconciler.take(self.revision)

    async def steps(self, rounds: int = 12) -> None:
        """Both lanes side by side, until there is nothing to do."""
        for _ in range(rounds):
            steps = self.reconciler.devices_step(), self.reconciler.flow_step()
            lanes = [asyncio.ensure_future(step) for step in steps]
            try:
                await asyncio.gather(*lanes)
            finally:  # a crash ends both
                for lane in lanes:
                    lane.cancel()
                await asyncio.wait(lanes)
        assert self.machine.violations == []

    async def converge(self, *ports: LocalPort) -> Applied | None:
        self.want(*ports)
        await self.steps()
        return self.reconciler.applied()

    async def finds_nothing_to_do(self) -> None:
        """A forced resync changes nothing."""
        before = len(self.machine.log)
        self.reconciler.resync()
        await self.steps()
        assert self.machine.log[before:] == []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0)


def order(machine: Machine, verb: str) -> list[str]:
    return [layer for layer, what, _ in machine.log if what == verb]


async def test_layers_are_made_left_to_right_and_deleted_right_to_left() -> None:
    machine = Machine()
    process = Process(machine)
    assert await process.converge(port("a")) == Applied(1, {})
    assert order(machine, "write") == list(LAYERS)
    assert await process.converge() == Applied(2, {})
    assert order(machine, "delete") == list(reversed(LAYERS))
    assert all(not content for content in machine.everything().values())
    await process.finds_nothing_to_do()


async def test_nothing_is_touched_before_the_inputs_are_whole() -> None:
    machine = Machine()
    await Process(machine).converge(port("a"))
    before = machine.everything()
    process = Process(machine, ready=False)
    process.reconciler.take(0)
    runner = asyncio.create_task(process.reconciler.run())
    for _ in range(50):
        await asyncio.sleep(0)
    assert machine.everything() == before
    assert process.reconciler.applied() is None
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)


async def test_a_restart_changes_nothing_and_keeps_numbers_and_connections() -> None:
    machine = Machine()
    await Process(machine).converge(port("a"), port("b"))
    numbers, changes, flushed = machine.numbers(), len(machine.log), list(machine.flushed)
    again = Process(machine)
    assert await again.converge(port("a"), port("b")) == Applied(1, {})
    assert machine.log[changes:] == []
    assert machine.numbers() == numbers
    assert machine.flushed == flushed


@pytest.mark.parametrize("layer", LAYERS)
async def test_a_restart_with_a_device_out_of_reach_changes_nothing_either(layer: str) -> None:
    machine = Machine()
    await Process(machine).converge(port("a"), port("b"))
    before, changes = machine.everything(), len(machine.log)
    machine.devices[layer].unavailable = True
    again = Process(machine)
    again.want(port("a"), port("b"))
    await again.steps()
    assert again.reconciler.applied() is None
    machine.devices[layer].unavailable = False
    again.now += 10
    await again.steps()
    assert again.reconciler.applied() == Applied(1, {})
    assert machine.log[changes:] == [] and machine.everything() == before


async def test_what_went_while_the_agent_was_down_is_closed_before_it_is_unplugged() -> None:
    machine = Machine()
    await Process(machine).converge(port("a"), port("b"))
    before = len(machine.log)
    await Process(machine).converge(port("b"))
    assert [layer for layer, *_ in machine.log[before:]] == ["flow", "zone", "address", "ovsdb", "guard", "link"]


async def test_a_zone_is_emptied_before_its_port_is_opened() -> None:
    machine = Machine()
    machine.no_flush = True
    process = Process(machine)
    process.want(port("a"))
    steps = asyncio.create_task(process.steps())
    await until(lambda: bool(machine.content("ovsdb")))
    assert not machine.content("flow")
    machine.no_flush = False
    await steps
    assert machine.content("flow")
    assert machine.flushed == list(machine.numbers().values())


class Slow(DictDevice):
    """Changes something at once and says so late."""

    def __init__(self, machine: Machine) -> None:
        super().__init__("ovsdb", machine.log)
        self.before = lambda verb, key: machine.check("ovsdb", verb, key)
        self.gate = asyncio.Event()
        self.outcome: dict[Hashable, Failure] = {}

    async def apply(self, write: Mapping[Hashable, Any], delete: Collection[Hashable]) -> Mapping[Hashable, Failure]:
        await super().apply(write, delete)
        await self.gate.wait()
        return {key: failure for key, failure in self.outcome.items() if key in write}


@asynccontextmanager
async def plugging(outcome: Failure | None = None) -> AsyncIterator[tuple[Machine, Process, Slow]]:
    """A port is in the bridge, but OVSDB has not told yet what came of it."""
    machine = Machine()
    slow = machine.devices["ovsdb"] = Slow(machine)
    slow.outcome = {("port", "tn-a"): outcome} if outcome else {}
    process = Process(machine)
    await process.converge()
    process.want(port("a"))
    runner = asyncio.create_task(process.reconciler.run())
    try:
        await until(lambda: bool(slow.content))
        yield machine, process, slow
    finally:
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)
    assert machine.violations == []


def bridge_says(process: Process, number: int) -> bool:
    """As the agent does with what the bridge says of its ports."""
    if told := process.facts.plugged("tn-a", number):
        process.reconciler.learned("ovsdb", ("port", "tn-a"))
    return told


async def test_a_port_is_opened_as_soon_as_the_bridge_has_it_but_not_said_to_be_applied() -> None:
    async with plugging() as (machine, process, slow):
        (number,) = machine.numbers().values()
        assert not bridge_says(process, number + 1)
        assert bridge_says(process, number)
        await until(lambda: bool(machine.content("flow")))
        assert machine.flushed == [number]  # before that
        assert process.reconciler.applied() == Applied(1, {})
        slow.gate.set()
        await until(lambda: process.reconciler.applied() == Applied(2, {}))
        assert not bridge_says(process, number)  # OVSDB has had the last word


async def test_a_port_that_was_opened_early_is_closed_again_when_it_is_not_as_it_must_be() -> None:
    async with plugging(BROKEN) as (machine, process, slow):
        (number,) = machine.numbers().values()
        assert bridge_says(process, number)
        await until(lambda: bool(machine.content("flow")))
        slow.gate.set()
        await until(lambda: not machine.content("flow"))
        assert process.reconciler.applied() == Applied(2, {"localport/a": BROKEN})


async def test_a_port_whose_zone_may_hold_something_is_not_opened_early() -> None:
    machine = Machine()
    machine.no_flush = True
    process = Process(machine)
    process.want(port("a"))
    steps = asyncio.create_task(process.steps())
    await until(lambda: bool(machine.content("ovsdb")))
    assert not bridge_says(process, next(iter(machine.numbers().values())))
    machine.no_flush = False
    await steps


async def test_a_poison_port_fails_alone_with_a_reason_and_heals() -> None:
    machine = Machine()
    machine.devices["link"].plan_error("tn-a", BROKEN)
    process = Process(machine)
    applied = await process.converge(port("a", where="one"), port("b", where="two"))
    assert applied == Applied(1, {"localport/a": BROKEN})
    assert machine.content("flow").keys() == {"b"}
    assert ("port", "tn-a") not in machine.content("ovsdb")  # no port without a link
    machine.devices["link"].plan_error("tn-a", None)
    process.now += LAST_RETRY
    await process.steps()
    assert process.reconciler.applied() == Applied(1, {})
    assert machine.content("flow").keys() == {"a", "b"}


@pytest.mark.parametrize("layer", LAYERS)
async def test_each_layer_may_fail_and_the_other_port_works(layer: str) -> None:
    key: Hashable = {"netns": "one", "ovsdb": ("port", "tn-a"), "flow": "a"}.get(layer, "tn-a")
    machine = Machine()
    machine.devices[layer].plan_error(key, HOPELESS)
    process = Process(machine)
    applied = await process.converge(port("a", where="one"), port("b", where="two"))
    assert applied == Applied(1, {"localport/a": HOPELESS})
    assert machine.content("flow").keys() - {"a"} == {"b"}
    applied = await process.converge(port("b", where="two"))
    assert applied is not None and applied.revision == 2
    machine.devices[layer].plan_error(key, None)
    process.reconciler.resync()
    await process.steps()
    assert process.reconciler.applied() == Applied(2, {})
    assert machine.content("flow").keys() == {"b"}
    await process.finds_nothing_to_do()


async def test_retries_get_slower_and_another_value_is_tried_at_once() -> None:
    machine = Machine()
    machine.devices["flow"].plan_error("a", BROKEN)
    process = Process(machine)
    await process.converge(port("a"))
    tries = machine.devices["flow"].applies
    for _ in range(100):
        process.now += 0.1
        await process.steps(1)
    assert 4 <= machine.devices["flow"].applies - tries <= 10
    machine.devices["flow"].plan_error("a", None)
    assert await process.converge(port("a", identity=2)) == Applied(2, {})


async def test_a_device_out_of_reach_holds_the_ack_back_until_it_is_there() -> None:
    machine = Machine()
    process = Process(machine)
    await process.converge(port("a"))
    machine.devices["ovsdb"].unavailable = True
    assert await process.converge(port("a"), port("b")) == Applied(1, {})
    assert machine.content("flow").keys() == {"a"}
    machine.devices["ovsdb"].unavailable = False
    process.now += 10
    await process.steps()
    assert process.reconciler.applied() == Applied(2, {})


async def test_flows_out_of_reach_keep_devices_from_being_deleted() -> None:
    machine = Machine()
    process = Process(machine)
    await process.converge(port("a"))
    machine.devices["flow"].unavailable = True
    assert await process.converge() == Applied(1, {})
    assert machine.content("ovsdb")
    machine.devices["flow"].unavailable = False
    process.now += 10
    await process.steps()
    assert process.reconciler.applied() == Applied(2, {})
    assert not machine.content("ovsdb")


@pytest.mark.parametrize("how", ["all", "only the key"])
@pytest.mark.parametrize("layer", LAYERS)
async def test_what_somebody_deletes_is_repaired_alone_and_counted(layer: str, how: str) -> None:
    machine = Machine()
    process = Process(machine)
    await process.converge(port("a"), port("b", where="two"))
    key = next(iter(machine.content(layer)))
    lost = machine.content(layer).pop(key)
    before = len(machine.log)
    if how == "all":
        process.reconciler.reread(layer)
    else:
        process.reconciler.reread_key(layer, key)
    await process.steps()
    assert machine.content(layer)[key] == lost
    again = [(layer, "write", key)]
    if layer == "link":  # which is held under its name no more
        again.append(("ovsdb", "write", ("port", key)))
    assert machine.log[before:] == again
    assert [process.reconciler.layers[name].repairs for name, _, _ in again] == [1] * len(again)
    assert process.reconciler.applied() == Applied(1, {})


@pytest.mark.parametrize("layer", ["guard", "ovsdb", "address"])
async def test_of_a_device_that_went_it_is_said_why_it_is_not_there(layer: str) -> None:
    """Whoever hears first that something of it is gone: that it can't be put on what is not there is not the reason."""
    machine = Machine()
    process = Process(machine)
    await process.converge(port("a"), port("b", where="two"))
    key: Hashable = ("port", "tn-a") if layer == "ovsdb" else "tn-a"
    del machine.content("link")["tn-a"], machine.content(layer)[key]
    machine.devices["link"].plan_error("tn-a", HOPELESS)
    machine.devices[layer].plan_error(key, BROKEN)
    process.reconciler.reread_key(layer, key)
    said = []
    for _ in range(6):
        await process.steps(1)
        said.append(process.reconciler.applied())
    assert said[0] == Applied(0, {}), "at work on something that was done"
    assert said[-1] == Applied(1, {"localport/a": HOPELESS})
    assert Applied(1, {"localport/a": BROKEN}) not in said


async def test_a_device_made_again_is_guarded_before_it_is_up() -> None:
    """Up to Linux 6.15 a guard ends with its device, and the event that says so may come last."""
    machine = Machine()
    process = Process(machine)
    await process.converge(port("a"))
    for layer in ("link", "guard", "address"):
        del machine.content(layer)["tn-a"]
    before = len(machine.log)
    process.reconciler.reread_key("link", "tn-a")
    process.reconciler.reread_key("address", "tn-a")
    await process.steps()  # which checks each step
    assert [layer for layer, _, _ in machine.log[before:]] == ["link", "guard", "ovsdb", "address"]


async def test_what_takes_the_place_of_another_waits_until_that_is_gone() -> None:
    machine = Machine()
    process = Process(machine)
    await process.converge(port("a", interface="eth0"))
    machine.devices["flow"].unavailable = True
    assert await process.converge(port("b", interface="eth0")) == Applied(
        1, {}
    )  # late, not failed: a's link is still in the way
    assert machine.content("link").keys() == {"tn-a"}
    machine.devices["flow"].unavailable = False
    process.now += LAST_LOOK
    await process.steps()
    assert process.reconciler.applied() == Applied(2, {})
    assert machine.content("link").keys() == {"tn-b"}


@pytest.mark.parametrize("away", ["ovsdb", "flow"])
async def test_when_a_device_is_back_it_is_looked_at_and_what_failed_is_tried_again_at_once(away: str) -> None:
    """The longer it was away, the longer the waits have become: nobody waits for their ends."""
    machine = Machine()
    process = Process(machine)
    await process.converge(port("b", where="two"))
    machine.devices["address"].plan_error("tn-a", BROKEN)
    process.want(port("a", where="one"), port("b", where="two"))
    machine.devices[away].unavailable = True
    for _ in range(12):
        process.reconciler.reread(away)
        process.now += LAST_RETRY
        await process.steps(2)
    assert process.reconciler.layers[away].unavailable
    machine.devices["address"].plan_error("tn-a", None)
    machine.devices[away].unavailable = False
    process.reconciler.reread(away)  # it says itself that it is connected again
    await process.steps()
    assert process.reconciler.applied() == Applied(2, {})
    await process.finds_nothing_to_do()


async def test_what_somebody_adds_in_our_name_goes() -> None:
    machine = Machine()
    process = Process(machine)
    await process.converge(port("a"))
    machine.content("flow")["strange"] = FakeFlow("strange", 7, 7)
    process.reconciler.reread("flow")
    await process.steps()
    assert machine.content("flow").keys() == {"a"}


async def test_a_slow_device_does_not_delay_flows() -> None:
    machine = Machine()
    process = Process(machine)
    await process.converge(port("a"))
    gate = asyncio.Event()
    device = machine.devices["link"]
    apply = device.apply

    async def slow(write: Any, delete: Any) -> Any:
        await gate.wait()
        return await apply(write, delete)

    device.apply = slow  # type: ignore[method-assign]
    runner = asyncio.create_task(process.reconciler.run())
    process.want(port("a"), port("b", where="two"))
    for _ in range(20):
        await asyncio.sleep(0)
    process.want(port("a", identity=9), port("b", where="two"))
    await until(lambda: machine.content("flow")["a"].identity == 9)
    assert process.reconciler.applied() == Applied(1, {})  # b is owed since revision 2
    gate.set()
    await until(lambda: process.reconciler.applied() == Applied(3, {}))
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)


async def test_acks_do_not_wait_for_a_quiet_moment() -> None:
    machine = Machine()
    process = Process(machine)
    seen = 0
    for number in range(2, 40):  # there is always something new before the last thing is done
        process.want(port("a", identity=number), port(f"b{number}"))
        await process.reconciler.devices_step()
        await process.reconciler.flow_step()
        applied = process.reconciler.applied()
        seen = max(seen, applied.revision if applied else 0)
    assert seen >= process.revision - 5


async def test_a_driver_with_a_bug_takes_only_its_own_layer() -> None:
    machine = Machine()
    process = Process(machine)
    await process.converge(port("a"))

    async def bug(write: Any, delete: Any) -> Any:
        raise KeyError("bug")

    machine.devices["address"].apply = bug  # type: ignore[method-assign]
    await process.converge(port("a", identity=2), port("b", where="two"))
    assert process.reconciler.layers["address"].unavailable
    assert machine.content("flow")["a"].identity == 2


async def test_what_was_wanted_for_a_moment_is_forgotten_in_the_end() -> None:
    machine = Machine()
    process = Process(machine)
    await process.converge(port("a"))
    for number in range(50):
        process.want(port("a"), port(f"b{number}"))
        process.want(port("a"))
    process.reconciler.resync()
    await process.steps()
    assert {key for layer in LAYERS for key in process.desired.known(layer)} == {"a", "space", "tn-a", ("port", "tn-a")}


async def test_numbers_are_freed_when_their_zone_is_empty() -> None:
    machine = Machine()
    process = Process(machine)
    await process.converge(port("a"))
    runner = asyncio.create_task(process.facts.run())
    (number,) = machine.numbers().values()
    await process.converge()
    await until(lambda: not process.inputs.issued.rows)
    assert machine.flushed == [number, number]  # before it was opened, and after it went
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)


@pytest.mark.parametrize("late", range(40))
async def test_what_comes_to_be_wanted_or_not_at_any_moment_keeps_its_order(late: int) -> None:
    """Whatever a lane waits for: another port may come and one may go just then."""
    machine = Machine()
    process = Process(machine)
    await process.converge(port("a"), port("b", where="two"))
    process.want(port("b", where="two"), port("c"))
    work = asyncio.create_task(process.steps())
    await watched(process, ticks=late)
    process.want(port("c"), port("d", where="four"))
    while not work.done():
        await watched(process, ticks=1)
    await work  # which checks each step
    assert process.reconciler.applied() == Applied(process.revision, {})
    assert machine.content("flow").keys() == {"c", "d"}
    await process.finds_nothing_to_do()


async def watched(process: Process, *, ticks: int) -> None:
    """Let others work; what is said meanwhile must be so, and nothing that is merely on its way has failed."""
    for _ in range(ticks):
        await asyncio.sleep(0)
        applied = process.reconciler.applied()
        if applied is not None and applied.revision == process.revision:
            assert {layer: set(c) for layer, c in process.machine.everything().items()} == expected(process.ports)
        assert applied is None or not applied.failures


# -- any history, a crash anywhere

names = st.sampled_from("abcd")
worlds = st.dictionaries(names, st.tuples(st.sampled_from(["one", "two"]), st.integers(1, 3)), max_size=4).map(
    lambda d: [port(uid, where=where, identity=identity) for uid, (where, identity) in d.items()]
)


def expected(ports: list[LocalPort]) -> dict[str, set[Hashable]]:
    devices: set[Hashable] = {f"tn-{row.uid}" for row in ports}
    return {
        "netns": {row.where for row in ports},
        "link": devices,
        "guard": devices,
        "ovsdb": {("port", device) for device in devices},
        "address": devices,
        "zone": devices,
        "flow": {row.uid for row in ports},
    }


@settings(max_examples=samples(50, many=2000))
@given(st.lists(worlds, min_size=1, max_size=6), st.data())
def test_any_history_converges_whatever_is_interrupted(history: list[list[LocalPort]], data: st.DataObject) -> None:
    asyncio.run(_any_history(history, data))


async def _any_history(history: list[list[LocalPort]], data: st.DataObject) -> None:
    machine = Machine()
    process = Process(machine)
    for ports in history:
        how = data.draw(st.sampled_from(["whole", "hurried", "amid", "crash"]))
        if how == "amid":  # … or while it is being reached
            work = asyncio.create_task(process.steps())
            await watched(process, ticks=data.draw(st.integers(0, 40)))
            process.want(*ports)
            process.reconciler.reread(*data.draw(st.sets(st.sampled_from(LAYERS))))
            while not work.done():
                await watched(process, ticks=1)
            await work
            continue
        if how == "hurried":  # the next state comes before this one is reached
            process.want(*ports)
            await process.steps(data.draw(st.integers(0, 2)))
            continue
        if how == "crash":
            machine.crash_at = len(machine.log) + data.draw(st.integers(0, 8))
            try:
                await process.converge(*ports)
            except Crash:
                machine.crash_at = -1
                numbers = machine.numbers()
                late = machine.devices[data.draw(st.sampled_from(LAYERS))]
                late.unavailable = True  # as the process starts
                process = Process(machine)
                process.want(*ports)
                await process.steps()
                late.unavailable = False
                process.now += 10
                await process.steps()
                assert {k: v for k, v in machine.numbers().items() if k in numbers}.items() <= numbers.items()
            machine.crash_at = -1
        applied = await process.converge(*ports)
        assert applied == Applied(process.revision, {})
        assert {layer: set(content) for layer, content in machine.everything().items()} == expected(ports)
        assert len(set(machine.numbers().values())) == len(ports)
        await process.finds_nothing_to_do()


@settings(max_examples=samples(25, many=1000))
@given(st.lists(worlds, min_size=1, max_size=4), st.data())
def test_any_history_converges_once_planned_errors_are_over(
    history: list[list[LocalPort]], data: st.DataObject
) -> None:
    asyncio.run(_with_errors(history, data))


async def _with_errors(history: list[list[LocalPort]], data: st.DataObject) -> None:
    machine = Machine()
    process = Process(machine)
    for ports in history:
        layer = data.draw(st.sampled_from(LAYERS))
        keys = sorted(expected(ports)[layer] | machine.content(layer).keys(), key=str)
        poison = data.draw(st.lists(st.sampled_from(keys), max_size=2)) if keys else []
        for key in poison:
            machine.devices[layer].plan_error(key, BROKEN)
        machine.devices[data.draw(st.sampled_from(LAYERS))].unavailable = data.draw(st.booleans())
        await process.converge(*ports)
        for device in machine.devices.values():
            device.errors.clear()
            device.unavailable = False
        process.now += 1000
        await process.steps()
        assert process.reconciler.applied() == Applied(process.revision, {})
        assert {name: set(content) for name, content in machine.everything().items()} == expected(ports)
        await process.finds_nothing_to_do()


async def test_what_stays_for_the_sake_of_what_failed_is_not_late() -> None:
    """A link that can't go to its new namespace keeps the old one: as with a spare whose port's name is taken."""
    machine = Machine()
    process = Process(machine)
    assert await process.converge(port("a", where="old")) == Applied(1, {})
    foreign = Failure("NetnsForeign", "somebody's")
    machine.devices["netns"].plan_error("new", foreign)
    assert await process.converge(port("a", where="new")) == Applied(2, {"localport/a": foreign})
    assert "old" in machine.content("netns") and process.reconciler.at_rest()
    machine.devices["netns"].plan_error("new", None)
    process.now += 60
    await process.steps()
    assert process.reconciler.applied() == Applied(2, {})
    assert "old" not in machine.content("netns")
