"""Weights of buckets: exactly the shares, with as few slots as will do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.features.colors import aligned, group_of, weights_of
from agent.openflow.flow import GroupKind
from tealnet.core.rows.colors import SLOTS, slots

WEIGHTS = st.lists(st.integers(0, 1000), min_size=2, max_size=8).filter(lambda weights: any(weights))


def switch_slots(weights: list[int]) -> int:
    """How many slots Open vSwitch makes of these weights (ofproto-dpif.c, group_setup_dp_hash_table)."""
    least = -(-sum(weights) // min(weights))
    return max(16, 1 << (least - 1).bit_length())


def webster(weights: list[int], total: int) -> list[int]:
    """How it deals them out: Webster's method."""
    given, divisors = [0] * len(weights), [1] * len(weights)
    for _ in range(total):
        best = max(range(len(weights)), key=lambda i: (weights[i] / divisors[i], -i))
        given[best] += 1
        divisors[best] += 2
    return given


@given(WEIGHTS)
def test_the_switch_gives_each_color_exactly_its_share(weights: list[int]) -> None:
    shares = {color: share for color, share in enumerate(slots(weights), 1) if share}
    if len(shares) < 2:
        return
    buckets = weights_of(shares)
    total = switch_slots([weight for _, weight in buckets])
    assert total <= SLOTS
    got: dict[int, int] = {}
    for (color, _), share in zip(buckets, webster([weight for _, weight in buckets], total), strict=True):
        got[color] = got.get(color, 0) + share
    assert {color: share * SLOTS // total for color, share in got.items()} == shares


def test_few_slots_where_few_will_do() -> None:
    assert weights_of({1: 128, 2: 128}) == [(1, 1), (2, 1)]
    assert weights_of({1: 192, 2: 64}) == [(1, 3), (2, 1)]
    assert weights_of({1: 243, 2: 13}) == [(1, 1), (1, 242), (2, 13)]
    assert weights_of({1: 1, 2: 255}) == [(1, 1), (2, 255)]
    assert group_of(7, {2: 256}).kind is GroupKind.INDIRECT


@given(st.integers(0, SLOTS - 1), st.integers(1, SLOTS))
def test_a_range_is_cut_into_what_masks_can_match(start: int, count: int) -> None:
    count = min(count, SLOTS - start)
    found: list[int] = []
    for first, size in aligned(start, count):
        assert first % size == 0
        found += range(first, first + size)
    assert found == list(range(start, start + count))
