from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.etcd import wire
from controller.etcd.links import Links, parse_endpoint
from controller.etcd.types import END_OF_KEYS, Op, absent, delete, get, nested, prefix_end, put


@given(st.binary(max_size=4), st.binary(max_size=6))
def test_prefix_end_bounds_exactly_the_keys_with_the_prefix(prefix: bytes, key: bytes) -> None:
    end = prefix_end(prefix)
    in_range = prefix <= key and (end == END_OF_KEYS or key < end)
    assert in_range == key.startswith(prefix)


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"a/", b"a0"), (b"a\xff", b"b"), (b"a\xff\xff", b"b"), (b"\xff\xff", END_OF_KEYS), (b"", END_OF_KEYS)],
)
def test_prefix_end(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end


@pytest.mark.parametrize(
    ("ops", "expected"),
    [
        ([], False),
        ([get(b"a")], False),
        ([nested([], [get(b"a")], [])], False),
        ([get(b"a"), put(b"a", b"")], True),
        ([delete(b"a")], True),
        ([nested([], [], [nested([], [delete(b"a")])])], True),
    ],
)
def test_what_may_change_the_store_is_never_repeated(ops: list[Op], expected: bool) -> None:
    assert wire.writes(ops) is expected


def test_the_longest_list_counts_nested_ones() -> None:
    inner = nested([absent(b"a")] * 3, [get(b"a")] * 7)
    assert wire.longest_list([absent(b"a")] * 2, [inner], [get(b"a")] * 5) == 7
    assert wire.longest_list([], [], []) == 0


def test_a_compare_with_zero_is_sent_as_zero() -> None:
    assert wire.compare_message(absent(b"a")).WhichOneof("target_union") == "create_revision"


@pytest.mark.parametrize(
    ("endpoint", "target", "secure"),
    [
        ("https://etcd.example.org:2379", "etcd.example.org:2379", True),
        ("http://127.0.0.1:2379", "127.0.0.1:2379", False),
        ("http://[::1]:2379", "[::1]:2379", False),
        ("unix:/run/x/client:0", "unix:/run/x/client:0", False),
        ("unix:///run/x/client:0", "unix:/run/x/client:0", False),
    ],
)
def test_endpoints(endpoint: str, target: str, secure: bool) -> None:
    assert parse_endpoint(endpoint) == (target, secure)


@pytest.mark.parametrize(
    "endpoint", ["", "localhost:2379", "https://host", "ftp://h:1", "unix:relative", "http://h:1/x"]
)
def test_bad_endpoints_are_named(endpoint: str) -> None:
    with pytest.raises(ValueError, match="etcd endpoint"):
        parse_endpoint(endpoint)


def test_https_needs_a_ca_and_there_must_be_an_endpoint() -> None:
    with pytest.raises(ValueError, match="CA certificate"):
        Links(["https://h:1"], None)
    with pytest.raises(ValueError, match="at least one"):
        Links([], None)
