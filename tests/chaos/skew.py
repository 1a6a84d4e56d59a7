"""Agents and controllers of different versions, on the wire of the simulation.

EARLIER: all that they say to each other is as in the release (`protos/released.binpb`): fields and messages that are
not in it are taken away. LATER: in each message, down to the bodies of resources, there is a field of which this
version has never heard, and between them come whole messages of that kind. What only a later version could mean by it
is its own (A15); what must hold is that traffic and state stay.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from controller import resources
from tealnet.agent.v1 import agent_pb2 as pb

RELEASED = Path(__file__).parents[2] / "protos" / "released.binpb"
UNKNOWN = b"\xc2\xa9\x07\x03new"  # field 15000, of a type with a length
BODIES = {
    "hostpeer": pb.HostPeer,
    "segment": pb.Segment,
    "endpoint": pb.Endpoint,
    "localport": pb.LocalPort,
    "route": pb.Route,
    "weights": pb.Weights,
    "rules": pb.Rules,
}
Change = Callable[[bytes, type[Message]], bytes]


class Skew(Enum):
    """Of which version the other side is, seen from either."""

    NONE = "none"
    EARLIER = "earlier"
    LATER = "later"


class Wire:
    """What becomes of messages between agents and controllers, and of the bodies in them."""

    def __init__(self, skew: Skew) -> None:
        changes: dict[Skew, Change] = {Skew.NONE: _same, Skew.EARLIER: Released(), Skew.LATER: later}
        self._change = changes[skew]
        self.extra = UNKNOWN if skew is Skew.LATER else b""  # a message that nobody knows
        if skew is not Skew.NONE:
            plain = resources.chunk
            resources.chunk = lambda key, body, requires=(): plain(key, self.body(key, body), requires)

    def from_agent(self, data: bytes) -> bytes:
        """One message to a controller."""
        return self._change(data, pb.FromAgent)

    def to_agent(self, data: bytes) -> bytes:
        """One message to an agent."""
        return self._change(data, pb.ToAgent)

    def body(self, key: str, data: bytes) -> bytes:
        """A resource; it is in digests, so it is changed where it is made."""
        return self._change(data, BODIES[key.partition("/")[0]])


def _same(data: bytes, _: type[Message]) -> bytes:
    return data


def later(data: bytes, kind: type[Message]) -> bytes:
    """With an unknown field in each message in it."""
    message = kind.FromString(data)
    _mark(message)
    return message.SerializeToString()


def _mark(message: Any) -> None:
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for part in value if descriptor.is_repeated else [value]:
                _mark(part)
    message.MergeFromString(UNKNOWN)


class Released:
    """Only what was in the release."""

    def __init__(self) -> None:
        pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(RELEASED.read_bytes()).file:
            pool.Add(file)
        self._pool = pool

    def __call__(self, data: bytes, kind: type[Message]) -> bytes:
        found = self._pool.FindMessageTypeByName(kind.DESCRIPTOR.full_name)
        message = message_factory.GetMessageClass(found).FromString(data)
        message.DiscardUnknownFields()
        return message.SerializeToString()
