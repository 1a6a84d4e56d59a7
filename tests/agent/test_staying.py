"""Flows of who moves to another home stay until no packet can be on its way to them; all others go at once."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from agent.features.l2 import _segment
from agent.pipeline import Stage, domain_of
from agent.staying import Staying
from tealnet.core.delta import Delta
from tests.ovs.guarded import DOMAIN, SEGMENT


class Flow(NamedTuple):
    owner: str
    home: int | None


class Switch:
    """Flows by key; `keys` are owner and home."""

    def __init__(self) -> None:
        self.delta: Delta[Any, Any] = Delta()
        self.caught_up = asyncio.Event()
        self.rounds = 0
        self.staying = Staying(
            self.delta,
            home=lambda value: value.home if value else None,
            beside=lambda key: [flow for flow in self.delta.desired.values() if flow.owner == key[0]],  # type: ignore
            revalidated=self._revalidated,
        )

    async def _revalidated(self) -> None:
        self.rounds += 1
        await self.caught_up.wait()

    def want(self, *flows: tuple[str, int | None]) -> set[object]:
        """Only these from now on; returns what stays of those that are not wanted any more."""
        for key in self.delta.desired.keys() - set(flows):
            self.delta.want(key, None)
        for owner, home in flows:
            self.delta.want((owner, home), Flow(owner, home))
        return self.step()

    def step(self) -> set[object]:
        write, delete = set(self.delta.to_write), set(self.delta.to_delete)
        kept = set(self.staying.keep(delete))
        for key in write:
            self.delta.saw(key, self.delta.desired[key])
        for key in delete - kept:
            self.delta.saw(key, None)
        self.staying.written()
        return kept


async def test_who_moves_is_let_go_when_the_datapath_has_caught_up() -> None:
    switch, woken = Switch(), asyncio.Event()
    task = asyncio.create_task(switch.staying.run(woken.set))
    assert not switch.want(("web", 7), ("db", 8), ("db", None))
    assert switch.want(("web", 7), ("db", 7)) == {("db", 8)}  # what is in no domain goes
    assert switch.step() == {("db", 8)}  # other steps meanwhile do not make it go
    assert not woken.is_set()
    switch.caught_up.set()
    async with asyncio.timeout(5):
        await woken.wait()
    assert not switch.step() and ("db", 8) not in switch.delta.actual
    task.cancel()


async def test_who_goes_or_changes_at_home_does_not_stay() -> None:
    switch = Switch()
    switch.want(("web", 7), ("db", 8))
    assert not switch.want(("web", 7))
    switch.delta.want(("web", 1), Flow("web", 7))  # another flow in the same domain
    switch.delta.want(("web", 7), None)
    assert not switch.step()


async def test_who_comes_back_is_at_home_and_leaves_anew() -> None:
    switch, woken = Switch(), asyncio.Event()
    task = asyncio.create_task(switch.staying.run(woken.set))
    switch.want(("db", 8))
    assert switch.want(("db", 7)) == {("db", 8)}
    await asyncio.sleep(0)  # the round begins
    assert switch.want(("db", 8)) == {("db", 7)}
    assert switch.want(("db", 7)) == {("db", 8)}  # left once more, after the round had begun
    rounds = switch.rounds
    switch.caught_up.set()
    async with asyncio.timeout(5):
        await woken.wait()
        while switch.step():  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert switch.rounds > rounds  # what its last leaving waited for began after that
    task.cancel()


def test_flows_that_look_up_a_target_are_in_a_domain() -> None:
    homes = {flow.table: domain_of(flow) for flow in _segment(SEGMENT)}
    assert homes[Stage.ENDPOINT] == DOMAIN and homes[Stage.WIRE] is None and homes[Stage.SERVICE] is None
