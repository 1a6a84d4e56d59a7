"""Resolving the way to other hosts: quick for those who answer, and cheap for those who do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from agent.drivers.underlay import NUD_FAILED, NextHop, _resolve

STATE_REACHABLE, STATE_INCOMPLETE = 0x02, 0x01
HOP = NextHop("br-underlay", 3, "192.0.2.7")


class Message(dict[str, Any]):
    """As netlink tells a neighbour."""

    def get_attr(self, name: str) -> Any:
        return self["attrs"].get(name)


class Kernel:
    """A neighbour table in which `states` follow each other, one for each look."""

    def __init__(self, *states: int) -> None:
        self.states, self.looks, self.asked = list(states), 0, 0

    async def neigh(self, command: str, **_: Any) -> AsyncIterator[Message]:
        if command == "dump":
            self.looks += 1
        else:
            self.asked += 1
        return self._table()

    async def _table(self) -> AsyncIterator[Message]:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        yield Message(ifindex=3, state=state, attrs={"NDA_DST": HOP.address, "NDA_LLADDR": "02:00:00:00:00:07"})


async def test_who_is_down_is_looked_for_less_and_less() -> None:
    kernel = Kernel(STATE_INCOMPLETE)
    assert await _resolve(kernel, {HOP}, 1.0) == {}
    assert kernel.asked == 1
    assert 5 <= kernel.looks <= 12, "each look costs milliseconds, in every agent of the cluster"


async def test_who_answers_is_found_at_once_and_who_has_failed_is_not_waited_for() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    kernel = Kernel(STATE_INCOMPLETE, STATE_INCOMPLETE, STATE_REACHABLE)
    assert await _resolve(kernel, {HOP}, 3.0) == {HOP: "02:00:00:00:00:07"}
    assert await _resolve(Kernel(STATE_INCOMPLETE, NUD_FAILED), {HOP}, 3.0) == {}
    assert loop.time() - began < 1.0
