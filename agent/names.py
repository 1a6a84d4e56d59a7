"""Names of our objects on a host, made only from validated values."""

from __future__ import annotations

import hashlib
import secrets

from agent.objects import Marks, NetnsKind, NetnsRef
from tealnet.core.rows.stream import Attach, LocalPort

NETNS_DIRECTORY = "/run/netns"


def device(port: LocalPort) -> str:
    """The host-side device: its own name for DEVICE, else `tn` + 12 hex of the port uid's hash (14 characters).

    Unless the port has taken a spare: `Inputs.device`.
    """
    return port.where if port.kind is Attach.DEVICE else own_device(port.uid)


def own_device(uid: str) -> str:
    """The host-side device that is made for the port of this uid, where it takes no spare."""
    return Marks.DEVICE_PREFIX + hashlib.blake2b(uid.encode(), digest_size=6).hexdigest()


def spare_device() -> str:
    """One that nobody has had yet."""
    return Marks.DEVICE_PREFIX + secrets.token_hex(6)


def spare_namespace(device: str) -> str:
    """The namespace that a spare's workload side waits in: of no tenant, for no tenant's name is empty."""
    return f".{device}"


def spare_netns(device: str) -> NetnsRef:
    """Where that is."""
    return NetnsRef(NetnsKind.OURS, f"{NETNS_DIRECTORY}/{spare_namespace(device)}")


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
