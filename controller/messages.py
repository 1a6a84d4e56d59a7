"""Values as they travel to agents, for all rooms."""

from __future__ import annotations

from controller.rows import Prefix
from tealnet.agent.v1 import agent_pb2 as pb


def prefix_message(prefix: Prefix) -> pb.Prefix:
    """A prefix."""
    return pb.Prefix(address=prefix.network_address.packed, length=prefix.prefixlen)


def mac_bytes(mac: str) -> bytes:
    """The six bytes of a MAC."""
    return bytes.fromhex(mac.replace(":", ""))
