"""Conntrack zones on a real vswitchd: limits and timeouts, written, read back, and lost where they are lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest

from agent.drivers.base import DeviceUnavailable
from agent.drivers.ovsdb import OvsdbDriver
from agent.drivers.unixctl import UnixctlError, unixctl
from agent.drivers.zone import ZoneDriver
from agent.objects import Zone
from tests.ovs import datagrams
from tests.ovs.sandbox import DEADLINE, Sandbox, sandbox, wait_until

__all__ = ["sandbox"]

pytestmark = pytest.mark.ovs


forgotten: list[int] = []
issued = [17]


async def forget(zones: Collection[int]) -> None:
    forgotten.extend(zones)


@asynccontextmanager
async def zones_of(ovs: Sandbox) -> AsyncIterator[tuple[ZoneDriver, OvsdbDriver]]:
    """The driver, with two ports of ours on the bridge: 17 and 18."""
    ovs.vsctl("set", "Bridge", "br-int", "external_ids:tealnet=1")
    for number in (17, 18):
        port = f"tn{number:012x}"
        ovs.add_port("br-int", port, number)
        ids = [f"external_ids:tealnet={number:032x}", f"external_ids:tealnet-ofport={number}"]
        ovs.vsctl("set", "Port", port, ids[0], "--", "set", "Interface", port, *ids)
    ovsdb = OvsdbDriver(ovs.db, run_dir=ovs.run_dir)
    task = asyncio.create_task(ovsdb.run())
    try:
        async with asyncio.timeout(DEADLINE):
            async for facts in ovsdb.changes():
                if set(facts.ofports.values()) == {17, 18}:
                    break
        driver = ZoneDriver(ovsdb, run_dir=ovs.run_dir, datapath="dummy", issued=lambda: issued, forget=forget)
        yield driver, ovsdb
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_command_that_vswitchd_does_not_know_yet_is_no_answer(sandbox: Sandbox) -> None:
    with pytest.raises(DeviceUnavailable, match="not known yet"):
        await unixctl(sandbox.vswitchd_ctl(), "no/such", "word")
    with pytest.raises(UnixctlError):  # but a refusal is one
        await unixctl(sandbox.vswitchd_ctl(), "ofproto/trace")


async def test_what_is_written_is_read_back_and_in_force(sandbox: Sandbox) -> None:
    async with zones_of(sandbox) as (driver, _):
        assert await driver.read() == {}
        wanted = {17: Zone(17, 100, 300), 18: Zone(18, 50)}
        assert await driver.apply(wanted, []) == {}
        assert await driver.read() == wanted
        assert "zone=17,limit=100" in sandbox.appctl("dpctl/ct-get-limits")
        assert "300" in sandbox.vsctl("list-zone-tp", "dummy")
        usage = (await driver.usage())[17]
        assert (usage.limit, usage.count) == (100, 0)


async def test_only_what_differs_is_changed_and_all_of_it_goes(sandbox: Sandbox) -> None:
    async with zones_of(sandbox) as (driver, ovsdb):
        await driver.apply({17: Zone(17, 100, 300), 18: Zone(18, 100, 300)}, [])
        assert len(ovsdb.replica().tables["CT_Zone"]) == 1, "zones with one timeout share a row"
        await driver.apply({18: Zone(18, 200)}, [])
        assert await driver.read() == {17: Zone(17, 100, 300), 18: Zone(18, 200)}
        forgotten.clear()
        assert await driver.apply({}, [17, 18]) == {}
        assert await driver.read() == {} and forgotten == [17, 18]
        assert ovsdb.replica().tables["CT_Zone"] == {}


async def test_zones_of_others_are_left_alone(sandbox: Sandbox) -> None:
    async with zones_of(sandbox) as (driver, _):
        made = ["--id=@d", "create", "Datapath", "datapath_version=x"]
        sandbox.vsctl(*made, "--", "set", "Open_vSwitch", ".", "datapaths:dummy=@d")
        sandbox.vsctl("add-zone-tp", "dummy", "zone=900", "udp_first=7")
        sandbox.appctl("dpctl/ct-set-limits", "zone=900,limit=9")
        while failures := await driver.apply({17: Zone(17, 100, 300)}, []):
            assert failures[17].reason == "OvsChanged"  # it has not heard of that row yet
        assert await driver.read() == {17: Zone(17, 100, 300)}
        await driver.apply({}, [17])
        assert "zone=900,limit=9" in sandbox.appctl("dpctl/ct-get-limits")
        assert "udp_first=7" in sandbox.vsctl("list-zone-tp", "dummy")


async def test_connections_are_told_by_zone(sandbox: Sandbox) -> None:
    async with zones_of(sandbox) as (driver, _):
        ends = ip_address("10.0.0.1"), ip_address("10.0.0.2")
        for zone in (17, 18, 19):
            sandbox.ofctl("add-flow", "br-int", f"udp,udp_dst={zone},actions=ct(commit,zone={zone})")
            packet = datagrams.udp(ends, (5000, zone))
            frame = datagrams.frame("02:aa:00:00:00:01", "02:aa:00:00:00:02", packet)
            sandbox.inject("tn000000000011", frame.hex())
        wait_until(lambda: "UDP: 3" in sandbox.appctl("dpctl/ct-stats-show"), "three connections")

        async def told(zones: Collection[int] | None) -> list[int]:
            return sorted(row.zone for row in await driver.connections(zones))

        assert await told([17]) == [17]
        assert await told([18, 17, 99]) == [17, 18]
        assert await told([]) == []
        assert await told(None) == [17, 18, 19]
        assert set(await told(range(100))) >= {17, 18, 19}, "asked for many, it may tell all"


async def test_a_zone_outlives_the_row_of_its_port(sandbox: Sandbox) -> None:
    """Somebody deletes ports: what was set in a zone is there as before, and ours as long as its number is issued."""
    async with zones_of(sandbox) as (driver, ovsdb):
        wanted = {17: Zone(17, 100, 300), 18: Zone(18, 50)}
        await driver.apply(wanted, [])
        await asyncio.to_thread(sandbox.add_bridge, "br-other")  # the datapath does not end with the last bridge
        await asyncio.to_thread(sandbox.vsctl, "del-br", "br-int")
        async with asyncio.timeout(DEADLINE):
            async for facts in ovsdb.changes():
                if not facts.ofports:
                    break
        assert await driver.read() == {17: wanted[17]}


async def test_a_tampered_timeout_is_seen(sandbox: Sandbox) -> None:
    async with zones_of(sandbox) as (driver, ovsdb):
        await driver.apply({17: Zone(17, 100, 300)}, [])
        uuid = next(iter(ovsdb.replica().tables["CT_Timeout_Policy"]))
        sandbox.vsctl("set", "CT_Timeout_Policy", uuid, "timeouts:udp_single=3")
        async with asyncio.timeout(DEADLINE):
            async for _ in ovsdb.changes():
                if (await driver.read())[17] == Zone(17, 100, 0):
                    break
        assert await driver.apply({17: Zone(17, 100, 300)}, []) == {}
        assert await driver.read() == {17: Zone(17, 100, 300)}


async def test_a_start_of_vswitchd_loses_limits_and_keeps_timeouts(sandbox: Sandbox) -> None:
    async with zones_of(sandbox) as (driver, ovsdb):
        wanted = {17: Zone(17, 100, 300)}
        await driver.apply(wanted, [])
        starts = ovsdb.facts().vswitchd_starts
        await asyncio.to_thread(sandbox.restart_vswitchd)
        async with asyncio.timeout(DEADLINE):
            async for facts in ovsdb.changes():
                if facts.vswitchd_starts > starts and facts.vswitchd_up:
                    break
        assert await driver.read() == {17: Zone(17, 0, 300)}
        assert await driver.apply(wanted, []) == {}
        assert await driver.read() == wanted
        assert "300" in sandbox.vsctl("list-zone-tp", "dummy")
