"""Everything that reads bytes of others: by name, a function that may raise nothing unexpected, and valid examples.

`test_decoders` throws bounded random bytes at them in every run of the tests; `python -m tests.fuzz` (`make fuzz`) lets
coverage guide what is thrown, for as long as one likes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from agent.checkpoint import MAGIC, CheckpointError, encode, parse
from agent.openflow.errors import ProtocolError
from agent.resources import Resources
from agent.stream import Conversation, SessionOver, Unit
from controller import decode, decode_status
from controller.etcd import StoreError, wire
from controller.etcd.types import KeyValue
from controller.keys import Keys
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.agent.v1 import checkpoint_pb2 as pbc
from tealnet.etcdpb import etcd_pb2
from tealnet.store.v1 import store_pb2
from tests.agent.openflow.test_openflow_garbage import PARSERS
from tests.controller.making import Maker
from tests.fakes.controller import FakeController, endpoint, hostpeer, localport, segment

KEYS = Keys("c" * 32)


@dataclass(frozen=True)
class Decoder:
    """`read` raises only what it says that it raises (`expected`)."""

    read: Callable[[bytes], object]
    expected: tuple[type[Exception], ...]
    examples: tuple[bytes, ...]

    def survive(self, data: bytes) -> None:
        """Raises what is a bug."""
        with contextlib.suppress(*self.expected):
            self.read(data)


# ---- what comes in pieces: two bytes of length before each


def joined(*messages: bytes) -> bytes:
    """Messages as one example."""
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


def split(data: bytes) -> Iterator[bytes]:
    """The messages; lengths may lie."""
    while len(data) > 2:
        size = int.from_bytes(data[:2], "big")
        yield data[2 : 2 + size]
        data = data[2 + size :]


# ---- the agent's side of the stream


def conversation(data: bytes) -> Resources:
    """A session from Welcome on: units are merged as the agent does, and what it then says of itself is consistent."""
    talk, resources = Conversation(), Resources()
    for raw in split(data):
        item = talk.receive(pb.ToAgent.FromString(raw))
        if isinstance(item, Unit):
            resources.merge(item.parts)
            _consistent(resources)
        elif isinstance(item, pb.WantVersions):
            resources.versions(item.scope)
    return resources


def _consistent(resources: Resources) -> None:
    resources.unaccounted()
    again = Resources()
    again.load([pbc.Checkpoint.FromString(resources.snapshot().SerializeToString())])
    for name, digest in resources.digests().items():
        found = again.digests()[name]
        assert (found.bytes(), found.count) == (digest.bytes(), digest.count), name


def _session() -> bytes:
    controller = FakeController()
    host = dict((localport(1), localport(2)))
    domain = dict((segment(), endpoint(1), endpoint(2), endpoint(3), hostpeer(2)))
    units = [
        controller.unit({"host": host, "domain/700": domain}),
        controller.unit({"host": dict((localport(1),)), "domain/700": domain}, proofs=[localport(2)[0]]),
        controller.unit({"host": {}, "domain/700": {}}, whole=["domain/700"]),
        controller.unit({"host": host}),
    ]
    messages = [pb.ToAgent(welcome=pb.Welcome(cluster_uid="c", host_uid="f" * 32, host_number=1, vtep="192.0.2.1"))]
    messages += [pb.ToAgent(update=part) for unit in units for part in unit]
    messages += [pb.ToAgent(want_versions=pb.WantVersions(scope="host")), pb.ToAgent(ping=pb.Ping(number=1))]
    return joined(*(message.SerializeToString() for message in messages))


# ---- its checkpoint


def checkpoint(data: bytes) -> Resources:
    """A file as it lies there."""
    resources = Resources()
    resources.load(parse(data))
    return resources


def records(data: bytes) -> Resources:
    """Records whose checksums are right, and their content anything."""
    return checkpoint(MAGIC + b"".join(encode(pbc.Checkpoint.FromString(raw)) for raw in split(data)))


def _records() -> list[bytes]:
    return [conversation(_session()).snapshot().SerializeToString()]


# ---- etcd


def etcd_range(data: bytes) -> object:
    """An answer to a range."""
    return wire.page(etcd_pb2.RangeResponse.FromString(data))


def etcd_txn(data: bytes) -> object:
    """An answer to a transaction."""
    return wire.txn_result(etcd_pb2.TxnResponse.FromString(data))


def etcd_watch(data: bytes) -> object:
    """An answer of a watch."""
    events = etcd_pb2.WatchResponse.FromString(data).events
    return wire.batch(events) if events else None


def stored(data: bytes) -> object:
    """A key and its value, as the tables take it."""
    key, _, value = data.partition(b"\n")
    place = decode_status.place(KEYS.relative(KEYS.watched[: -len("w/")] + key))
    if place is None:
        return None
    kv = KeyValue(KEYS.watched[: -len("w/")] + key, value, 1, 1, 1)
    table, where = place
    kind = table.removesuffix("s")
    return decode.intent(kind, kv, KEYS) if kind in decode.MESSAGES else decode_status.row(table, where, kv)


def _stored() -> Iterator[bytes]:
    make = Maker(KEYS)
    net, port = "tenants/acme/networks/web", "tenants/acme/ports/p"
    puts: list[Any] = [
        make.tenant("acme"), make.host("h1", 1, vtep="192.0.2.1"), make.network(net, 1),
        make.router("tenants/acme/routers/r", 7, [("10.9.0.0/16", "10.0.0.5")]),
        make.port(port, net, ["10.0.0.5", "fd00::5"], host="h1", allowed=["10.8.0.0/24"]),
        make.tombstone("h1", port, network=net), make.applied(port, "h1"),
    ]  # fmt: skip
    root = len(KEYS.watched) - len("w/")
    yield from (op.key[root:] + b"\n" + op.value for op in puts)
    rows: dict[str, Any] = {
        "w/s/host/u": store_pb2.HostStatusRow(state="LOST"), "w/s/replica/r": store_pb2.ReplicaRow(sessions=3),
        "w/h/u": store_pb2.Session(replica="r", session="s"), "w/b/q": store_pb2.Barrier(revision=5),
        "w/b/q/r": store_pb2.BarrierAnswer(synced=["u"]), "w/m/lineage/1": store_pb2.LineageRow(id="x"),
        "w/n/identity/300": store_pb2.Identity(tenant_uid="t"),
    }  # fmt: skip
    yield from (key.encode() + b"\n" + row.SerializeToString() for key, row in rows.items())
    yield b"w/l/chores\nreplica"


def _etcd(value: Any) -> tuple[bytes, ...]:
    return (value.SerializeToString(),)


_KV = etcd_pb2.KeyValue(key=b"k", value=b"v", create_revision=1, mod_revision=2, version=1)
_RANGE = etcd_pb2.RangeResponse(kvs=[_KV, _KV], count=2, more=True)

DECODERS: dict[str, Decoder] = {
    "stream": Decoder(conversation, (DecodeError, SessionOver), (_session(),)),
    "checkpoint": Decoder(
        checkpoint,
        (CheckpointError,),
        (MAGIC + encode(pbc.Checkpoint(revision=1)) + encode(pbc.Checkpoint(revision=2)),),
    ),
    "records": Decoder(records, (CheckpointError, DecodeError), (joined(*_records()),)),
    "etcd-range": Decoder(etcd_range, (DecodeError,), _etcd(_RANGE)),
    "etcd-txn": Decoder(
        etcd_txn,
        (DecodeError, StoreError),
        _etcd(etcd_pb2.TxnResponse(succeeded=True, responses=[etcd_pb2.ResponseOp(response_range=_RANGE)])),
    ),
    "etcd-watch": Decoder(
        etcd_watch, (DecodeError,), _etcd(etcd_pb2.WatchResponse(events=[etcd_pb2.Event(kv=_KV, prev_kv=_KV)]))
    ),
    "stored": Decoder(stored, (DecodeError, ValueError), tuple(_stored())),
    **{f"openflow-{number}": Decoder(read, (ProtocolError,), (valid,)) for number, (read, valid) in enumerate(PARSERS)},
}
