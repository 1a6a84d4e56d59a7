from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agent.drivers.base import DeviceUnavailable
from agent.drivers.openflow import FlowDriver
from agent.drivers.ovsdb import OvsdbDriver, OvsFacts
from agent.drivers.ovsdb_rows import Key, Value
from agent.objects import Bridge, OvsPort, Tunnel

pytestmark = pytest.mark.ovs

BRIDGE: Mapping[Key, Value] = {("bridge", "br-int"): Bridge("br-int", "netdev")}
TUNNEL: Mapping[Key, Value] = {("port", "vxlan0"): Tunnel("br-int", "vxlan0", 1, "192.0.2.1")}


def ports(*numbers: int) -> dict[Key, Value]:
    return {("port", f"tn{n}"): OvsPort("br-int", f"tn{n}", n, f"uid-{n}") for n in numbers}


@asynccontextmanager
async def running(ovs: Any) -> AsyncIterator[OvsdbDriver]:
    driver = OvsdbDriver(ovs.socket, run_dir=ovs.run_dir)
    task = asyncio.create_task(driver.run())
    try:
        await facts_when(driver, lambda facts: facts.connected and facts.vswitchd_up and bool(facts.datapath_types))
        yield driver
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def facts_when(driver: OvsdbDriver, condition: Callable[[OvsFacts], bool]) -> OvsFacts:
    async with asyncio.timeout(20):
        async for facts in driver.changes():
            if condition(facts):
                return facts
    raise AssertionError("changes() never ends")


async def read_when(driver: OvsdbDriver, condition: Callable[[Mapping[Key, Value]], bool]) -> Mapping[Key, Value]:
    """What an agent does: read again whenever something changed."""
    async with asyncio.timeout(20):
        async for _ in driver.changes():
            if condition(actual := await driver.read()):
                return actual
    raise AssertionError("changes() never ends")


async def test_a_batch_is_one_transaction_and_exactly_applied(private_ovs: Any) -> None:
    many = ports(*range(100, 150))
    private_ovs.add_devices(*(key[1] for key in many))
    async with running(private_ovs) as driver:
        before = int(private_ovs.vsctl("get", "open", ".", "next_cfg"))
        everything = {**many, **TUNNEL, **BRIDGE}
        assert await driver.apply(everything, ()) == {}
        assert await driver.read() == everything
        assert int(private_ovs.vsctl("get", "open", ".", "next_cfg")) == before + 1
        assert driver.facts().ofports == {"vxlan0": 1} | {key[1]: int(key[1][2:]) for key in many}
        assert driver.facts().used_ofports == {1, *range(100, 150)}
        assert driver.facts().foreign_ports == frozenset()

        assert await driver.apply(everything, ()) == {}  # harmless: nothing is written
        assert int(private_ovs.vsctl("get", "open", ".", "next_cfg")) == before + 1

        assert private_ovs.vsctl("get", "bridge", "br-int", "fail_mode") == "secure"
        assert "OpenFlow10" in private_ovs.vsctl("get", "bridge", "br-int", "protocols")
        assert private_ovs.vsctl("get", "bridge", "br-int", "other_config:disable-in-band") == '"true"'
        assert private_ovs.vsctl("get", "interface", "vxlan0", "options:remote_ip") == "flow"

        assert await driver.apply({}, list(many)) == {}
        assert await driver.apply({}, list(many)) == {}  # deleting the absent succeeds
        assert await driver.read() == {**BRIDGE, **TUNNEL}
        assert await driver.apply({}, [*BRIDGE, *TUNNEL]) == {}
        assert await driver.read() == {}


async def test_a_device_is_let_go_of_and_may_then_be_made_again(private_ovs: Any) -> None:
    """vswitchd sets IFF_PROMISC on what it opens; when it closes it, it writes back by name the flags it remembers."""

    def flags(device: str) -> list[str]:
        line: str = private_ovs.namespace.run("ip", "-o", "link", "show", device)
        return line.split("<")[1].split(">")[0].split(",")

    many = ports(*range(100, 130))
    devices = [key[1] for key in many]
    private_ovs.add_devices(*devices)
    async with running(private_ovs) as driver:
        assert await driver.apply({**BRIDGE, **many}, ()) == {}
        assert all("PROMISC" in flags(device) for device in devices)
        for _ in range(3):
            assert await driver.apply({}, list(many)) == {}  # which does not wait
            await driver.let_go(devices)
            assert not any("PROMISC" in flags(device) for device in devices)
            for device in devices:
                private_ovs.namespace.run("ip", "link", "delete", device)
            private_ovs.add_devices(*devices)
            for device in devices:
                private_ovs.namespace.run("ip", "link", "set", device, "up")
            assert await driver.apply(many, ()) == {}
            assert all({"PROMISC", "UP"} <= set(flags(device)) for device in devices)
        private_ovs.kill("ovs-vswitchd")
        await facts_when(driver, lambda facts: not facts.vswitchd_up)
        assert await driver.apply({}, list(many)) == {}
        await driver.let_go(devices)  # nobody holds anything


