"""Errors as they go over the wire: short enough to arrive, whatever was asked."""

from __future__ import annotations

import pytest
from google.rpc import code_pb2, error_details_pb2

from controller.api.interceptors import typed
from controller.errors import ApiError, Blocker, FailedPrecondition, Invalid, NotFound, Violation, shortened
from controller.etcd import LeaseNotFound, OutcomeUnknown, StoreFull, StoreUnavailable, TxnTooLarge

_SMILE = "\U0001f600"


@pytest.mark.parametrize(
    "error",
    [
        Invalid([Violation(f"network.labels{i}", _SMILE * 80) for i in range(5000)]),
        Invalid([Violation("x" * 100_000, "y" * 100_000)]),
        NotFound(_SMILE * 100_000, field="parent"),
        FailedPrecondition("t" * 20_000, [Blocker("IN_USE", "s" * 500, "t" * 500) for _ in range(100)]),
    ],
)
def test_every_status_fits_into_metadata(error: ApiError) -> None:
    status = error.status()
    # 8 KiB is what gRPC clients take; the message is percent-encoded, the details are base64.
    assert len(status.message.encode()) * 3 + status.ByteSize() * 4 // 3 < 7500
    assert status.details[0].Is(error_details_pb2.ErrorInfo.DESCRIPTOR)


def test_of_many_violations_the_first_are_told() -> None:
    status = Invalid([Violation(f"f{i}", "is wrong") for i in range(1000)]).status()
    bad = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad)
    assert [v.field for v in bad.field_violations][:2] == ["f0", "f1"]
    assert 20 < len(bad.field_violations) < 1000


def test_short_texts_stay_whole() -> None:
    assert shortened("abc", 3) == "abc"
    assert shortened("abcdef", 5) == "ab…"
    assert len(shortened(_SMILE * 9, 20).encode()) <= 20


def test_what_the_store_says_is_never_internal() -> None:
    cases = {
        StoreUnavailable("x"): code_pb2.UNAVAILABLE,
        OutcomeUnknown("x"): code_pb2.UNAVAILABLE,
        LeaseNotFound("NOT_FOUND", "x"): code_pb2.UNAVAILABLE,
        StoreFull("RESOURCE_EXHAUSTED", "x"): code_pb2.RESOURCE_EXHAUSTED,
        TxnTooLarge(operations=200, size=9, reason="x"): code_pb2.RESOURCE_EXHAUSTED,
    }
    for error, code in cases.items():
        assert typed(error, "/x").code == code
