"""Names of our objects on a host, made only from validated values."""

from __future__ import annotations

import hashlib

from agent.objects import Marks, NetnsKind, NetnsRef
from tealnet.core.rows.stream import Attach, LocalPort

NETNS_DIRECTORY = "/run/netns"


def device(port: LocalPort) -> str:
    """The host-side device: its own name for DEVICE, else `tn` + 12 hex of the port uid's hash (14 characters)."""
    if port.kind is Attach.DEVICE:
        return port.where
    return Marks.DEVICE_PREFIX + hashlib.blake2b(port.uid.encode(), digest_size=6).hexdigest()


def namespace(port: LocalPort) -> str:
    """The workload namespace of a NETNS port; the dot can be in neither part."""
    return f"{port.tenant}.{port.where}"


def netns(port: LocalPort) -> NetnsRef:
    """Where the workload side of a port's link lives."""
    if port.kind is Attach.NETNS:
        return NetnsRef(NetnsKind.OURS, f"{NETNS_DIRECTORY}/{namespace(port)}")
    if port.kind is Attach.NETNS_PATH:
        return NetnsRef(NetnsKind.PATH, port.where)
    return NetnsRef(NetnsKind.HOST, "")
