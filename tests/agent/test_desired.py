"""The union of what features want, who owns it, and who loses when two want one place."""

from __future__ import annotations

from collections.abc import Hashable

from hypothesis import given
from hypothesis import strategies as st

from agent.desired import Desired, Pairs, PlaceOf, Wants
from tealnet.core.tables import Graph, Read, Table


class Room:
    """Two tables of a feature, for one layer, whose rows are the wanted pairs themselves."""

    def __init__(self, places: dict[str, PlaceOf] | None = None) -> None:
        self.graph = Graph()
        self.first: Table[str, Pairs] = self.graph.table()
        self.second: Table[str, Pairs] = self.graph.table()
        wants = [self._wants(self.first, "localport"), self._wants(self.second, "endpoint")]
        self.desired = Desired(wants, places)

    def _wants(self, table: Table[str, Pairs], kind: str) -> Wants:
        def compute(read: Read, key: str) -> Pairs | None:
            row = read.get(table, key)
            if row == (("bad", "bad"),):
                raise RuntimeError("a bug")
            return row

        return Wants("link", self.graph.derive(table, compute), kind)

    def settle(self) -> dict[Hashable, object]:
        self.graph.settle()
        self.desired.update()
        return self.desired.deltas["link"].desired


def test_the_union_of_all_rows_is_wanted() -> None:
    room = Room()
    room.first.put("a", (("k1", 1), ("k2", 2)))
    room.second.put("b", (("k3", 3),))
    assert room.settle() == {"k1": 1, "k2": 2, "k3": 3}
    room.first.put("a", (("k2", 5),))
    assert room.settle() == {"k2": 5, "k3": 3}


def test_what_two_want_alike_goes_with_the_last_of_them() -> None:
    room = Room()
    room.first.put("a", (("k", 1),))
    room.first.put("b", (("k", 1),))
    room.settle()
    assert not room.desired.failures()
    assert room.desired.resources("link", "k") == ["localport/a", "localport/b"]
    room.first.put("a", None)
    assert room.settle() == {"k": 1}
    assert room.desired.resources("link", "k") == ["localport/b"]
    room.first.put("b", None)
    assert room.settle() == {}
    assert room.desired.resources("link", "k") == ["localport/b"]  # until it is gone from the device
    room.desired.forget("link", "k")
    assert room.desired.resources("link", "k") == []


def test_the_first_owner_keeps_a_contested_key_and_the_other_is_reported() -> None:
    room = Room()
    room.second.put("b", (("k", 2),))
    room.settle()
    room.first.put("a", (("k", 1),))
    assert room.settle() == {"k": 1}
    assert {key: failure.reason for key, failure in room.desired.failures().items()} == {"endpoint/b": "Conflict"}
    room.first.put("a", None)
    assert room.settle() == {"k": 2}
    assert not room.desired.failures()


def test_different_keys_may_contest_one_place() -> None:
    room = Room({"link": lambda key, value: value[0]})
    room.first.put("a", (("one", ("place", 1)),))
    room.second.put("b", (("two", ("place", 2)),))
    assert room.settle() == {"one": ("place", 1)}
    assert list(room.desired.failures()) == ["endpoint/b"]
    room.first.put("a", (("three", ("elsewhere", 1)),))
    assert room.settle() == {"three": ("elsewhere", 1), "two": ("place", 2)}


def test_a_row_that_can_not_be_derived_is_absent_and_reported() -> None:
    room = Room()
    room.first.put("a", (("k", 1),))
    room.first.put("b", (("m", 1),))
    room.settle()
    room.first.put("a", (("bad", "bad"),))
    assert room.settle() == {"m": 1}
    assert room.desired.failures()["localport/a"].reason == "CannotDerive"


pairs = st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 2)), max_size=3, unique_by=lambda p: p[0]).map(tuple)
steps = st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), pairs), max_size=30)


@given(steps)
def test_any_history_wants_what_its_last_state_wants(history: list[tuple[bool, str, Pairs]]) -> None:
    room = Room()
    last: dict[tuple[bool, str], Pairs] = {}
    for second, key, row in history:
        (room.second if second else room.first).put(key, row or None)
        last[second, key] = row
        room.settle()
    fresh = Room()
    for (second, key), row in last.items():
        (fresh.second if second else fresh.first).put(key, row or None)
    assert fresh.settle() == room.settle()
    assert fresh.desired.failures() == room.desired.failures()
    delta = room.desired.deltas["link"]
    assert delta.to_write == delta.desired.keys()
