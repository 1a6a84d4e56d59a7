"""Desired against actual."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tealnet.core.delta import Delta

keys, values = st.sampled_from("abcd"), st.none() | st.integers(0, 2)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("want"), keys, values),
        st.tuples(st.just("saw"), keys, values),
        st.tuples(st.just("all"), st.dictionaries(keys, st.integers(0, 2)), st.none()),
    ),
    max_size=40,
)


@given(steps)
def test_what_is_left_to_do_is_the_difference(history: list[tuple[str, object, object]]) -> None:
    delta: Delta[str, int] = Delta()
    for what, first, second in history:
        if what == "want":
            delta.want(first, second)  # type: ignore[arg-type]
        elif what == "saw":
            delta.saw(first, second)  # type: ignore[arg-type]
        else:
            delta.saw_all(first)  # type: ignore[arg-type]
    assert delta.to_write == {k for k, v in delta.desired.items() if delta.actual.get(k) != v}
    assert delta.to_delete == delta.actual.keys() - delta.desired.keys()
    for key in list(delta.to_write):
        delta.saw(key, delta.desired[key])
    for key in list(delta.to_delete):
        delta.saw(key, None)
    assert delta.actual == delta.desired and not delta.to_write and not delta.to_delete


def test_a_falsy_value_is_a_value() -> None:
    delta: Delta[str, int] = Delta()
    delta.want("a", 0)
    assert delta.to_write == {"a"}
    delta.saw("a", 0)
    assert not delta.to_write
    delta.want("a", None)
    assert delta.to_delete == {"a"}
