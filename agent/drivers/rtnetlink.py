"""Links, addresses and routes in rtnetlink messages (man 7 rtnetlink; linux/if_link.h, if_addr.h, rtnetlink.h)."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network

from agent.drivers.netlink import CREATE, EXCLUSIVE, REPLACE, Message, Netlink, attribute, attributes, nested, text, u32

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
GETNSID = 90
UP, LOOPBACK, NO_ARP = 0x1, 0x8, 0x80  # IFF_*
PROTOCOL = 84  # of addresses (IFA_PROTO, Linux ≥ 5.18) and routes (rtm_protocol) that we made
LINK_SCOPE = 253
AF_INET, AF_INET6 = int(socket.AF_INET), int(socket.AF_INET6)

_IFNAME, _ADDRESS, _MTU, _LINK, _MASTER, _LINKINFO, _IFALIAS = 3, 1, 4, 5, 10, 18, 20
_AF_SPEC, _NET_NS_FD, _EXT_MASK, _LINK_NETNSID = 26, 28, 29, 37
_GROUP, _DOOMED = 27, 0x74656C6E
_SKIP_STATISTICS = 8
_INET6_CONF, _ADDR_GEN_MODE, _GEN_MODE_NONE = 2, 8, 1
_DISABLE_IPV6 = 26  # index in IFLA_INET6_CONF
_NO_DAD, _DAD_FAILED, _TENTATIVE = 0x02, 0x08, 0x40
_MAIN, _UNICAST, _ON_LINK = 254, 1, 4
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """A network device as the kernel tells of it."""

    index: int
    name: str
    kind: str  # "veth", "bridge", …; "" for hardware and loopback
    flags: int
    mtu: int
    mac: str
    alias: str
    master: int  # index, 0 = none
    peer: int  # index of a veth's other end, or of the device below
    peer_nsid: int | None  # the id, in the asking namespace, of the one the peer is in; None = the same namespace
    ipv6_off: bool
    generates: bool  # makes link-local addresses by itself
    group: int

    @property
    def up(self) -> bool:
        """Administratively up."""
        return bool(self.flags & UP)


@dataclass(frozen=True, slots=True)
class AddressInfo:
    """An address of one device."""

    address: str  # with prefix length
    protocol: int  # 0 = nobody said so, or a kernel that does not remember
    usable: bool


@dataclass(frozen=True, slots=True)
class RouteInfo:
    """A route of one device; `gateway` "" = on link."""

    prefix: str
    gateway: str
    protocol: int = PROTOCOL


# -- links


def link(netlink: Netlink, name: str) -> LinkInfo | None:
    """A device by its name."""
    return _one_link(netlink, _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFNAME, name) + u32(_EXT_MASK, _SKIP_STATISTICS))


def link_at(netlink: Netlink, index: int) -> LinkInfo | None:
    """A device by its index."""
    return _one_link(netlink, _IFINFO.pack(0, 0, index, 0, 0) + u32(_EXT_MASK, _SKIP_STATISTICS))


def links(netlink: Netlink, *, kind: str = "") -> list[LinkInfo]:
    """All devices, or those of one kind."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + u32(_EXT_MASK, _SKIP_STATISTICS)
    if kind:
        body += nested(_LINKINFO, text(1, kind))
    found = [parse_link(answer) for answer in netlink.dump(Message(GETLINK, body))]
    return [info for info in found if not kind or info.kind == kind]


def new_veth(name: str, *, mac: str, mtu: int, peer: str, peer_netns: int) -> Message:
    """A pair, both ends down; `peer_netns` is a file descriptor of the other end's namespace.

    The other end has no ARP from the start: vswitchd configures all of its bridges anew for each change of flags.
    """
    there = _IFINFO.pack(0, 0, 0, NO_ARP, NO_ARP) + text(_IFNAME, peer) + u32(_MTU, mtu) + u32(_NET_NS_FD, peer_netns)
    kind = nested(_LINKINFO, text(1, "veth"), nested(2, attribute(1, there)))
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFNAME, name) + _mac(mac) + u32(_MTU, mtu) + kind
    return Message(NEWLINK, body, CREATE | EXCLUSIVE)


