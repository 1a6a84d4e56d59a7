"""The flow driver on a real ovs-vswitchd, and on a switch that misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.drivers import openflow_session
from agent.drivers.base import DeviceUnavailable
from agent.drivers.openflow import FlowDriver, Foreign, Key, Value
from agent.drivers.openflow_session import RefusedError
from agent.openflow import actions as act
from agent.openflow import message as of
from agent.openflow import reply
from agent.openflow.flow import Bucket, Flow, GroupKind, issued_group
from agent.openflow.oxm import match
from tests.ovs.sandbox import Sandbox, connected, is_connected, sandbox

__all__ = ["sandbox"]  # the fixture

pytestmark = pytest.mark.ovs


def flow(number: int, *actions: bytes, table: int = 5) -> Flow:
    return Flow(table, 10, match(ip=True, ip_src=number), b"".join(actions) or act.resubmit(9), 2)


def keyed(*values: Flow) -> dict[Key, Value]:
    return {each.cookie: each for each in values}


@asynccontextmanager
async def driver_of(ovs: Sandbox) -> AsyncIterator[FlowDriver]:
    async with asyncio.timeout(60), connected(ovs.mgmt("br-int"), run_dir=ovs.run_dir) as driver:
        yield driver


async def aside(function: Callable[..., object], *arguments: object) -> None:
    """Run something that blocks while the driver goes on."""
    await asyncio.to_thread(function, *arguments)


async def changed(driver: FlowDriver, generation: int) -> None:
    async for facts in driver.changes():
        if facts.generation > generation:
            return


async def test_one_bundle_of_5000_flows(sandbox: Sandbox) -> None:
    flows = keyed(*(flow(number) for number in range(5000)))
    async with driver_of(sandbox) as driver:
        assert await driver.apply(flows, []) == {}
        assert await driver.read() == flows
        assert await driver.apply(flows, []) == {}  # again: harmless
        some = list(flows)[::7]
        assert await driver.apply({}, some) == {}
        assert await driver.apply({}, some) == {}  # deleting the absent
        assert await driver.read() == {key: flows[key] for key in flows.keys() - set(some)}
        assert await driver.apply({}, list(flows)) == {}
        assert await driver.read() == {}
        assert driver.facts().generation == 0  # nobody else was there


async def test_a_new_port_is_told_with_its_number_and_nothing_else_of_ports(sandbox: Sandbox) -> None:
    told: list[tuple[str, int]] = []
    async with driver_of(sandbox) as driver:
        driver.on_port = lambda name, number: told.append((name, number))
        await aside(sandbox.add_port, "br-int", "tn0123456789ab", 4711)
        await aside(sandbox.vsctl, "del-port", "br-int", "tn0123456789ab")
        await driver.read()  # told in order, so that nothing else is on its way
    assert told == [("tn0123456789ab", 4711)]


async def test_nothing_to_do(sandbox: Sandbox) -> None:
    async with driver_of(sandbox) as driver:
        assert await driver.apply({}, []) == {}


async def test_poison_fails_alone(sandbox: Sandbox) -> None:
    good = keyed(*(flow(number) for number in range(50)))
    bad = {
        "OpenFlowBadMatch": Flow(5, 7, bytes.fromhex("80001604ffffffff"), b"", 2),  # ip_src of no IP
        "OpenFlowTooLarge": Flow(5, 8, b"", act.resubmit(1) * 5000, 2),
        "OpenFlowBadAction": Flow(5, 9, b"", act.move("ip_src", "reg3"), 2),
    }
    unknown_group = Flow(5, 8, b"", act.group(99), 2)  # found out only on commit
    async with driver_of(sandbox) as driver:
        failures = await driver.apply(good | keyed(*bad.values(), unknown_group), [])
        assert {key: failure.reason for key, failure in failures.items()} == {
            **{each.cookie: reason for reason, each in bad.items()},
            unknown_group.cookie: "OpenFlowBadAction",
        }
        assert [failures[each.cookie].retriable for each in (*bad.values(), unknown_group)] == [
            False,
            False,
            False,
            True,
        ]
        assert await driver.read() == good


async def test_a_bad_group_takes_only_its_flows_along(sandbox: Sandbox) -> None:
    ways = [Bucket(act.resubmit(3), 1)]
    bad = issued_group(5, GroupKind.SELECT, buckets=ways, selection_method="dp_hash", fields=("ip_src",))
    good = issued_group(6, GroupKind.SELECT, buckets=ways)
    users = {number: flow(number, act.group(number)) for number in (5, 6)}
    async with driver_of(sandbox) as driver:
        failures = await driver.apply({bad.key: bad, good.key: good, **keyed(*users.values())}, [])
        assert failures.keys() == {bad.key, users[5].cookie}
        assert await driver.read() == {good.key: good, users[6].cookie: users[6]}


async def test_much_poison_is_bounded(sandbox: Sandbox) -> None:
    good = keyed(*(flow(number) for number in range(10)))
    bad = keyed(*(flow(number, act.group(number)) for number in range(1000, 1100)))
    async with driver_of(sandbox) as driver:
        assert (await driver.apply(bad | good, [])).keys() == bad.keys()
        assert await driver.read() == good


async def test_groups_change_in_place_and_go_last(sandbox: Sandbox) -> None:
    before = issued_group(7, GroupKind.SELECT, selection_method="dp_hash", buckets=[Bucket(act.resubmit(1), 256)])
    after = issued_group(7, GroupKind.SELECT, selection_method="dp_hash", buckets=[Bucket(act.resubmit(2), 256)])
    user = flow(1, act.group(7))
    async with driver_of(sandbox) as driver:
        assert await driver.apply({user.cookie: user, before.key: before}, []) == {}  # whatever their order here
        assert await driver.apply({after.key: after}, []) == {}
        assert await driver.read() == {user.cookie: user, after.key: after}
        assert await driver.apply({}, [after.key, user.cookie]) == {}
        assert await driver.read() == {}


async def test_foreign_flows_and_groups_are_found_and_go(sandbox: Sandbox) -> None:
    ours = keyed(flow(1))
    async with driver_of(sandbox) as driver:
        await driver.apply(ours, [])
        await aside(sandbox.ofctl, "add-flow", "br-int", "table=7,priority=3,ip,vlan_tci=0,nw_frag=no,actions=drop")
        await aside(sandbox.ofctl, "add-flow", "br-int", "cookie=5,table=7,priority=4,tcp,actions=goto_table:9")
        await aside(sandbox.ofctl, "add-group", "br-int", "group_id=8,type=ff,bucket=watch_port:1,actions=drop")
        found = await driver.read()
        strangers = found.keys() - ours.keys()
        assert strangers == {("foreign", 7, 3, 0), ("foreign", 7, 4, 5), ("group", 8)}
        assert found["foreign", 7, 4, 5] == Foreign(7, 4, 5)
        assert await driver.apply({}, strangers) == {}
        assert await driver.read() == ours


@pytest.mark.parametrize(
    "tampering",
    [
        ("mod-flows", "table=5,actions=drop"),  # keeps the cookie
        ("add-flow", "cookie={cookie},table=5,priority=11,actions=drop"),
        ("add-flow", "cookie={cookie},table=6,priority=11,actions=drop"),
        ("add-flow", "cookie={cookie},table=5,priority=10,ip,nw_src=0.0.0.1,actions=goto_table:9"),
    ],
)
async def test_what_is_not_what_its_cookie_says_is_replaced(sandbox: Sandbox, tampering: tuple[str, str]) -> None:
    one = flow(1)
    wanted = keyed(one, flow(2, table=8))
    async with driver_of(sandbox) as driver:
        await driver.apply(wanted, [])
        await aside(sandbox.ofctl, tampering[0], "br-int", tampering[1].format(cookie=one.cookie))
        found = await driver.read()
        assert one.cookie not in found
        strangers = found.keys() - wanted.keys()
        assert {key[0] for key in strangers if isinstance(key, tuple)} == {"foreign"}
        assert await driver.apply({one.cookie: one}, strangers) == {}
        assert await driver.read() == wanted


async def test_another_spelling_of_a_flow_is_not_rewritten_for_ever(sandbox: Sandbox) -> None:
    """As with another version of Open vSwitch: NXM_NX_REG0 reads back as OXM_OF_PKT_REG0."""
    odd = Flow(5, 10, bytes.fromhex("0001000400000007"), act.resubmit(9), 2)
    async with driver_of(sandbox) as driver:
        await driver.apply(keyed(odd), [])
        strangers = await driver.read()
        assert odd.cookie not in strangers
        await driver.apply(keyed(odd), list(strangers))
        assert await driver.read() == keyed(odd)
        # But what somebody else did to it is not believed.
        generation = driver.facts().generation
        await aside(sandbox.ofctl, "mod-flows", "br-int", "table=5,actions=drop")
        await changed(driver, generation)
        assert odd.cookie not in await driver.read()


@pytest.mark.parametrize(
    "command",
    [
        ("del-flows", "table=5"),
        ("add-flow", "table=9,actions=drop"),
        ("mod-flows", "table=5,actions=drop"),
        ("del-groups", "group_id=7"),
        ("add-group", "group_id=8,type=all"),
    ],
)
async def test_changes_by_others_are_told(sandbox: Sandbox, command: tuple[str, str]) -> None:
    group = issued_group(7, GroupKind.ALL, buckets=[])
    async with driver_of(sandbox) as driver:
        await driver.apply({group.key: group, **keyed(flow(1))}, [])
        assert driver.facts().generation == 0
        await aside(sandbox.ofctl, command[0], "br-int", command[1])
        await changed(driver, 0)


async def test_a_flood_of_changes_by_others_ends_in_a_reading(sandbox: Sandbox) -> None:
    """More than the switch keeps for a slow listener: it pauses, and says so."""
    flows = keyed(*(flow(number) for number in range(5000)))
    async with driver_of(sandbox) as driver:
        await driver.apply(flows, [])
        await aside(sandbox.ofctl, "del-flows", "br-int")
        await changed(driver, 0)
        assert await driver.read() == {}
        await driver.apply(flows, [])
        assert await driver.read() == flows


async def test_restart_of_vswitchd(sandbox: Sandbox) -> None:
    wanted = keyed(flow(1))
    async with driver_of(sandbox) as driver:
        await driver.apply(wanted, [])
        await aside(sandbox.kill_vswitchd)
        await driver.closed()
        attempts: list[Callable[[], Awaitable[object]]] = [
            driver.read,
            lambda: driver.apply(wanted, []),
            lambda: driver.flush_zones([1]),
            driver.revalidated,
        ]
        for attempt in attempts:
            with pytest.raises(DeviceUnavailable):
                await attempt()
        assert not driver.facts().connected
        await aside(sandbox.start_vswitchd)
        await is_connected(driver, connections=2)
        assert await driver.read() == {}
        assert await driver.apply(wanted, []) == {}
        assert await driver.read() == wanted


async def test_vswitchd_dies_under_a_bundle(sandbox: Sandbox) -> None:
    flows = keyed(*(flow(number) for number in range(20_000)))
    async with driver_of(sandbox) as driver:
        applying = asyncio.create_task(driver.apply(flows, []))
        await asyncio.sleep(0)
        await aside(sandbox.kill_vswitchd)
        with pytest.raises(DeviceUnavailable):
            await applying
        await aside(sandbox.start_vswitchd)
        await is_connected(driver, connections=2)
        assert await driver.read() == {}


async def test_a_cancelled_bundle_leaves_nothing(sandbox: Sandbox) -> None:
    wanted = keyed(flow(1))
    flows = keyed(*(flow(number) for number in range(20_000)))
    async with driver_of(sandbox) as driver:
        applying = asyncio.create_task(driver.apply(flows, []))
        for _ in range(5):
            await asyncio.sleep(0)
        applying.cancel()
        await asyncio.gather(applying, return_exceptions=True)
        assert await driver.apply(wanted, []) == {}
        assert await driver.read() == wanted


async def test_a_bridge_that_comes_later(sandbox: Sandbox) -> None:
    driver = FlowDriver(sandbox.mgmt("br-late"), run_dir=sandbox.run_dir)
    with pytest.raises(DeviceUnavailable):
        await driver.read()
    task = asyncio.create_task(driver.run())
    try:
        await aside(sandbox.add_bridge, "br-late")
        await is_connected(driver)
        assert await driver.read() == {}
        await aside(sandbox.vsctl, "del-br", "br-late")
        await driver.closed()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_conntrack_packets_and_revalidation(sandbox: Sandbox) -> None:
    sandbox.add_port("br-int", "p1", 1)
    counting = Flow(5, 10, match(metadata=7, in_port=1), b"", 2)
    async with driver_of(sandbox) as driver:
        await driver.apply(keyed(counting), [])
        await driver.flush_zones([17, 18])
        await asyncio.gather(*(driver.revalidated() for _ in range(20)))
        frame = bytes.fromhex("ffffffffffff02000000000188b5") + bytes(50)
        await driver.packet_out(actions=act.resubmit(5), packet=frame, match=match(in_port=1, metadata=7))
        assert "n_packets=1" in sandbox.ofctl("dump-flows", "br-int", "table=5")
        with pytest.raises(RefusedError):
            await driver.packet_out(actions=act.group(99), packet=frame)


async def test_a_pulse_makes_revalidation_quick_and_is_no_flow_of_its_own(sandbox: Sandbox) -> None:
    sandbox.vsctl("set", "Open_vSwitch", ".", "other_config:max-revalidator=2000")
    pulse, other = Flow(62, 0, b"", b"", 1), Flow(5, 10, match(metadata=7), b"", 2)
    driver = FlowDriver(sandbox.mgmt("br-int"), run_dir=sandbox.run_dir, pulse=pulse)
    task = asyncio.create_task(driver.run())
    try:
        await is_connected(driver)
        await driver.apply(keyed(other), [])
        await driver.revalidated()  # takes its time
        assert await driver.read() == keyed(other), "it is not made where it is not wanted"
        await driver.apply(keyed(pulse), [])
        async with asyncio.timeout(1.5):
            for _ in range(5):
                await driver.revalidated()
        assert await driver.read() == keyed(other, pulse)
        await driver.apply({}, [pulse.key])
        await driver.revalidated()
        assert await driver.read() == keyed(other)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# -- a switch that misbehaves


class FakeSwitch:
    """Shakes hands like a switch, then does what the test wants."""

    def __init__(
        self, path: str, then: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    ) -> None:
        self.path = path
        self._then = then

    async def __aenter__(self) -> FakeSwitch:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        framer = reply.Framer()
        writer.write(of.hello(1))
        done = False
        while not done and (data := await reader.read(1 << 16)):
            for message in framer.feed(data):
                done = done or message.type == of.Type.MULTIPART_REQUEST
                if message.type == of.Type.BARRIER_REQUEST:
                    writer.write(of.HEADER.pack(of.VERSION, of.Type.BARRIER_REPLY, 8, message.xid))
                if message.type == of.Type.MULTIPART_REQUEST:  # of the flow monitor: refused
                    body = (1).to_bytes(2, "big") + (2).to_bytes(2, "big")
                    writer.write(of.HEADER.pack(of.VERSION, of.Type.ERROR, 12, message.xid) + body)
        await self._then(reader, writer)


async def test_echo_requests_are_answered(tmp_path: Path) -> None:
    answers: asyncio.Queue[bytes] = asyncio.Queue()

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(of.HEADER.pack(of.VERSION, of.Type.ECHO_REQUEST, 12, 77) + b"ping")
        answers.put_nowait(await reader.read(100))

    async with FakeSwitch(f"{tmp_path}/s", ask) as switch, connected(switch.path, run_dir=str(tmp_path)):
        assert await answers.get() == of.echo_reply(77, b"ping")


async def test_silence_is_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openflow_session, "IDLE", 0.05)
    monkeypatch.setattr(openflow_session, "SILENCE", 0.05)

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(100):
            pass

    async with FakeSwitch(f"{tmp_path}/s", listen) as switch, connected(switch.path, run_dir=str(tmp_path)) as driver:
        with pytest.raises(DeviceUnavailable):
            await driver.read()
        await is_connected(driver, connections=2)


async def test_garbage_is_an_end(tmp_path: Path) -> None:
    async def rave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"\x06\x13\x00\x03" + bytes(100))

    async with FakeSwitch(f"{tmp_path}/s", rave) as switch, connected(switch.path, run_dir=str(tmp_path)) as driver:
        with pytest.raises(DeviceUnavailable):
            await driver.read()
        await is_connected(driver, connections=2)


async def test_a_switch_that_does_not_speak_our_version(sandbox: Sandbox) -> None:
    sandbox.vsctl("set", "Bridge", "br-int", "protocols=OpenFlow13")
    with pytest.raises(DeviceUnavailable):
        async with openflow_session.Session(sandbox.mgmt("br-int"), on_change=lambda cookie: None):
            pass
