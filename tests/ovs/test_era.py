"""The datapath's cache of a real switch: no path outlives the flows that it was made by, also where paths overlap."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from ipaddress import ip_address
from operator import or_
from random import Random

import pytest

from agent.drivers.openflow import Key, Value
from agent.era import BITS, FIRST, RESERVE, STAGES, Eras
from agent.openflow import actions as act
from agent.openflow import oxm
from agent.openflow.flow import Flow
from agent.openflow.oxm import match
from agent.pipeline import PULSE, Feature, Stage
from tests.ovs import datagrams
from tests.ovs.sandbox import Sandbox, as_agent, connected, sandbox, wait_until

__all__ = ["sandbox"]
pytestmark = pytest.mark.ovs

ENDS = ip_address("10.0.0.1"), ip_address("10.0.0.2")


def _rule(priority: int, actions: bytes, **fields: oxm.Value) -> Flow:
    return Flow(0, priority, match(udp=True, **fields), actions, Feature.SECURITY)


def _keyed(flows: Iterable[Flow]) -> dict[Key, Value]:
    return {flow.key: flow for flow in flows}


def _send(ovs: Sandbox, packet: bytes) -> None:
    ovs.inject("p1", datagrams.frame("02:aa:00:00:00:01", "02:aa:00:00:00:02", packet).hex())


def _udp(port: int) -> bytes:
    return datagrams.udp(ENDS, (5000, port), data=b"data")


def _paths(ovs: Sandbox) -> list[bool]:
    """Whether the paths of UDP lead anywhere."""
    lines = ovs.appctl("dpctl/dump-flows").splitlines()
    return [not line.rstrip().endswith("actions:drop") for line in lines if "proto=17" in line]


@pytest.mark.parametrize(("old", "new"), [(b"", act.output(2)), (act.output(2), b"")], ids=["let-through", "denied"])
async def test_no_path_outlives_its_flow(sandbox: Sandbox, old: bytes, new: bytes) -> None:
    """A path of one UDP port, from when a flow looked at ports, and one of all ports: found before the other one."""
    sandbox.add_port("br-int", "p1", 1)
    sandbox.add_port("br-int", "p2", 2)
    port_80, before, after = _rule(10, old, udp_dst=80), _rule(1, old), _rule(1, new)
    async with as_agent(sandbox) as driver:
        assert await driver.apply(_keyed([PULSE, port_80, before]), []) == {}
        _send(sandbox, datagrams.tcp(ENDS, (5000, 80), datagrams.SYN))  # the first path that looks at no ports
        _send(sandbox, _udp(80))
        wait_until(lambda: _paths(sandbox) == [bool(old)], "a path of port 80")
        assert await driver.apply({}, [port_80.key]) == {}
        await driver.revalidated()
        _send(sandbox, _udp(81))
        wait_until(lambda: len(_paths(sandbox)) > 0, "a path of all ports")
        assert await driver.apply(_keyed([after]), [before.key]) == {}
        await driver.revalidated()
        for port in (80, 81):
            _send(sandbox, _udp(port))
        wait_until(lambda: len(_paths(sandbox)) > 0, "new paths")
        assert set(_paths(sandbox)) == {bool(new)}


async def test_an_era_is_nobodys_business(sandbox: Sandbox) -> None:
    """It begins with what narrows or goes, in the same bundle; nobody is told of its flows, and none is left over."""
    mine = _rule(1, b"")

    def there() -> list[str]:
        return [line for line in sandbox.flows("br-int", cookies=True) if line.startswith("cookie=0x7406")]

    async with as_agent(sandbox) as driver:
        await driver.apply(_keyed([PULSE]), [])
        assert there() == []
        await driver.apply(_keyed([mine]), [])
        first = there()
        assert len(first) == len(STAGES) and await driver.read() == _keyed([PULSE, mine])
        generation = driver.facts().generation
        await driver.apply({}, [mine.key])
        second = there()
        assert len(second) == len(STAGES) and len(set(first) & set(second)) == len(STAGES) - 1, "but for its table"
        assert driver.facts().generation == generation
    async with as_agent(sandbox) as driver:  # the next process ends it
        assert await driver.read() == _keyed([PULSE])
        await driver.apply(_keyed([mine]), [])
        assert len(there()) == len(STAGES) and not set(there()) & set(second)
    async with connected(sandbox.mgmt("br-int"), run_dir=sandbox.run_dir) as driver:
        assert len(await driver.read()) == 2 + len(STAGES), "who has no use for them sees and removes them"


def _looked_at(flows: Iterable[Flow]) -> dict[int, int]:
    """Table → the bits of pkt_mark that an era's flow looks at there."""
    return {flow.table: mask for flow in flows for field, _, mask in oxm.decode(flow.match) if field.name == "pkt_mark"}


def _of(tables: Iterable[int], era: dict[int, int]) -> int:
    """The bits that a path which has looked at these tables looks at."""
    return reduce(or_, (era.get(table, 0) for table in tables), 0)


def test_the_first_era_is_whole_and_looks_at_many_bits() -> None:
    first = _looked_at(Eras().flows({Stage.COLOR}))
    assert first.keys() == set(STAGES) and {bits.bit_count() for bits in first.values()} == {FIRST}
    assert first != _looked_at(Eras().flows(None)), "no process looks at all that another one does"


@pytest.mark.parametrize("seed", range(20))
def test_no_path_looks_at_all_that_its_successors_do(seed: int) -> None:
    """Whoever has looked at a table that changes lacks the new bit, and so is deleted; who has not may stay.

    Also one that was made when the switch had not forgotten the eras before: it looks at the bits of all.
    """
    dice, eras = Random(seed), Eras()
    history = [_looked_at(eras.flows(None))]
    for _ in range(200):
        tables = None if dice.random() < 0.02 else set(dice.sample(list(Stage), dice.choice((1, 1, 1, 2, 4))))
        era = _looked_at(eras.flows(tables))
        changed = set(STAGES) if tables is None else tables
        for _ in range(20):
            path = set(dice.sample(list(Stage), 8)) | {dice.choice(sorted(changed))}
            late = dice.choice((1, 1, 2, RESERVE // 2))
            of_a_path = reduce(or_, (_of(path, then) for then in history[-late:]), 0)
            assert _of(path & changed, era) & ~of_a_path, "a path would be changed, not deleted"
        history.append(era)


def test_where_nothing_changes_paths_stay() -> None:
    eras = Eras()
    before = _looked_at(eras.flows(None))
    after = _looked_at(eras.flows({Stage.COLOR}))
    assert {table: bits for table, bits in after.items() if table != Stage.COLOR} == before
    assert after[Stage.COLOR].bit_count() == 1 and not after[Stage.COLOR] & before[Stage.CLASSIFY]


def test_bits_never_run_out() -> None:
    eras = Eras()
    for table in [*Stage, *Stage]:
        live = reduce(or_, _looked_at(eras.flows({table})).values())
        assert BITS - live.bit_count() >= RESERVE - 1
