"""From our values to etcd's messages and back. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from controller.etcd.errors import StoreError
from controller.etcd.types import (
    Batch,
    Compare,
    Delete,
    Deleted,
    Event,
    EventKind,
    Fetch,
    Field,
    Get,
    Is,
    KeyValue,
    Nested,
    Op,
    Page,
    Put,
    PutDone,
    Response,
    TxnResult,
)
from tealnet.etcdpb import etcd_pb2 as pb

_TARGET = {
    Field.CREATE: pb.Compare.CREATE,
    Field.MOD: pb.Compare.MOD,
    Field.VERSION: pb.Compare.VERSION,
    Field.VALUE: pb.Compare.VALUE,
}
_RELATION = {
    Is.EQUAL: pb.Compare.EQUAL,
    Is.NOT_EQUAL: pb.Compare.NOT_EQUAL,
    Is.GREATER: pb.Compare.GREATER,
    Is.LESS: pb.Compare.LESS,
}


def compare_message(compare: Compare) -> pb.Compare:
    """A condition as etcd wants it."""
    message = pb.Compare(
        key=compare.key,
        range_end=compare.end,
        target=_TARGET[compare.field],
        result=_RELATION[compare.relation],
    )
    # Set also when 0: etcd evaluates the field of the oneof that is present.
    setattr(message, compare.field.value, compare.operand)
    return message


def range_message(get: Get, *, revision: int = 0) -> pb.RangeRequest:
    """A range read as etcd wants it."""
    return pb.RangeRequest(
        key=get.key,
        range_end=get.end,
        limit=get.limit,
        revision=revision,
        keys_only=get.fetch is Fetch.KEYS,
        count_only=get.fetch is Fetch.COUNT,
    )


def op_message(op: Op) -> pb.RequestOp:
    """An operation as etcd wants it."""
    match op:
        case Put():
            return pb.RequestOp(request_put=pb.PutRequest(key=op.key, value=op.value, lease=op.lease))
        case Delete():
            return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=op.key, range_end=op.end))
        case Get():
            return pb.RequestOp(request_range=range_message(op))
        case Nested():
            return pb.RequestOp(request_txn=txn_message(op.compares, op.then, op.orelse))
        case _:
            assert_never(op)


def txn_message(compares: Sequence[Compare], then: Sequence[Op], orelse: Sequence[Op]) -> pb.TxnRequest:
    """A transaction as etcd wants it."""
    return pb.TxnRequest(
        compare=[compare_message(c) for c in compares],
        success=[op_message(o) for o in then],
        failure=[op_message(o) for o in orelse],
    )


def writes(ops: Sequence[Op]) -> bool:
    """Whether any of these operations could change the store."""
    return any(
        isinstance(op, Put | Delete) or (isinstance(op, Nested) and (writes(op.then) or writes(op.orelse)))
        for op in ops
    )


def longest_list(compares: Sequence[Compare], then: Sequence[Op], orelse: Sequence[Op]) -> int:
    """The length of the longest list of a transaction; etcd limits each of them separately."""
    inner = [longest_list(o.compares, o.then, o.orelse) for o in (*then, *orelse) if isinstance(o, Nested)]
    return max(len(compares), len(then), len(orelse), *inner, 0)


def key_value(message: pb.KeyValue) -> KeyValue:
    """A key as etcd told it."""
    return KeyValue(
        message.key, message.value, message.create_revision, message.mod_revision, message.version, message.lease
    )


def page(message: pb.RangeResponse) -> Page:
    """The answer to a range read."""
    return Page(tuple(map(key_value, message.kvs)), message.more, message.count, message.header.revision)


def txn_result(message: pb.TxnResponse, *, revision: int = 0) -> TxnResult:
    """The answer to a transaction; nested answers have no header, so they take the outer `revision`."""
    at = revision or message.header.revision
    return TxnResult(message.succeeded, at, tuple(_response(r, revision=at) for r in message.responses))


def _response(message: pb.ResponseOp, *, revision: int) -> Response:
    match message.WhichOneof("response"):
        case "response_range":
            found = page(message.response_range)
            return Page(found.kvs, found.more, found.count, revision)
        case "response_put":
            return PutDone()
        case "response_delete_range":
            return Deleted(message.response_delete_range.deleted)
        case "response_txn":
            return txn_result(message.response_txn, revision=revision)
        case other:
            raise StoreError(f"etcd answered an operation with {other!r}")


def event(message: pb.Event) -> Event:
    """A change as etcd told it."""
    kind = EventKind.DELETE if message.type == pb.Event.DELETE else EventKind.PUT
    return Event(kind, key_value(message.kv), key_value(message.prev_kv) if message.HasField("prev_kv") else None)


def batch(messages: Sequence[pb.Event]) -> Batch:
    """At least one change, in commit order."""
    return Batch(messages[-1].kv.mod_revision, tuple(map(event, messages)))
