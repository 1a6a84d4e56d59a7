"""Port ranges as masks: exactly the ports of the ranges, in the fewest pairs."""

from __future__ import annotations

from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.policy.masks import port_masks
from tealnet.core.rows.security import Ports

PORT = st.integers(0, 65535)
RANGES = st.lists(st.tuples(PORT, PORT).map(lambda pair: Ports(min(pair), max(pair))), max_size=6)
SMALL = st.lists(st.tuples(*[st.integers(0, 255)] * 2).map(lambda p: Ports(min(p), max(p))), max_size=5)


def ports_of(masks: tuple[tuple[int, int], ...]) -> list[int]:
    out: list[int] = []
    for value, mask in masks:
        free = 0xFFFF & ~mask
        assert free & (free + 1) == 0, "a mask of the upper bits"
        assert value & free == 0
        out += range(value, value + free + 1)
    return out


@pytest.mark.parametrize(
    ("ranges", "masks"),
    [
        ([], ()),
        ([Ports(80, 80)], ((80, 0xFFFF),)),
        ([Ports(0, 65535)], ((0, 0),)),
        ([Ports(0, 0)], ((0, 0xFFFF),)),
        ([Ports(1, 65535)], tuple((1 << n, 0xFFFF & ~((1 << n) - 1)) for n in range(16))),
        ([Ports(8000, 8099)], ((8000, 0xFFC0), (8064, 0xFFE0), (8096, 0xFFFC))),
        ([Ports(4, 5), Ports(6, 7)], ((4, 0xFFFC),)),
        ([Ports(0, 40), Ports(30, 63)], ((0, 0xFFC0),)),
    ],
)
def test_known_ranges(ranges: list[Ports], masks: tuple[tuple[int, int], ...]) -> None:
    assert port_masks(ranges) == masks


@given(RANGES)
def test_the_masks_are_the_ranges(ranges: list[Ports]) -> None:
    ports = ports_of(port_masks(ranges))
    assert len(ports) == len(set(ports)), "no port twice"
    assert set(ports) == {port for first, last in ranges for port in range(first, last + 1)}


@given(SMALL)
def test_no_fewer_masks_would_do(ranges: list[Ports]) -> None:
    """Against every way to cut the space in halves: the least number of blocks of which all ports are wanted."""
    wanted = frozenset(port for first, last in ranges for port in range(first, last + 1))

    @lru_cache(None)
    def least(first: int, size: int) -> int:
        inside = sum(port in wanted for port in range(first, first + size))
        if inside in (0, size):
            return int(inside > 0)
        return least(first, size // 2) + least(first + size // 2, size // 2)

    assert len(port_masks(ranges)) == least(0, 256)
