"""Sockets inside workload namespaces, for questions asked from there.

A socket stays in the namespace in which it was made, whoever uses it: only making it is a job of the namespace thread.
"""

from __future__ import annotations

import socket
from enum import Enum
from ipaddress import IPv4Address, IPv6Address

from agent.drivers.kernel import Kernel

Address = IPv4Address | IPv6Address


class Speaks(Enum):
    """What a socket is for."""

    TCP = "TCP"
    ECHO = "ECHO"  # whole ICMP messages; of all that come to the address


def open_inside(kernel: Kernel, path: str, *, speaks: Speaks, source: Address) -> socket.socket:
    """A non-blocking socket in a namespace, bound to one of its addresses.

    Raises NetnsMissing, PlacementRefused, OSError (the address is not there).
    """
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    if speaks is Speaks.TCP:
        kind, protocol = socket.SOCK_STREAM, socket.IPPROTO_TCP
    else:
        kind = socket.SOCK_RAW
        protocol = socket.IPPROTO_ICMP if source.version == 4 else socket.IPPROTO_ICMPV6
    with kernel.enter(path):
        made = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    try:
        made.bind((str(source), 0))
    except OSError:
        made.close()
        raise
    return made
