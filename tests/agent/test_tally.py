"""What conntrack could not do as it should: counted and told."""

from __future__ import annotations

from agent.conntrack import collision_flows
from agent.drivers.zone import Usage
from agent.inputs import Inputs
from agent.tally import LASTS, Tally
from tealnet.core.rows.stream import decode
from tealnet.core.tables import Graph
from tests.fakes.controller import localport, uid

COOKIES = [flow.cookie for flow in collision_flows()]


class Switch:
    """What the switch would tell."""

    def __init__(self) -> None:
        self.counts: dict[int, tuple[int, int]] = {1: (1000, 1000)}
        self.zones: dict[int, Usage] = {}

    async def packets(self) -> dict[int, tuple[int, int]]:
        return self.counts

    async def usage(self) -> dict[int, Usage]:
        return self.zones


async def test_collisions_are_counted_from_look_to_look() -> None:
    switch = Switch()
    tally = Tally(Inputs(Graph()), packets=switch.packets, usage=switch.usage)
    said = []
    for at, counts in ((0, [70, 1]), (10, [70, 1]), (20, [75, 4]), (30, [2, 4]), (30 + LASTS, [2, 4]), (200, [2, 4])):
        switch.counts = {cookie: (count, 0) for cookie, count in zip(COOKIES, counts, strict=False)}
        await tally.look(now=at)
        said.append((tally.collisions, [one.type for one in tally.conditions()]))
    # What was there at the first look is not ours to count; a flow that was written again counts from 0.
    assert [count for count, _ in said] == [0, 0, 8, 10, 10, 10]
    assert [types for _, types in said] == [[], [], *[["ColorCollision"]] * 3, []]


async def test_a_port_with_as_many_connections_as_are_remembered_is_named() -> None:
    switch, inputs = Switch(), Inputs(Graph())
    key, body = localport(1)
    inputs.put(key, decode(key, body))
    inputs.issued.put(uid(1), 10)
    tally = Tally(inputs, packets=switch.packets, usage=switch.usage)
    switch.zones = {10: Usage(20, 19), 11: Usage(20, 20), 12: Usage(0, 20)}
    await tally.look(now=0)
    assert not tally.full and not [*tally.conditions()], "others' zones are others' business"
    switch.zones[10] = Usage(20, 20)
    await tally.look(now=1)
    assert set(tally.full) == {10}
    (condition,) = tally.conditions()
    assert condition.type == "ConnectionsFull" and "acme/port-1" in condition.text and "20" in condition.text
    switch.zones[10] = Usage(20, 12)
    await tally.look(now=2)
    assert not [*tally.conditions()]
