"""Match fields: their OXM headers (OpenFlow 1.5.1, 7.2.3; NXM and other classes as in ovs-fields(7)) and `match`.

Names are those of ovs-ofctl(8). A match comes out exactly as Open vSwitch itself would write it: fields in its order,
registers as 64-bit pairs, `vlan_tci` as `vlan_vid`. So equal matches are equal bytes, and what is read back can be
compared with what was written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from agent.openflow.errors import ProtocolError

Scalar = int | str | IPv4Address | IPv6Address
Value = Scalar | IPv4Network | IPv6Network | tuple[Scalar, Scalar]

NXM0, NXM1, BASIC, PACKET_REGS, ERICSSON, EXPERIMENTER = 0x0000, 0x0001, 0x8000, 0x8001, 0x1000, 0xFFFF

ARP, IPV4, IPV6, VLAN_NONE = 0x0806, 0x0800, 0x86DD, 0
_ICMP, _TCP, _UDP, _ICMP6, _SCTP = 1, 6, 17, 58, 132
_ANY_IP = (IPV4, IPV6)

# eth_type and ip_proto that a word stands for.
SHORTHANDS: dict[str, tuple[int, int | None]] = {
    "ip": (IPV4, None),
    "ipv6": (IPV6, None),
    "arp": (ARP, None),
    "icmp": (IPV4, _ICMP),
    "icmp6": (IPV6, _ICMP6),
    "tcp": (IPV4, _TCP),
    "tcp6": (IPV6, _TCP),
    "udp": (IPV4, _UDP),
    "udp6": (IPV6, _UDP),
    "sctp": (IPV4, _SCTP),
    "sctp6": (IPV6, _SCTP),
}
CT_STATES = {"new": 1, "est": 2, "rel": 4, "rpl": 8, "inv": 16, "trk": 32, "snat": 64, "dnat": 128}
TCP_FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ece": 64, "cwr": 128, "ns": 256}
FRAGMENTS = {"no": (0, 3), "yes": (1, 1), "first": (1, 3), "later": (3, 3), "not_later": (0, 2)}


@dataclass(frozen=True, slots=True)
class Field:
    """One field. `bits` is its width, `kind` how values are written as text."""

    name: str
    oxm_class: int
    number: int
    bits: int
    kind: str = "hex"  # hex, decimal, mac, ipv4, ipv6, ct_state, tcp_flags, frag
    eth_types: tuple[int, ...] = ()  # one of them must be matched, too
    ip_proto: int = 0  # must be matched, too; 0 = nothing is asked
    ethernet: bool = False  # matching it says that the packet is an Ethernet frame
    size: int = field(init=False)  # bytes of a value
    full: int = field(init=False)  # the mask that masks nothing out: all bits of these bytes
    exact: bytes = field(init=False)  # header without mask
    masked: bytes = field(init=False)

    def __post_init__(self) -> None:
        size = (self.bits + 7) // 8
        header = self.oxm_class << 16 | self.number << 9
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "full", (1 << 8 * size) - 1)
        object.__setattr__(self, "exact", (header | size).to_bytes(4, "big"))
        object.__setattr__(self, "masked", (header | 1 << 8 | 2 * size).to_bytes(4, "big"))

    def payload(self, value: int, mask: int) -> bytes:
        """Header, value and (unless full) mask."""
        if mask == self.full:
            return self.exact + value.to_bytes(self.size, "big")
        return self.masked + value.to_bytes(self.size, "big") + mask.to_bytes(self.size, "big")


def _fields() -> list[Field]:
    """All fields, in the order in which Open vSwitch writes them."""

    def frame(name: str, number: int, bits: int, kind: str = "hex", *, oxm_class: int = BASIC) -> Field:
        return Field(name, oxm_class, number, bits, kind, ethernet=True)

    def over(types: tuple[int, ...], proto: int, name: str, number: int, bits: int, kind: str = "hex", *,
             oxm_class: int = BASIC) -> Field:  # fmt: skip
        return Field(name, oxm_class, number, bits, kind, types, proto, ethernet=True)

    v4, v6, arp = (IPV4,), (IPV6,), (ARP,)
    ports = [
        over(_ANY_IP, proto, f"{word}_{end}", number + offset, 16, "decimal")
        for word, proto, number in (("tcp", _TCP, 13), ("udp", _UDP, 15), ("sctp", _SCTP, 17))
        for offset, end in enumerate(("src", "dst"))
    ]
    return [
        Field("conj_id", NXM1, 37, 32, "decimal"),
        Field("in_port", BASIC, 0, 32, "decimal"),
        frame("eth_src", 4, 48, "mac"),
        frame("eth_dst", 3, 48, "mac"),
        frame("eth_type", 5, 16),
        frame("vlan_vid", 6, 13),
        over(v4, 0, "ip_src", 11, 32, "ipv4"),
        over(v4, 0, "ip_dst", 12, 32, "ipv4"),
        over(v6, 0, "ipv6_src", 26, 128, "ipv6"),
        over(v6, 0, "ipv6_dst", 27, 128, "ipv6"),
        over(_ANY_IP, 0, "ip_frag", 26, 2, "frag", oxm_class=NXM1),
        over(_ANY_IP, 0, "nw_ttl", 29, 8, "decimal", oxm_class=NXM1),
        over(_ANY_IP, 0, "ip_proto", 10, 8, "decimal"),
        *ports[:2],
        over(_ANY_IP, _TCP, "tcp_flags", 42, 12, "tcp_flags"),
        *ports[2:],
        over(v4, _ICMP, "icmp_type", 19, 8, "decimal"),
        over(v4, _ICMP, "icmp_code", 20, 8, "decimal"),
        over(v6, _ICMP6, "icmpv6_type", 29, 8, "decimal"),
        over(v6, _ICMP6, "icmpv6_code", 30, 8, "decimal"),
        over(v6, _ICMP6, "nd_reserved", 1, 32, oxm_class=ERICSSON),
        over(v6, _ICMP6, "nd_target", 31, 128, "ipv6"),
        over(v6, _ICMP6, "nd_options_type", 2, 8, "decimal", oxm_class=ERICSSON),
        over(v6, _ICMP6, "nd_sll", 32, 48, "mac"),
        over(v6, _ICMP6, "nd_tll", 33, 48, "mac"),
        over(arp, 0, "arp_op", 21, 16, "decimal"),
        over(arp, 0, "arp_spa", 22, 32, "ipv4"),
        over(arp, 0, "arp_tpa", 23, 32, "ipv4"),
        over(arp, 0, "arp_sha", 24, 48, "mac"),
        over(arp, 0, "arp_tha", 25, 48, "mac"),
        Field("tun_id", BASIC, 38, 64),
        Field("tun_src", NXM1, 31, 32, "ipv4"),
        Field("tun_dst", NXM1, 32, 32, "ipv4"),
        Field("tun_ipv6_src", NXM1, 109, 128, "ipv6"),
        Field("tun_ipv6_dst", NXM1, 110, 128, "ipv6"),
        *(Field(f"xreg{n}", PACKET_REGS, n, 64) for n in range(8)),
        Field("pkt_mark", NXM1, 33, 32),
        Field("ct_state", NXM1, 105, 32, "ct_state"),
        Field("ct_zone", NXM1, 106, 16, "decimal"),
        Field("ct_mark", NXM1, 107, 32),
        Field("ct_label", NXM1, 108, 128),
        # Of the packet that opened the connection, also on packets that go back (ports: not on later fragments).
        Field("ct_nw_src", NXM1, 120, 32, "ipv4", v4),
        Field("ct_nw_dst", NXM1, 121, 32, "ipv4", v4),
        Field("ct_ipv6_src", NXM1, 122, 128, "ipv6", v6),
        Field("ct_ipv6_dst", NXM1, 123, 128, "ipv6", v6),
        Field("ct_nw_proto", NXM1, 119, 8, "decimal"),
        Field("ct_tp_src", NXM1, 124, 16, "decimal"),
        Field("ct_tp_dst", NXM1, 125, 16, "decimal"),
        Field("metadata", BASIC, 2, 64),
        # Never in a match as such (xregs stand for them), but in actions:
        *(Field(f"reg{n}", NXM1, n, 32) for n in range(16)),
        *(Field(f"xxreg{n}", NXM1, 111 + n, 128) for n in range(4)),
    ]


FIELDS: dict[str, Field] = {each.name: each for each in _fields()}
ALIASES = {
    "tunnel_id": "tun_id",
    "dl_src": "eth_src",
    "dl_dst": "eth_dst",
    "dl_type": "eth_type",
    "nw_src": "ip_src",
    "nw_dst": "ip_dst",
    "nw_proto": "ip_proto",
    "nw_frag": "ip_frag",
}
_ORDER = {name: number for number, name in enumerate(FIELDS)}
_REGISTER = re.compile(r"(x{0,2})reg(\d+)")
_ND = {"nd_target": (135, 136), "nd_sll": (135,), "nd_tll": (136,), "nd_reserved": (135, 136),
       "nd_options_type": (135, 136)}  # fmt: skip
_DECODE = {each.exact[:2] + bytes((each.exact[2] & 0xFE,)): each for each in FIELDS.values()}
_PACKET_TYPE = (BASIC << 16 | 44 << 9 | 4).to_bytes(4, "big") + bytes(4)


def find(name: str) -> Field:
    """The field of this ovs-ofctl name. Raises ValueError for one that is not there."""
    try:
        return FIELDS[ALIASES.get(name, name)]
    except KeyError:
        raise ValueError(f"no such field: {name}") from None


def match(**fields: Value) -> bytes:
    """The OXM fields of a match, without header and padding; every packet matches `match()`.

    A value is an int, text as for ovs-ofctl ("10.0.0.0/24", "02:00:00:00:00:01", "+trk-new", "0x1/0xff"), an address or
    network of `ipaddress`, or (value, mask). Words like `ip=True`, `icmp6=True` stand for eth_type and ip_proto.
    Raises ValueError for what Open vSwitch would refuse: missing prerequisites, bits outside the mask, wrong sizes.
    """
    pairs = _pairs(fields)
    _check(pairs)
    table = FIELDS
    return b"".join([table[name].payload(*pairs[name]) for name in sorted(pairs, key=_ORDER.__getitem__)])


def _pairs(fields: dict[str, Value]) -> dict[str, tuple[int, int]]:
    """(value, mask) by the name of the field on the wire; without those that match everything."""
    pairs: dict[str, tuple[int, int]] = {}
    for name, given in fields.items():
        if name in SHORTHANDS:
            eth_type, proto = SHORTHANDS[name]
            _put(pairs, "eth_type", eth_type, 0xFFFF)
            if proto is not None:
                _put(pairs, "ip_proto", proto, 0xFF)
        elif "reg" in name and (register := _REGISTER.fullmatch(name)) is not None:
            value, mask = parse(find(name), given)
            _put_register(pairs, len(register[1]), int(register[2]), value, mask)
        elif name == "vlan_tci":
            _put(pairs, "vlan_vid", *_vlan_vid(given))
        else:
            found = find(name)
            _put(pairs, found.name, *parse(found, given))
    return pairs


def _put(pairs: dict[str, tuple[int, int]], name: str, value: int, mask: int) -> None:
    if mask == 0:
        return
    if pairs.setdefault(name, (value, mask)) != (value, mask):
        raise ValueError(f"{name} is given twice")


def _put_register(pairs: dict[str, tuple[int, int]], level: int, number: int, value: int, mask: int) -> None:
    """Registers overlap: reg0 is the upper half of xreg0, xreg0 the upper half of xxreg0. The wire has xregs."""
    if level == 2:
        low = (1 << 64) - 1
        _put_register(pairs, 1, 2 * number, value >> 64, mask >> 64)
        _put_register(pairs, 1, 2 * number + 1, value & low, mask & low)
        return
    if level == 0:
        shift = 0 if number % 2 else 32
        number, value, mask = number // 2, value << shift, mask << shift
    name = f"xreg{number}"
    old_value, old_mask = pairs.get(name, (0, 0))
    if old_mask & mask:
        raise ValueError(f"bits of {name} are given twice")
    if mask:
        pairs[name] = (old_value | value, old_mask | mask)


def _vlan_vid(given: Value) -> tuple[int, int]:
    """`vlan_tci` as OXM `vlan_vid`; a frame without a tag has no priority either, so 0 loses nothing."""
    value, mask = (int_of(given[0]), int_of(given[1])) if isinstance(given, tuple) else (int_of(given), 0xFFFF)
    if (value, mask) == (0, 0xFFFF):
        mask = 0x1FFF
    if mask & ~0x1FFF or value & ~mask:
        raise ValueError("vlan_tci: only 0, or tag bits without the priority, can be matched")
    return value, 0xFFFF if mask == 0x1FFF else mask


def _check(pairs: dict[str, tuple[int, int]]) -> None:
    """Prerequisites as in ovs-fields(7); an invalid match fails where it is made, not on the device."""
    table = FIELDS
    for name in pairs:
        wanted = table[name]
        if wanted.eth_types and (pairs.get("eth_type") or (0,))[0] not in wanted.eth_types:
            raise ValueError(f"{name} needs an eth_type")
        if wanted.ip_proto and (pairs.get("ip_proto") or (0,))[0] != wanted.ip_proto:
            raise ValueError(f"{name} needs ip_proto {wanted.ip_proto}")
        if name in _ND and (pairs.get("icmpv6_type") or (0,))[0] not in _ND[name]:
            raise ValueError(f"{name} needs an icmpv6_type of {_ND[name]}")


def int_of(given: object) -> int:
    """One number from an int, an address, or text: number, MAC, IP address."""
    if type(given) is int:
        return given
    if isinstance(given, str):
        if given.count(":") == 5 and len(given) == 17:
            return int(given.replace(":", ""), 16)
        if ":" in given:
            return int(IPv6Address(given))
        if given.count(".") == 3:
            return int(IPv4Address(given))
        return int(given, 0)
    if isinstance(given, (int, IPv4Address, IPv6Address)):
        return int(given)
    raise ValueError(f"not a value: {given!r}")


def parse(target: Field, given: Value) -> tuple[int, int]:
    """(value, mask) of a value for this field. Raises ValueError."""
    if type(given) is int and given >= 0 and not given >> target.bits:  # the usual case: thousands of times in a row
        return given, target.full
    value, mask = _parse(target, given)
    if mask >> 8 * target.size or value & ~mask or value >> target.bits:
        raise ValueError(f"{target.name}: {given!r} does not fit")
    if target.bits % 8 and mask == (1 << target.bits) - 1:
        mask = target.full  # the unused bits are zero always
    return value, mask


def _parse(target: Field, given: Value) -> tuple[int, int]:
    if isinstance(given, tuple):
        return int_of(given[0]), int_of(given[1])
    if isinstance(given, (IPv4Network, IPv6Network)):
        return int(given.network_address), int(given.netmask)
    if isinstance(given, str):
        if target.kind == "frag" and given in FRAGMENTS:
            return FRAGMENTS[given]
        if given[:1] in "+-":
            return _flags(target, given)
        if "/" in given:
            return _masked_text(target, given)
    return int_of(given), target.full


def _masked_text(target: Field, given: str) -> tuple[int, int]:
    value, _, mask = given.partition("/")
    if target.kind == "ipv4" and mask.isdecimal():
        return _parse(target, IPv4Network(given))
    if target.kind == "ipv6" and mask.isdecimal():
        return _parse(target, IPv6Network(given))
    return int_of(value), int_of(mask)


def _flags(target: Field, given: str) -> tuple[int, int]:
    names = {"ct_state": CT_STATES, "tcp_flags": TCP_FLAGS}.get(target.kind)
    if names is None or not re.fullmatch(r"([+-][a-z]+)+", given):
        raise ValueError(f"{target.name}: no flags: {given!r}")
    value = mask = 0
    for sign, name in re.findall(r"([+-])([a-z]+)", given):
        if name not in names:
            raise ValueError(f"{target.name}: no such flag: {name}")
        mask |= names[name]
        value |= names[name] if sign == "+" else 0
    return value, mask


_SLICE = re.compile(r"(\w+)(?:\[(?:(\d+)(?:\.\.(\d+))?)?\])?")


@lru_cache(maxsize=1024)
def subfield(text: str) -> tuple[Field, int, int]:
    """(field, offset, number of bits) of "reg4", "reg4[]", "reg4[3]" or "reg4[0..15]". Raises ValueError."""
    parts = _SLICE.fullmatch(text)
    if parts is None:
        raise ValueError(f"not a field: {text!r}")
    found = find(parts[1])
    if parts[2] is None:
        return found, 0, found.bits
    first = int(parts[2])
    last = int(parts[3]) if parts[3] is not None else first
    if not first <= last < found.bits:
        raise ValueError(f"{text}: outside of {found.name}")
    return found, first, last - first + 1


def normal(oxm: bytes) -> bytes:
    """A match as read back, as `match` would have written it.

    OpenFlow 1.5 adds "the packet is an Ethernet frame" where no field says so.
    """
    return oxm[8:] if oxm.startswith(_PACKET_TYPE) else oxm


def decode(oxm: bytes) -> list[tuple[Field, int, int]]:
    """(field, value, mask) of each field. Raises ProtocolError."""
    out: list[tuple[Field, int, int]] = []
    oxm = normal(oxm)
    at = 0
    while at < len(oxm):
        found, has_mask, start = header_at(oxm, at)
        at = start + found.size * (2 if has_mask else 1)
        if at > len(oxm):
            raise ProtocolError("a match field is cut off")
        value = int.from_bytes(oxm[start : start + found.size], "big")
        mask = int.from_bytes(oxm[start + found.size : at], "big") if has_mask else found.full
        out.append((found, value, mask))
    return out


def header_at(data: bytes, at: int) -> tuple[Field, bool, int]:
    """(field, has a mask, where its value starts) of the OXM header here. Raises ProtocolError."""
    if at + 4 > len(data):
        raise ProtocolError("an OXM header is cut off")
    found = _DECODE.get(data[at : at + 2] + bytes((data[at + 2] & 0xFE,)))
    has_mask = bool(data[at + 2] & 1)
    if found is None or data[at + 3] != found.size << has_mask:
        raise ProtocolError(f"unknown OXM header {data[at : at + 4].hex()}")
    return found, has_mask, at + 4
