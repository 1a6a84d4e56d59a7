"""What is cut when its rule goes: whose connections, at which end, when, and what costs no look at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address

from agent.closing import Closing
from agent.connections import parse
from agent.inputs import Inputs
from agent.policy.cut import PolicyCutter
from tealnet.core.rows.security import Direction, OnChange, Policy, Rules
from tealnet.core.rows.stream import Attach, LocalPort
from tealnet.core.tables import Graph
from tests.agent.test_cut import Host
from tests.ovs.policies import rule, rules

DB, WEB = 302, 301
SQL, SSH, OUT = (
    rule(1001, Direction.INGRESS, protocol=6),
    rule(1002, Direction.INGRESS, protocol=6),
    rule(1003, Direction.EGRESS),
)
KEEP, REEVALUATE, CUT = OnChange


def line(sport: int, rule: int, code: int, *, zone: int = 12, protocol: str = "tcp") -> str:
    """web → db, as conntrack tells it in the zone of one of them."""
    state = ",protoinfo=(state=ESTABLISHED)" if protocol == "tcp" else ""
    label = f"labels={code << 32 | rule:#x}" if rule else "mark=0"
    return (
        f"{protocol},orig=(src=10.0.0.2,dst=10.0.0.3,sport={sport},dport=80),"
        f"reply=(src=10.0.0.3,dst=10.0.0.2,sport=80,dport={sport}),zone={zone},{label}{state}\n"
    )


# By sport: SQL's, of before with CUT, SSH's, not judged, UDP, in a zone of nobody, and the client's end of the first.
DUMP = "".join((
    line(1, SQL.id, 0), line(2, SQL.id, 2), line(3, SSH.id, 0), line(4, 0, 0), line(5, SQL.id, 0, protocol="udp"),
    line(6, SQL.id, 2, zone=99), line(1, OUT.id, 0, zone=11),
))  # fmt: skip


class World:
    """web in zone 11, db in zone 12; all flows are in place unless `late` says otherwise."""

    def __init__(self, dump: str = DUMP, kind: Attach = Attach.NETNS) -> None:
        self.graph = Graph()
        self.inputs, self.host = Inputs(self.graph), Host(parse(dump))
        self.late: set[str] = set()
        self.revalidations = 0
        self.cutter = PolicyCutter(
            self.graph, self.inputs, Closing(self.inputs, self.host, self.host), waiting=lambda: self.late,
            revalidated=self._revalidated,
        )  # fmt: skip
        for number, (zone, identity, name) in enumerate(((11, WEB, "web"), (12, DB, "db")), 2):
            where = "tap0" if kind is Attach.DEVICE else name
            addresses = (ip_address(f"10.0.0.{number}"),)
            port = LocalPort(
                name, 1, addresses, "02:00:00:00:00:01", identity, (), "acme", name, kind, where, "eth0", Policy.ENFORCE
            )
            self.inputs.localports.put(name, port)
            self.inputs.issued.put(name, zone)

    def put(self, *wanted: Rules) -> None:
        self.inputs.rules.replace_all({row.identity: row for row in (rules(WEB, OUT), *wanted)})
        self.kick()

    def kick(self) -> None:
        self.graph.settle()
        self.cutter.kick()

    @property
    def closed(self) -> dict[str, set[int]]:
        """By workload: the client's ports of the sockets that were closed."""
        web = ip_address("10.0.0.2")
        return {
            path.rpartition(".")[2]: {one[1] if one[0] == web else one[3] for one in ends}
            for path, ends in self.host.closed.items()
        }

    @property
    def forgotten(self) -> set[tuple[int, int]]:
        return {(row.zone, row.ports[0]) for row in self.host.forgotten}

    async def _revalidated(self) -> None:
        self.revalidations += 1