def set_link(
    index: int,
    *,
    flags: int = 0,
    change: int = 0,
    name: str = "",
    mac: str = "",
    mtu: int = 0,
    alias: str = "",
) -> Message:
    """Change a device; `flags` counts where `change` has bits, what is empty stays."""
    body = _IFINFO.pack(0, 0, index, flags, change)
    body += text(_IFNAME, name) if name else b""
    body += _mac(mac) if mac else b""
    body += u32(_MTU, mtu) if mtu else b""
    body += attribute(_IFALIAS, alias.encode()) if alias else b""
    return Message(SETLINK, body)


def no_generated_addresses(index: int) -> Message:
    """addrgenmode none: no link-local address but those that somebody adds."""
    mode = attribute(_ADDR_GEN_MODE, bytes([_GEN_MODE_NONE]))
    return Message(SETLINK, _IFINFO.pack(0, 0, index, 0, 0) + nested(_AF_SPEC, nested(AF_INET6, mode)))


def delete_link(index: int) -> Message:
    """Remove a device, and with it a veth's other end."""
    return Message(DELLINK, _IFINFO.pack(0, 0, index, 0, 0))


def delete_links(netlink: Netlink, gone: Sequence[LinkInfo]) -> list[OSError | None]:
    """Remove devices; returns what came of each. Several go as one group, because each removal waits 15 ms for RCU."""
    if len(gone) < 2 or any(info.group == _DOOMED for info in links(netlink)):
        return netlink.execute(*(delete_link(info.index) for info in gone))
    header = [_IFINFO.pack(0, 0, info.index, 0, 0) for info in gone]
    netlink.execute(*(Message(SETLINK, body + u32(_GROUP, _DOOMED)) for body in header))
    netlink.execute(Message(DELLINK, _IFINFO.pack(0, 0, 0, 0, 0) + u32(_GROUP, _DOOMED)))
    # Those that are gone answer ENODEV; if the group could not be removed, this says why.
    return netlink.execute(*(delete_link(info.index) for info in gone))


def nsid(netlink: Netlink, netns: int) -> int | None:
    """The id of a namespace (by file descriptor) as the socket's own one sees it; None: it has none yet."""
    answer = netlink.get(Message(GETNSID, bytes(4) + u32(3, netns)))
    number = int(struct.unpack("=i", attributes(answer[4:])[1])[0])
    return None if number < 0 else number


def parse_link(body: bytes) -> LinkInfo:
    """An RTM_NEWLINK or RTM_DELLINK body."""
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = attributes(body[16:])
    kind = _string(attributes(found[_LINKINFO]).get(1, b"")) if _LINKINFO in found else ""
    ipv6 = attributes(attributes(found.get(_AF_SPEC, b"")).get(AF_INET6, b""))
    conf = ipv6.get(_INET6_CONF, b"")
    off = len(conf) > 4 * _DISABLE_IPV6 and _number(conf[4 * _DISABLE_IPV6 : 4 * _DISABLE_IPV6 + 4]) != 0
    return LinkInfo(
        index=index,
        name=_string(found.get(_IFNAME, b"")),
        kind=kind,
        flags=flags,
        mtu=_number(found.get(_MTU, b"")),
        mac=found.get(_ADDRESS, b"").hex(":"),
        alias=_string(found.get(_IFALIAS, b"")),
        master=_number(found.get(_MASTER, b"")),
        peer=_number(found.get(_LINK, b"")),
        peer_nsid=_number(found[_LINK_NETNSID]) if _LINK_NETNSID in found else None,
        ipv6_off=off or not ipv6,
        generates=bool(ipv6) and ipv6.get(_ADDR_GEN_MODE, b"\0")[0] != _GEN_MODE_NONE,
        group=_number(found.get(_GROUP, b"")),
    )


# -- addresses


