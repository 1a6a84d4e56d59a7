"""The controller's tables and what it derives from them, fed by stored values: without etcd and without a stream."""

from __future__ import annotations

from typing import Any

from controller import decode, decode_status
from controller.derive import declare
from controller.etcd.types import KeyValue, Put
from controller.keys import Keys
from controller.world import World
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.stream import decode as parse
from tealnet.core.tables import Graph
from tests.controller.making import Maker

KEYS = Keys("0" * 32)
MAKE = Maker(KEYS)


class Derivation:
    """The controller's tables and resources, fed by stored values."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.world = World(self.graph)
        self.resources = declare(self.world, default_mtu=1430)
        self.revision = 0
        self.changed: dict[str, set[str]] = {}

    def put(self, *ops: Put | bytes) -> Derivation:
        """Values are written, keys (bytes) deleted."""
        self.revision += 1
        for op in ops:
            key = op if isinstance(op, bytes) else op.key
            place = decode_status.place(KEYS.relative(key))
            assert place is not None
            table = getattr(self.world, place[0])
            row: Any = None
            if isinstance(op, Put):
                kv = KeyValue(key, op.value, self.revision, self.revision, 1)
                if place[0] in decode_status.INTENTS.values():
                    row = decode.intent(KEYS.relative(key).split("/")[2], kv, KEYS)
                else:
                    row = decode_status.row(place[0], place[1], kv)
            table.put(place[1], row)
        return self

    def settle(self) -> Derivation:
        self.graph.settle()
        self.changed = self.resources.collect()
        assert not self.graph.errors()
        return self

    def rows(self, scope: str) -> dict[str, Any]:
        """What an agent makes of a scope."""
        chunks = self.resources.scope(scope).chunks
        return {key: parse(key, body_of(chunk.encoded)) for key, chunk in chunks.items()}

    def everything(self) -> dict[str, dict[str, bytes]]:
        scopes = self.resources._scopes
        return {name: {key: chunk.version for key, chunk in scope.chunks.items()} for name, scope in scopes.items()}


def body_of(encoded: bytes) -> bytes:
    (resource,) = pb.ScopeDelta.FromString(encoded).upserts
    return resource.body