@asynccontextmanager
async def cutting(world: World) -> AsyncIterator[None]:
    task = asyncio.create_task(world.cutter.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_the_guarded_end_is_closed_and_the_connection_forgotten() -> None:
    world = World(line(1, SQL.id, 0) + line(3, SSH.id, 0) + line(5, SQL.id, 0, protocol="udp"))
    async with cutting(world):
        world.put(rules(DB, SQL, SSH, on_change=CUT))
        await world.cutter.settled()
        assert not world.closed
        world.put(rules(DB, SSH, on_change=CUT))
        assert world.cutter.pending()
        await world.cutter.settled()
    assert world.closed == {"db": {1}}
    assert world.forgotten == {(12, 1), (12, 5)}
    assert world.revalidations == 2


async def test_what_a_connection_remembers_counts_too() -> None:
    for on_change, cut in ((KEEP, {2}), (REEVALUATE, {2}), (CUT, {1, 2})):
        world = World()
        async with cutting(world):
            world.put(rules(DB, SSH, on_change=on_change))  # as a new process finds it
            await world.cutter.settled()
        assert world.closed == {"db": cut}


async def test_what_is_kept_is_cut_when_its_port_says_so_later() -> None:
    world = World(line(1, SQL.id, 0))
    async with cutting(world):
        world.put(rules(DB, SSH))
        await world.cutter.settled()
        assert not world.closed
        world.put(rules(DB, SSH, on_change=CUT))
        await world.cutter.settled()
    assert world.closed == {"db": {1}}


async def test_other_groups_of_a_port_are_other_rules() -> None:
    world = World(line(1, SQL.id, 0))
    async with cutting(world):
        world.put(rules(DB, SQL, on_change=CUT), rules(303, SSH, on_change=CUT))
        await world.cutter.settled()
        world.inputs.localports.put("db", replace(world.inputs.localports.rows["db"], identity=303))
        world.late = {"endpoint/db"}
        world.kick()
        assert not world.cutter.pending()  # an Ack has nothing to wait for: it is not in place
        await asyncio.sleep(0)
        assert not world.closed
        world.late.clear()
        world.kick()
        await world.cutter.settled()
    assert world.closed == {"db": {1}}


async def test_nobody_looks_where_nobody_says_cut() -> None:
    world = World(line(1, SQL.id, 0))
    async with cutting(world):
        world.put(rules(DB, SQL))
        await world.cutter.settled()
        looks = world.host.looks
        assert looks == 1  # there might be what a former process has left
        world.put(rules(DB))
        await world.cutter.settled()
        world.put(rules(DB, SQL, on_change=CUT))
        await world.cutter.settled()
        cut = world.host.looks
        assert cut == looks + 1
        world.put(rules(DB, SQL, SSH, on_change=CUT))  # nothing has gone
        world.inputs.localports.put("new", replace(world.inputs.localports.rows["db"], uid="new", name="new"))
        world.inputs.issued.put("new", 13)  # its zone was emptied
        world.kick()
        await world.cutter.settled()
        assert world.host.looks == cut
        world.put(rules(DB, SQL))  # CUT no more; connections remember it
        await world.cutter.settled()
        world.put(rules(DB))
        await world.cutter.settled()
        assert world.host.looks > cut


async def test_a_virtual_machine_is_only_forgotten() -> None:
    world = World(line(1, SQL.id, 2), Attach.DEVICE)
    world.host.closed = {"no": set()}
    async with cutting(world):
        world.put(rules(DB))
        await world.cutter.settled()
    assert world.host.closed == {"no": set()} and world.forgotten == {(12, 1)}


async def test_a_failure_is_said_of_the_rules_and_tried_again() -> None:
    world = World()
    world.host.down = True
    async with cutting(world):
        world.put(rules(DB, on_change=CUT))
        await world.cutter.settled()
        assert world.cutter.failures[f"rules/{DB}"].reason == "NotClosed"
        world.host.down = False
        await until(lambda: not world.cutter.failures)
        assert world.closed == {"db": {1, 2, 3}} and not world.cutter.pending()


async def test_what_the_kernel_does_not_close_is_forgotten_all_the_same() -> None:
    """Else its guarded end would be heard for ever."""
    world = World(line(1, SQL.id, 0))
    world.host.closes = False
    async with cutting(world):
        world.put(rules(DB, on_change=CUT))
        await world.cutter.settled()
        assert "not supported" in world.cutter.failures[f"rules/{DB}"].text
        assert world.forgotten == {(12, 1)}


async def test_a_failure_goes_with_its_port() -> None:
    world = World()
    world.host.down = True
    async with cutting(world):
        world.put(rules(DB, on_change=CUT))
        await world.cutter.settled()
        assert world.cutter.failures
        for uid in ("web", "db"):
            world.inputs.localports.put(uid, None)
        world.kick()
        await until(lambda: not world.cutter.failures)
    assert not world.closed