def addresses(netlink: Netlink, index: int) -> list[AddressInfo]:
    """The addresses of a device; index 0 = of all."""
    found = []
    for body in netlink.dump(Message(GETADDR, _IFADDR.pack(0, 0, 0, 0, index))):
        _, prefix, flags, _, at = _IFADDR.unpack_from(body)
        attrs = attributes(body[8:])
        raw = attrs.get(2) or attrs.get(1)
        if raw is None or (index and at != index):
            continue
        flags = _number(attrs[8]) if 8 in attrs else flags
        protocol = attrs[11][0] if 11 in attrs else 0
        usable = not flags & _DAD_FAILED and not (flags & _TENTATIVE and not flags & _NO_DAD)
        found.append(AddressInfo(f"{ip_address(raw)}/{prefix}", protocol, usable))
    return found


def new_address(index: int, address: str) -> Message:
    """Add or mark an address as ours; in IPv6 without duplicate address detection (the pipeline answers nobody)."""
    return Message(NEWADDR, _address(index, address) + attribute(11, bytes([PROTOCOL])), CREATE | REPLACE)


def delete_address(index: int, address: str) -> Message:
    """Remove an address."""
    return Message(DELADDR, _address(index, address))


def _address(index: int, address: str) -> bytes:
    interface = ip_interface(address)
    raw = interface.ip.packed
    six = interface.version == 6
    scope = LINK_SCOPE if interface.ip.is_link_local and six else 0
    header = _IFADDR.pack(AF_INET6 if six else AF_INET, interface.network.prefixlen, 0, scope, index)
    return header + attribute(2, raw) + attribute(1, raw) + (u32(8, _NO_DAD) if six else b"")


# -- routes


def routes(netlink: Netlink, index: int) -> list[RouteInfo]:
    """The unicast routes over a device, of all tables and protocols."""
    found = []
    for family, width in ((AF_INET, 32), (AF_INET6, 128)):
        body = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + u32(4, index)
        for answer in netlink.dump(Message(GETROUTE, body)):
            _, length, _, _, _, protocol, _, kind, _ = _RTMSG.unpack_from(answer)
            attrs = attributes(answer[12:])
            if kind != _UNICAST or (4 in attrs and _number(attrs[4]) != index):
                continue  # without a device: over several, of which this is one
            prefix = f"{ip_address(attrs.get(1, bytes(width // 8)))}/{length}"
            found.append(RouteInfo(prefix, str(ip_address(attrs[5])) if 5 in attrs else "", protocol))
    return found


def new_route(index: int, route: RouteInfo) -> Message:
    """Add a route; EEXIST if there is one to that prefix already, whosever."""
    return Message(NEWROUTE, _route(index, route), CREATE | EXCLUSIVE)


def delete_route(index: int, route: RouteInfo) -> Message:
    """Remove a route, if it has the protocol."""
    return Message(DELROUTE, _route(index, route))


def _route(index: int, route: RouteInfo) -> bytes:
    network = ip_network(route.prefix)
    gateway: IPv4Address | IPv6Address | None = ip_address(route.gateway) if route.gateway else None
    family = AF_INET6 if network.version == 6 else AF_INET
    scope = LINK_SCOPE if gateway is None and network.version == 4 else 0
    # The gateway of a port with a host prefix (/32) is in no subnet of the device.
    flags = _ON_LINK if gateway is not None and not gateway.is_link_local else 0
    body = _RTMSG.pack(family, network.prefixlen, 0, 0, _MAIN, route.protocol, scope, _UNICAST, flags)
    body += attribute(1, network.network_address.packed) if network.prefixlen else b""
    body += attribute(5, gateway.packed) if gateway is not None else b""
    return body + u32(4, index)


# -- bits


def _one_link(netlink: Netlink, body: bytes) -> LinkInfo | None:
    try:
        return parse_link(netlink.get(Message(GETLINK, body)))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def _mac(value: str) -> bytes:
    return attribute(_ADDRESS, bytes.fromhex(value.replace(":", "")))


def _number(raw: bytes) -> int:
    return int(struct.unpack("=I", raw)[0]) if len(raw) == 4 else 0


def _string(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")
