"""Actions: functions that return the bytes of one action; a list of actions is their concatenation.

Layouts: OpenFlow 1.5.1, 7.2.6; extensions (vendor 0x2320) as in ovs-actions(7). They are written exactly as Open
vSwitch writes them itself, so that what is read back equals what was sent. On OpenFlow 1.5 `set_field` does what
`load` did before.
"""

from __future__ import annotations

from struct import Struct

from agent.openflow.oxm import PACKET_REGS, Value, int_of, parse, subfield

OFPAT_OUTPUT, OFPAT_GROUP, OFPAT_DEC_NW_TTL, OFPAT_SET_FIELD, OFPAT_COPY_FIELD = 0, 22, 24, 25, 28
OFPAT_EXPERIMENTER = 0xFFFF
NX_VENDOR = 0x00002320
NXAST_MULTIPATH = 10
NXAST_RESUBMIT_TABLE, NXAST_OUTPUT_REG, NXAST_OUTPUT_REG2, NXAST_CONJUNCTION = 14, 15, 32, 34
NXAST_CT, NXAST_CLONE, NXAST_CT_CLEAR, NXAST_CHECK_PKT_LARGER = 35, 42, 43, 49
IN_PORT, IN_PORT_16, CONTROLLER = 0xFFFFFFF8, 0xFFF8, 0xFFFFFFFD
CT_COMMIT, CT_FORCE = 1, 2
NO_TABLE = 0xFF
# NX_HASH_FIELDS_*: what a hash is of. nw_src: the source address; symmetric_l3l4+udp: both addresses and ports.
HASHES = {"symmetric_l3l4+udp": 3, "nw_src": 4}

PLAIN = Struct("!HHI")  # type, length, a number
OUTPUT = Struct("!HHIH6x")  # …, port, max_len
COPY_FIELD = Struct("!HHHHH2x")  # …, n_bits, src_offset, dst_offset; then two OXM headers
VENDOR = Struct("!HHIH")  # type, length, vendor, subtype
RESUBMIT = Struct("!HHIHHB3x")  # …, in_port, table
CONNTRACK = Struct("!HHIHH4sHB3xH")  # …, flags, zone_src, zone or ofs_nbits, table, alg; then actions
CONJUNCTION = Struct("!HHIHBBI")  # …, clause, n_clauses, id
CHECK_PKT_LARGER = Struct("!HHIHHH4s6x")  # …, length, offset, dst
MULTIPATH = Struct("!HHIHHH2xHHI2xH4s")  # …, fields, basis, algorithm, max_link, arg, ofs_nbits, dst
OUTPUT_REG = Struct("!HHIHH4sH6x")  # …, ofs_nbits, src, max_len
OUTPUT_REG2 = Struct("!HHIHHH4s6x")  # …, ofs_nbits, max_len, src


def set_field(field: str, value: Value, *, mask: int | None = None) -> bytes:
    """Set a field, or the bits of it that `mask` (or a slice, "reg11[16..31]") names."""
    target, offset, n_bits = subfield(field)
    if offset or n_bits != target.bits:
        number = int_of(value)
        if mask is not None or number >> n_bits:
            raise ValueError(f"{field}: {value!r} does not fit")
        value, mask = number << offset, ((1 << n_bits) - 1) << offset
    if mask is not None:
        value = (int_of(value), mask)
    body = target.payload(*parse(target, value))
    return _padded(OFPAT_SET_FIELD, body)


def move(src: str, dst: str) -> bytes:
    """Copy a field or slice ("reg4[0..15]") to another of the same width."""
    source, src_offset, n_bits = subfield(src)
    target, dst_offset, dst_bits = subfield(dst)
    if n_bits != dst_bits:
        raise ValueError(f"{src} has {n_bits} bits, {dst} {dst_bits}")
    headers = source.exact + target.exact
    return COPY_FIELD.pack(OFPAT_COPY_FIELD, 24, n_bits, src_offset, dst_offset) + headers + bytes(4)


def resubmit(table: int) -> bytes:
    """Look the packet up in a table too, and come back."""
    return RESUBMIT.pack(OFPAT_EXPERIMENTER, 16, NX_VENDOR, NXAST_RESUBMIT_TABLE, IN_PORT_16, table)


def output(port: int) -> bytes:
    """To this port; OVS drops it if it is the port that the packet came from."""
    return OUTPUT.pack(OFPAT_OUTPUT, 16, port, 0)


