"""Flows in the words of ovs-ofctl(8), for logs, dumps and tests. What we write, we can read; no more.

All raise ProtocolError for bytes that `oxm` and `actions` do not make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Any

from agent.openflow import actions as act
from agent.openflow import oxm
from agent.openflow.errors import ProtocolError
from agent.openflow.flow import Flow
from agent.openflow.oxm import CT_STATES, FRAGMENTS, SHORTHANDS, TCP_FLAGS, Field, header_at

_WORDS = {shorthand: word for word, shorthand in SHORTHANDS.items()}
_NAMES = {
    "eth_src": "dl_src",
    "eth_dst": "dl_dst",
    "ip_src": "nw_src",
    "ip_dst": "nw_dst",
    "ip_frag": "nw_frag",
    "icmpv6_type": "icmp_type",
    "icmpv6_code": "icmp_code",
    "vlan_vid": "vlan_tci",
}
_FLAGS = {"ct_state": CT_STATES, "tcp_flags": TCP_FLAGS}
_PORTS = {0xFFFFFFF8: "IN_PORT", 0xFFFFFFFE: "LOCAL"}
_HEAD = Struct("!HH")


def flow_text(flow: Flow) -> str:
    """One flow as `ovs-ofctl add-flow` takes it."""
    words = [f"cookie={flow.cookie:#x}", f"table={flow.table}", f"priority={flow.priority}"]
    words += [match_text(flow.match)] if flow.match else []
    return f"{','.join(words)} actions={actions_text(flow.actions)}"


def match_text(match: bytes) -> str:
    """The fields of a match."""
    fields = {found.name: (value, mask) for found, value, mask in oxm.decode(match)}
    words: list[str] = []
    if (eth_type := fields.pop("eth_type", None)) is not None:
        proto = fields.pop("ip_proto", None)
        number = proto[0] if proto is not None else None
        if (eth_type[0], number) in _WORDS:
            words.append(_WORDS[eth_type[0], number])
        else:
            words.append(f"dl_type={eth_type[0]:#06x}")
            words += [f"nw_proto={number}"] if number is not None else []
    for name, (value, mask) in fields.items():
        if name.startswith("xreg"):
            words += _registers(int(name[4:]), value, mask)
        else:
            shown = 0x1FFF if name == "vlan_vid" and mask == 0xFFFF else mask
            words.append(f"{_NAMES.get(name, name)}={_value(oxm.find(name), value, shown)}")
    return ",".join(words)


def _registers(number: int, value: int, mask: int) -> Iterator[str]:
    for half in (0, 1):
        shift = 32 - 32 * half
        part, part_mask = value >> shift & 0xFFFFFFFF, mask >> shift & 0xFFFFFFFF
        if part_mask:
            yield f"reg{2 * number + half}={_value(oxm.find('reg0'), part, part_mask)}"


def _value(target: Field, value: int, mask: int) -> str:
    if target.kind == "frag":
        for word, meant in FRAGMENTS.items():
            if meant == (value, mask & 3):
                return word
    if mask == target.full:
        return _one(target, value)
    if (names := _FLAGS.get(target.kind)) is not None and not mask & ~sum(names.values()):
        return "".join(("+" if value & bit else "-") + name for name, bit in names.items() if mask & bit)
    if target.kind in ("ipv4", "ipv6"):
        length = mask.bit_count()
        if mask == target.full ^ (target.full >> length):
            return f"{_one(target, value)}/{length}"
    return f"{_one(target, value)}/{_one(target, mask)}"


def _one(target: Field, value: int) -> str:
    if target.kind == "mac":
        return value.to_bytes(6, "big").hex(":")
    if target.kind == "ipv4":
        return str(IPv4Address(value))
    if target.kind == "ipv6":
        return str(IPv6Address(value))
    return str(value) if target.kind == "decimal" else f"{value:#x}"


def actions_text(data: bytes) -> str:
    """A list of actions."""
    return ",".join(_actions(data)) or "drop"


def _actions(data: bytes) -> Iterator[str]:
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise ProtocolError("an action is cut off")
        kind, length = _HEAD.unpack_from(data, at)
        if length < 8 or length % 8 or at + length > len(data):
            raise ProtocolError(f"an action of {length} bytes where {len(data) - at} are left")
        yield _action(kind, data[at : at + length])
        at += length


def _action(kind: int, raw: bytes) -> str:
    if kind == act.OFPAT_EXPERIMENTER:
        return _extension(raw)
    if kind == act.OFPAT_OUTPUT:
        port, max_len = _unpack(act.OUTPUT, raw)[2:4]
        return f"CONTROLLER:{max_len}" if port == act.CONTROLLER else _PORTS.get(port, f"output:{port}")
    if kind == act.OFPAT_GROUP:
        return f"group:{_unpack(act.PLAIN, raw)[2]}"
    if kind == act.OFPAT_DEC_NW_TTL:
        return "dec_ttl"
    if kind == act.OFPAT_SET_FIELD:
        return _set_field(raw)
    if kind == act.OFPAT_COPY_FIELD:
        if len(raw) < act.COPY_FIELD.size:
            raise ProtocolError("a move is cut off")
        _, _, n_bits, src_offset, dst_offset = act.COPY_FIELD.unpack_from(raw)
        source, _, at = header_at(raw, act.COPY_FIELD.size)
        target, _, _ = header_at(raw, at)
        return f"move:{_slice(source, src_offset, n_bits)}->{_slice(target, dst_offset, n_bits)}"
    raise ProtocolError(f"action {kind}")


def _set_field(raw: bytes) -> str:
    target, has_mask, at = header_at(raw, 4)
    values = raw[at:]
    if len(values) < target.size * (2 if has_mask else 1):
        raise ProtocolError("a set_field is cut off")
    value = int.from_bytes(values[: target.size], "big")
    mask = int.from_bytes(values[target.size : 2 * target.size], "big") if has_mask else target.full
    return f"set_field:{_value(target, value, mask)}->{target.name}"


def _extension(raw: bytes) -> str:
    if len(raw) < act.VENDOR.size:
        raise ProtocolError("an action is cut off")
    _, _, vendor, subtype = act.VENDOR.unpack_from(raw)
    decoder = _EXTENSIONS.get(subtype)
    if vendor != act.NX_VENDOR or decoder is None:
        raise ProtocolError(f"action {subtype} of vendor {vendor:#x}")
    return decoder(raw)


def _resubmit(raw: bytes) -> str:
    _, _, _, _, port, table = _unpack(act.RESUBMIT, raw)
    return f"resubmit({'' if port == act.IN_PORT_16 else port},{table})"


def _output_reg(raw: bytes) -> str:
    bits, source = _unpack(act.OUTPUT_REG, raw)[4:6]
    return f"output:{_bits(source, bits)}"


def _output_reg2(raw: bytes) -> str:
    bits, _, source = _unpack(act.OUTPUT_REG2, raw)[4:7]
    return f"output:{_bits(source, bits)}"


def _ct(raw: bytes) -> str:
    if len(raw) < act.CONNTRACK.size:
        raise ProtocolError("a ct action is cut off")
    _, _, _, _, flags, source, zone, table, alg = act.CONNTRACK.unpack_from(raw)
    if alg or flags & ~(act.CT_COMMIT | act.CT_FORCE):
        raise ProtocolError("a ct action with more than we use")
    words = [word for bit, word in ((act.CT_COMMIT, "commit"), (act.CT_FORCE, "force")) if flags & bit]
    words += [f"table={table}"] if table != act.NO_TABLE else []
    words.append(f"zone={zone if source == bytes(4) else _bits(source, zone)}")
    inner = raw[act.CONNTRACK.size :]
    words += [f"exec({actions_text(inner)})"] if inner else []
    return f"ct({','.join(words)})"


def _check_pkt_larger(raw: bytes) -> str:
    length, offset, header = _unpack(act.CHECK_PKT_LARGER, raw)[4:7]
    return f"check_pkt_larger({length})->{_slice(header_at(header, 0)[0], offset, 1)}"


def _conjunction(raw: bytes) -> str:
    clause, clauses, conj_id = _unpack(act.CONJUNCTION, raw)[4:7]
    return f"conjunction({conj_id},{clause + 1}/{clauses})"


def _multipath(raw: bytes) -> str:
    kind, basis, algorithm, max_link, arg, bits, target = _unpack(act.MULTIPATH, raw)[4:]
    fields = next((name for name, number in act.HASHES.items() if number == kind), None)
    if fields is None or algorithm or arg:
        raise ProtocolError("a multipath that we do not write")
    return f"multipath({fields},{basis},modulo_n,{max_link + 1},0,{_bits(target, bits)})"


def _clone(raw: bytes) -> str:
    return f"clone({actions_text(raw[16:])})"


_EXTENSIONS: dict[int, Callable[[bytes], str]] = {
    act.NXAST_RESUBMIT_TABLE: _resubmit,
    act.NXAST_OUTPUT_REG: _output_reg,
    act.NXAST_OUTPUT_REG2: _output_reg2,
    act.NXAST_MULTIPATH: _multipath,
    act.NXAST_CT: _ct,
    act.NXAST_CT_CLEAR: lambda raw: "ct_clear",
    act.NXAST_CLONE: _clone,
    act.NXAST_CHECK_PKT_LARGER: _check_pkt_larger,
    act.NXAST_CONJUNCTION: _conjunction,
}


def _unpack(layout: Struct, raw: bytes) -> tuple[Any, ...]:
    if len(raw) != layout.size:
        raise ProtocolError(f"an action of {len(raw)} bytes that has {layout.size}")
    return layout.unpack(raw)


def _bits(header: bytes, ofs_nbits: int) -> str:
    return _slice(header_at(header, 0)[0], ofs_nbits >> 6, (ofs_nbits & 0x3F) + 1)


def _slice(target: Field, offset: int, n_bits: int) -> str:
    if offset + n_bits > target.bits:
        raise ProtocolError(f"bits {offset} … {offset + n_bits - 1} of {target.name}")
    if n_bits == target.bits:
        return f"{target.name}[]"
    last = f"..{offset + n_bits - 1}" if n_bits > 1 else ""
    return f"{target.name}[{offset}{last}]"
