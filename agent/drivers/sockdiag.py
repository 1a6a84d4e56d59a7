"""Sockets of workloads, by the kernel's socket monitoring (sock_diag(7)): those of given connections are closed.

Jobs for the namespace thread. A destroyed TCP socket tells its owner ECONNABORTED and its other end by a reset, so
both notice at once.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

from agent.drivers.allow import PlacementRefused
from agent.drivers.kernel import Kernel, NetnsMissing
from agent.drivers.netlink import Message, Netlink

Address = IPv4Address | IPv6Address
Ends = tuple[Address, int, Address, int]  # local address and port, the other's

_SOCK_DIAG = 4  # protocol
_BY_FAMILY, _DESTROY = 20, 21
_REQUEST = struct.Struct("=BBBxI")  # family, protocol, extensions, states; then the id
_ID = struct.Struct("!HH16s16s")  # ports, addresses; then interface and cookie as they came
_LISTEN, _TIME_WAIT = 10, 6
_STATES = 0xFFF & ~(1 << _LISTEN) & ~(1 << _TIME_WAIT)


def close_connections(kernel: Kernel, path: str, wanted: Collection[Ends]) -> int:
    """Close the TCP sockets of these connections in a namespace; returns how many there were.

    A namespace that is gone has none. Raises OSError (EOPNOTSUPP: a kernel without SOCK_DESTROY).
    """
    try:
        with kernel.enter(path), Netlink(_SOCK_DIAG) as netlink:
            found = [(family, raw) for family, raw, ends in _sockets(netlink) if ends in wanted]
            messages = [
                Message(_DESTROY, _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _STATES) + raw) for family, raw in found
            ]
            for error in netlink.execute(*messages):
                if error is not None and error.errno != errno.ENOENT:  # it has ended meanwhile
                    raise error
    except (NetnsMissing, PlacementRefused):
        return 0
    return len(found)


def _sockets(netlink: Netlink) -> Iterator[tuple[int, bytes, Ends]]:
    """Family, id as the kernel wants it back, and ends of each TCP socket that is connected."""
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _STATES) + bytes(48)
        for body in netlink.dump(Message(_BY_FAMILY, request)):
            raw = body[4:52]  # struct inet_diag_msg: family, state, timer, retransmits; then the id
            sport, dport, source, target = _ID.unpack_from(raw)
            yield family, raw, (_address(family, source), sport, _address(family, target), dport)


def _address(family: int, data: bytes) -> Address:
    if family == socket.AF_INET:
        return ip_address(data[:4])
    address = IPv6Address(data)
    return address.ipv4_mapped or address
