"""Who cuts first."""

from __future__ import annotations

import asyncio

from controller.turns import Turns


async def rounds(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_one_at_a_time_and_hurried_ones_at_once() -> None:
    turns, order = Turns(), []

    async def want(who: int) -> None:
        await turns.take(who)
        order.append(who)

    async with asyncio.TaskGroup() as group:
        for who in range(100):
            group.create_task(want(who))
        await rounds(5)
        assert len(order) <= 5, "others get their turn one per round"
        turns.hurry(99)
        turns.hurry(77)
        turns.hurry(1000)  # does not wait
        await rounds(2)
        assert set(order[:9]) >= {99, 77}
    assert sorted(order) == list(range(100))
    left = [who for who in order if who not in (99, 77)]
    assert left == sorted(left), "in the order in which they came"


async def test_one_that_gives_up_does_not_hold_the_others() -> None:
    turns = Turns()
    first = asyncio.create_task(turns.take("first"))
    second = asyncio.create_task(turns.take("second"))
    await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(5):
        await second
        await turns.take("third")  # and when all have gone, it begins anew
    assert first.cancelled() or first.done()