async def test_a_port_that_cannot_be_opened_fails_alone_until_it_can(private_ovs: Any) -> None:
    private_ovs.add_devices("tn5")
    async with running(private_ovs) as driver:
        failures = await driver.apply({**BRIDGE, **ports(5, 6)}, ())
        assert {key: failure.reason for key, failure in failures.items()} == {("port", "tn6"): "OvsPortError"}
        assert "No such device" in failures["port", "tn6"].text
        actual = await driver.read()
        assert actual["port", "tn5"] == ports(5)["port", "tn5"]
        assert actual["port", "tn6"] == OvsPort("br-int", "tn6", 0, "uid-6")  # there, but not in order
        assert "tn6" not in driver.facts().ofports
        private_ovs.add_devices("tn6")
        assert await driver.apply(ports(6), ()) == {}
        assert driver.facts().ofports["tn6"] == 6


async def test_a_transaction_that_is_refused_is_tried_key_by_key(private_ovs: Any) -> None:
    private_ovs.add_devices("tn5")
    too_large: dict[Key, Value] = {("port", "tn70000"): OvsPort("br-int", "tn70000", 70000, "uid")}
    async with running(private_ovs) as driver:
        failures = await driver.apply({**too_large, **ports(5), **BRIDGE}, [("port", "gone")])
        assert {key: failure.reason for key, failure in failures.items()} == {("port", "tn70000"): "OvsRefused"}
        assert await driver.read() == {**BRIDGE, **ports(5)}


async def test_a_number_changes_in_place_and_a_taken_one_is_a_failure(private_ovs: Any) -> None:
    private_ovs.add_devices("tn5", "tn6")
    async with running(private_ovs) as driver:
        assert await driver.apply({**BRIDGE, **ports(5, 6)}, ()) == {}
        wanted: dict[Key, Value] = {("port", "tn5"): OvsPort("br-int", "tn5", 500, "uid-5")}
        assert await driver.apply(wanted, ()) == {}
        assert driver.facts().ofports["tn5"] == 500
        wanted = {("port", "tn5"): OvsPort("br-int", "tn5", 6, "uid-5")}
        failures = await driver.apply(wanted, ())
        assert [failure.reason for failure in failures.values()] == ["OfportMismatch"]
        assert (await driver.read())["port", "tn5"] != wanted["port", "tn5"]


async def test_foreign_objects_are_never_touched(private_ovs: Any) -> None:
    private_ovs.add_devices("tn5", "tn6", "tn7", "tn8")
    async with running(private_ovs) as driver:
        assert await driver.apply({**BRIDGE, **ports(8)}, ()) == {}
        private_ovs.vsctl("add-port", "br-int", "tn5", "--", "set", "interface", "tn5", "ofport_request=77")
        private_ovs.vsctl("add-br", "br-x", "--", "set", "bridge", "br-x", "datapath_type=netdev")
        private_ovs.vsctl("add-bond", "br-x", "bond0", "tn6", "tn7")
        facts = await facts_when(driver, lambda facts: 77 in facts.used_ofports and "tn7" in facts.foreign_ports)
        assert facts.foreign_ports == {"tn5", "tn6", "tn7", "br-x"}
        assert facts.used_ofports == {8, 77}  # numbers are per bridge: br-x does not count
        assert facts.ofports == {"tn8": 8}
        assert driver.members("br-x") == {"tn6", "tn7"}
        before = private_ovs.vsctl("--columns=name,external_ids,ofport_request", "list", "interface")
        wanted = {**ports(5, 6), ("bridge", "br-x"): Bridge("br-x", "netdev")}
        failures = await driver.apply(wanted, ())
        assert {key: failure.reason for key, failure in failures.items()} == {
            ("port", "tn5"): "ForeignPort",
            ("port", "tn6"): "ForeignPort",
            ("bridge", "br-x"): "ForeignBridge",
        }
        assert await driver.apply({}, list(wanted)) == {}
        assert private_ovs.vsctl("--columns=name,external_ids,ofport_request", "list", "interface") == before
        missing: dict[Key, Value] = {("port", "tn8"): OvsPort("br-none", "tn8", 8, "uid-8")}
        assert [f.reason for f in (await driver.apply(missing, ())).values()] == ["BridgeMissing"]
        assert await driver.read() == {**BRIDGE, **ports(8)}


