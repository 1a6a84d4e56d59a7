"""Ranges of ports as the fewest (value, mask) pairs that flows can match: the largest aligned blocks in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from tealnet.core.rows.security import Ports

ALL = 0xFFFF


def port_masks(ranges: Iterable[Ports]) -> tuple[tuple[int, int], ...]:
    """The pairs of all ranges together, in ascending order; (0, 0) for every port. Ranges may overlap and touch."""
    return tuple(block for first, last in _merged(ranges) for block in _blocks(first, last))


def _merged(ranges: Iterable[Ports]) -> Iterator[Ports]:
    """The same ports in ranges that neither overlap nor touch: two halves of a block must meet to be one."""
    ordered = sorted(ranges)
    if not ordered:
        return
    first, last = ordered[0]
    for _, (next_first, next_last) in pairwise(ordered):
        if next_first > last + 1:
            yield Ports(first, last)
            first, last = next_first, next_last
        last = max(last, next_last)
    yield Ports(first, last)


def _blocks(first: int, last: int) -> Iterator[tuple[int, int]]:
    """From the left, always the largest block that is aligned here and does not go beyond the end."""
    while first <= last:
        size = first & -first or ALL + 1
        while first + size - 1 > last:
            size >>= 1
        yield first, ALL & ~(size - 1)
        first += size
