"""Derived tables: any history ends where a start from scratch ends, and no more runs than must."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tealnet.core.tables import Derived, Graph, Index, Read, Table


@dataclass(frozen=True)
class Item:
    group: int
    size: int


class Model:
    """Items by group; groups with a limit; the sum of a group, capped; the groups that are full; the largest of all."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.items: Table[str, Item] = self.graph.table()
        self.limits: Table[int, int] = self.graph.table()
        self.by_group: Index[Item] = self.items.index(lambda item: (item.group,))
        self.sums: Derived[int, int] = self.graph.derive(self.by_group, self._sum)
        self.by_sum: Index[int] = self.sums.index(lambda total: (total % 3,))
        self.ranks: Derived[int, tuple[int, ...]] = self.graph.derive(self.by_sum, self._rank)
        self.shares: Derived[str, float] = self.graph.derive(self.items, self._share)
        self.runs = 0

    def _sum(self, read: Read, group: int) -> int | None:
        items = read.all(self.by_group, group)
        limit = read.get(self.limits, group)
        total = sum(item.size for item in items)
        return (total if limit is None else min(total, limit)) if items else None

    def _rank(self, read: Read, rest: int) -> tuple[int, ...] | None:
        return tuple(sorted(read.keys(self.by_sum, rest))) or None

    def _share(self, read: Read, key: str) -> float | None:
        self.runs += 1
        item = read.get(self.items, key)
        total = read.get(self.sums, item.group) if item else None
        return item.size / total if item and total else None

    def outputs(self) -> tuple[object, ...]:
        return dict(self.sums.rows), dict(self.ranks.rows), dict(self.shares.rows)


items = st.builds(Item, st.integers(0, 3), st.integers(1, 5))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("item"), st.sampled_from("abcdef"), st.none() | items),
        st.tuples(st.just("limit"), st.integers(0, 3), st.none() | st.integers(1, 8)),
        st.tuples(st.just("settle"), st.none(), st.none()),
    ),
    max_size=40,
)


def play(history: list[tuple[str, object, object]]) -> Model:
    model = Model()
    for what, key, value in history:
        if what == "item":
            model.items.put(key, value)  # type: ignore[arg-type]
        elif what == "limit":
            model.limits.put(key, value)  # type: ignore[arg-type]
        else:
            model.graph.settle()
    model.graph.settle()
    return model


@given(steps)
def test_any_history_ends_like_a_start_from_scratch(history: list[tuple[str, object, object]]) -> None:
    lived = play(history)
    fresh = Model()
    fresh.limits.replace_all(lived.limits.rows)
    fresh.items.replace_all(lived.items.rows)
    fresh.graph.settle()
    assert lived.outputs() == fresh.outputs()
    assert not lived.graph.errors()


@given(steps, steps)
def test_a_resync_is_a_diff(one: list[tuple[str, object, object]], other: list[tuple[str, object, object]]) -> None:
    lived, target = play(one), play(other)
    lived.items.replace_all(target.items.rows)
    lived.limits.replace_all(target.limits.rows)
    lived.graph.settle()
    assert lived.outputs() == target.outputs()
    lived.items.watch_changes()
    lived.items.take_changes()
    lived.items.replace_all(target.items.rows)
    assert not lived.items.take_changes()


@given(steps)
def test_nothing_is_left_of_what_went(history: list[tuple[str, object, object]]) -> None:
    model = play(history)
    model.items.replace_all({})
    model.limits.replace_all({})
    model.graph.settle()
    assert model.outputs() == ({}, {}, {})
    sources = (model.items, model.limits, model.by_group, model.sums, model.by_sum)
    assert not any(model.graph.noted()) and not any(source.readers for source in sources)
    assert not model.by_group.buckets and not model.by_sum.buckets


def test_equal_rows_stop_propagation() -> None:
    model = play([("item", "a", Item(1, 5)), ("item", "b", Item(1, 5)), ("limit", 1, 4)])
    before = model.runs
    model.items.put("b", Item(1, 7))  # the sum stays at its limit
    model.graph.settle()
    assert model.runs == before + 1


def test_only_readers_of_what_changed_run() -> None:
    model = play([("item", str(n), Item(n % 4, 1)) for n in range(100)])
    before = model.runs
    model.items.put("0", Item(0, 2))
    model.graph.settle()
    assert model.runs == before + 25  # those of its group


def test_a_row_that_fails_is_absent_and_alone() -> None:
    graph = Graph()
    table: Table[str, int] = graph.table()

    def inverse(read: Read, key: str) -> float | None:
        row = read.get(table, key)
        return None if row is None else 1 / row

    inverses: Derived[str, float] = graph.derive(table, inverse)
    table.replace_all({"a": 2, "b": 0})
    graph.settle()
    assert inverses.rows == {"a": 0.5}
    assert [(key, type(error)) for key, error in graph.errors()] == [("b", ZeroDivisionError)]
    table.put("b", 4)
    graph.settle()
    assert inverses.rows == {"a": 0.5, "b": 0.25} and not graph.errors()


def test_reading_a_later_table_is_refused() -> None:
    graph = Graph()
    table: Table[str, int] = graph.table()
    early: Derived[str, int] = graph.derive(table, lambda read, key: read.get(late, key))
    late: Derived[str, int] = graph.derive(table, lambda read, key: read.get(table, key))
    table.put("a", 1)
    graph.settle()
    assert isinstance(early.errors["a"], RuntimeError)


def test_changes_are_keyed() -> None:
    graph = Graph()
    table: Table[str, int] = graph.table()
    table.put("old", 1)
    table.watch_changes()
    assert table.take_changes() == {"old"}
    for n in range(5):
        table.put("a", n)
    table.put("old", 1)
    assert table.take_changes() == {"a"}
    assert table.take_changes() == set()


@pytest.mark.parametrize("size", [10_000])
def test_one_change_among_many_is_cheap(size: int) -> None:
    model = play([("item", str(n), Item(n, 1)) for n in range(size)])
    before = model.runs
    model.items.put("5", Item(5, 2))
    model.graph.settle()
    assert model.runs == before + 1