@pytest.mark.parametrize(
    "command",
    [
        "del-port tn5",
        "set interface tn5 ofport_request=9",
        "set interface tn5 external_ids:tealnet=other",
        "remove interface tn5 external_ids tealnet",
        "remove port tn5 external_ids tealnet",
        "set interface tn5 type=internal",
        "set interface tn5 options:x=y",
        "set interface vxlan0 options:remote_ip=192.0.2.9",
        "remove interface vxlan0 options key",
        "set bridge br-int fail_mode=standalone",
        "set bridge br-int protocols=OpenFlow10",
        "del-br br-int",
    ],
)
async def test_tampering_is_noticed_and_repaired(private_ovs: Any, command: str) -> None:
    private_ovs.add_devices("tn5")
    wanted = {**BRIDGE, **TUNNEL, **ports(5)}
    async with running(private_ovs) as driver:
        assert await driver.apply(wanted, ()) == {}
        private_ovs.vsctl("set", "interface", "tn5", "external_ids:others=kept")
        generation = driver.facts().generation
        private_ovs.vsctl("--no-wait", *command.split())
        await read_when(driver, lambda actual: actual != wanted)
        assert driver.facts().generation > generation
        if await driver.apply(wanted, ()) != {}:  # vswitchd needs a second look after a change of type
            assert await driver.apply(wanted, ()) == {}
        assert await driver.read() == wanted
        if not command.startswith("del"):
            assert private_ovs.vsctl("get", "interface", "tn5", "external_ids:others") == "kept"


async def test_vswitchd_restart_keeps_the_numbers(private_ovs: Any) -> None:
    some = ports(300, 7, 41, 12)
    private_ovs.add_devices(*(key[1] for key in some), "tn13")
    async with running(private_ovs) as driver:
        assert await driver.apply({**BRIDGE, **TUNNEL, **some}, ()) == {}
        before = driver.facts()
        private_ovs.kill("ovs-vswitchd")
        await facts_when(driver, lambda facts: not facts.vswitchd_up)
        assert await driver.read() == {**BRIDGE, **TUNNEL, **some}  # ovsdb-server still answers
        with pytest.raises(DeviceUnavailable):
            await driver.apply(ports(13), ())
        private_ovs.start_vswitchd()
        after = await facts_when(driver, lambda facts: facts.vswitchd_up)
        assert after.vswitchd_starts == before.vswitchd_starts + 1
        assert await driver.apply({**BRIDGE, **TUNNEL, **some, **ports(13)}, ()) == {}
        assert driver.facts().ofports == {**before.ofports, "tn13": 13}


async def test_ovsdb_server_restart(private_ovs: Any) -> None:
    private_ovs.add_devices("tn5", "tn6")
    async with running(private_ovs) as driver:
        assert await driver.apply({**BRIDGE, **ports(5)}, ()) == {}
        before = driver.facts()
        private_ovs.kill("ovsdb-server")
        down = await facts_when(driver, lambda facts: not facts.connected)
        assert down.ofports == before.ofports
        with pytest.raises(DeviceUnavailable):
            await driver.read()
        with pytest.raises(DeviceUnavailable):
            await driver.apply(ports(6), ())
        private_ovs.start_db()
        started = time.monotonic()
        up = await facts_when(driver, lambda facts: facts.connected)
        assert time.monotonic() - started < 2  # backoff is 0.5 s at most
        assert up.connections == before.connections + 1
        assert up.generation > before.generation
        # ofport is not kept by ovsdb-server; ours are as they were, whether vswitchd is back or not
        assert up.ofports == before.ofports
        assert await driver.read() == {**BRIDGE, **ports(5)}
        assert await driver.apply(ports(6), ()) == {}
        assert driver.facts().ofports == {"tn5": 5, "tn6": 6}


async def test_a_driver_without_memory_reads_what_another_wrote(private_ovs: Any) -> None:
    private_ovs.add_devices("tn5")
    wanted = {**BRIDGE, **TUNNEL, **ports(5)}
    async with running(private_ovs) as driver:
        assert await driver.apply(wanted, ()) == {}
    async with running(private_ovs) as driver:
        assert await driver.read() == wanted


async def test_nothing_is_known_before_the_first_connection() -> None:
    driver = OvsdbDriver("unix:/nonexistent/db.sock", run_dir="/nonexistent")
    assert driver.facts() == OvsFacts()
    with pytest.raises(DeviceUnavailable):
        await driver.read()


async def test_nothing_is_touched_of_one_that_is_too_old(private_ovs: Any) -> None:
    """Here the bar is above what is installed."""
    driver = OvsdbDriver(private_ovs.socket, run_dir=private_ovs.run_dir, oldest=(99, 0))
    task = asyncio.create_task(driver.run())
    try:
        facts = await facts_when(driver, lambda facts: facts.connected and bool(facts.too_old))
        assert not facts.vswitchd_up
        before = private_ovs.vsctl("get", "open", ".", "next_cfg")
        why = f"Open vSwitch {facts.too_old} is too old: this agent works with 99.0 and newer"
        flows = FlowDriver(f"{private_ovs.run_dir}/br-int.mgmt", run_dir=private_ovs.run_dir)
        flows.refusal = driver.refusal
        calls: list[Any] = [driver.read(), driver.apply(BRIDGE, ()), driver.transact([]), flows.read()]
        for call in (*calls, flows.apply({}, [1])):
            with pytest.raises(DeviceUnavailable, match=re.escape(why)):
                await call
        assert private_ovs.vsctl("get", "open", ".", "next_cfg") == before
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