def to_in_port() -> bytes:
    """Back to where it came from."""
    return output(IN_PORT)


def to_controller(max_len: int) -> bytes:
    """Show us the packet, so many bytes of it, and what the registers hold; limited by the meter for that."""
    return OUTPUT.pack(OFPAT_OUTPUT, 16, CONTROLLER, max_len)


def output_reg(field: str) -> bytes:
    """To the port whose number is in a field or slice."""
    source, offset, n_bits = subfield(field)
    bits = offset << 6 | (n_bits - 1)
    if source.oxm_class == PACKET_REGS or source.oxm_class >= 0x8000:
        return OUTPUT_REG2.pack(OFPAT_EXPERIMENTER, 24, NX_VENDOR, NXAST_OUTPUT_REG2, bits, 0xFFFF, source.exact)
    return OUTPUT_REG.pack(OFPAT_EXPERIMENTER, 24, NX_VENDOR, NXAST_OUTPUT_REG, bits, source.exact, 0xFFFF)


def group(group_id: int) -> bytes:
    """Process by a group. What follows it sees the packet as it was before."""
    return PLAIN.pack(OFPAT_GROUP, 8, group_id)


def dec_ttl() -> bytes:
    """Decrement the TTL or hop limit; a packet that arrived with 1 ends here."""
    return PLAIN.pack(OFPAT_DEC_NW_TTL, 8, 0)


def ct(*, zone: int | str, table: int | None = None, flags: int = 0, actions: bytes = b"") -> bytes:
    """Send through conntrack, in a zone (a number, or a field or slice of 16 bits), and then to `table`.

    `flags`: CT_COMMIT, CT_FORCE. `actions` run on the connection (set ct_mark …) and need CT_COMMIT.
    """
    if isinstance(zone, str):
        source, offset, n_bits = subfield(zone)
        if n_bits != 16:
            raise ValueError(f"a zone has 16 bits, {zone} has {n_bits}")
        zone_src, zone_bits = source.exact, offset << 6 | (n_bits - 1)
    else:
        zone_src, zone_bits = bytes(4), zone
    recirculate = NO_TABLE if table is None else table
    head = CONNTRACK.pack(
        OFPAT_EXPERIMENTER, 24 + len(actions), NX_VENDOR, NXAST_CT, flags, zone_src, zone_bits, recirculate, 0
    )
    return head + actions


def ct_clear() -> bytes:
    """Forget what conntrack said."""
    return VENDOR.pack(OFPAT_EXPERIMENTER, 16, NX_VENDOR, NXAST_CT_CLEAR) + bytes(6)


def multipath(fields: str, *, slots: int, into: str) -> bytes:
    """Hash `fields` (a key of HASHES) to a number below `slots` and put it into a field or slice."""
    target, offset, n_bits = subfield(into)
    bits = offset << 6 | (n_bits - 1)
    return MULTIPATH.pack(
        OFPAT_EXPERIMENTER, 32, NX_VENDOR, NXAST_MULTIPATH, HASHES[fields], 0, 0, slots - 1, 0, bits, target.exact
    )


def clone(*actions: bytes) -> bytes:
    """Run actions on a copy."""
    inner = b"".join(actions)
    return VENDOR.pack(OFPAT_EXPERIMENTER, 16 + len(inner), NX_VENDOR, NXAST_CLONE) + bytes(6) + inner


def check_pkt_larger(length: int, bit: str) -> bytes:
    """Set one bit ("reg13[6]") if the packet, with its Ethernet header, is longer than this, else clear it."""
    target, offset, n_bits = subfield(bit)
    if n_bits != 1:
        raise ValueError(f"{bit} is not one bit")
    return CHECK_PKT_LARGER.pack(
        OFPAT_EXPERIMENTER, 24, NX_VENDOR, NXAST_CHECK_PKT_LARGER, length, offset, target.exact
    )


def conjunction(conj_id: int, clause: int, of: int) -> bytes:
    """This flow satisfies clause `clause` (1 …) of `of` of a conjunctive match."""
    return CONJUNCTION.pack(OFPAT_EXPERIMENTER, 16, NX_VENDOR, NXAST_CONJUNCTION, clause - 1, of, conj_id)


def _padded(kind: int, body: bytes) -> bytes:
    length = (4 + len(body) + 7) & ~7
    return kind.to_bytes(2, "big") + length.to_bytes(2, "big") + body + bytes(length - 4 - len(body))
