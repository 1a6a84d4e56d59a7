"""Addresses and MACs of ports: choosing, claiming, releasing, and explaining why none is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from controller import allocate
from controller.admission import LOST
from controller.draft import Draft
from controller.errors import Blocker, FailedPrecondition, ResourceExhausted
from controller.etcd.types import KeyValue, created
from controller.intents.base import Context, holder, holder_of
from controller.keys import address_hex
from controller.rows import Address, Intent, NetworkSpec, TombstoneRow
from tealnet.store.v1 import store_pb2

NOWHERE = "-"
"""In a tombstone's key, in the place of the host, of a port that had none: quarantine alone counts."""


def choose(
    draft: Draft, network: Intent[NetworkSpec], *, segment: str, value: bytes, context: Context
) -> list[Address]:
    """One free address of each family in a segment (its uid), claimed.

    Raises ResourceExhausted that says what holds the others.
    """
    spec, world = network.spec, draft.reading.world
    shown = {
        (row.spec.segment_uid, address)
        for (kind, _), row in draft.reading.overlay.items()
        if kind == "port"
        for address in row.spec.addresses
    }

    def find(version: int, is_free: Callable[[Address], bool]) -> Address:
        spans = allocate.usable(spec, version)

        def unused(address: Address) -> bool:
            place = (segment, address)
            if place in shown or world.ports_by_address.keys(place):
                return False
            in_quarantine = world.tombstones_by_address.keys(draft.keys.ip(segment, address).decode())
            return not in_quarantine and is_free(address)

        return allocate.address(spans, version=version, is_free=unused, rng=context.rng)

    chosen: list[Address] = []
    for version in allocate.families(spec):
        try:
            address = draft.propose(
                f"IPv{version} address",
                partial(find, version),
                key_of=lambda address: draft.keys.ip(segment, address),
                value=value,
            )
        except allocate.Exhausted:
            text = _exhausted(draft, network, version, segment=segment)
            raise ResourceExhausted(text, subject=network.name, reason="ADDRESSES_EXHAUSTED") from None
        chosen.append(address)
    return chosen


def claim(draft: Draft, network: Intent[NetworkSpec], address: Address, *, segment: str, name: str, uid: str) -> None:
    """An address that was asked for. One that the same port has just given up may be taken back."""
    key = draft.keys.ip(segment, address)
    for place in draft.reading.world.tombstones_by_port.keys(uid):
        row = draft.reading.world.tombstones.rows[place]
        if row.address == address_hex(address) and key.decode() in row.address_keys:
            tombstone = draft.keys.address_tombstone(host_uid=row.host_uid, port_uid=uid, address=address)
            draft.reading.checks[tombstone] = created(tombstone, row.revision)
            draft.delete(tombstone)
            draft.put(key, holder(name, uid))
            return
    draft.claim(key, holder(name, uid), refuse=_taken(draft, network.name, address))


def release(
    draft: Draft, addresses: Iterable[Address], *, segment: str, tombstone: bytes, name: str, uid: str
) -> list[str]:
    """Put addresses into quarantine under a tombstone; returns their keys for it."""
    value = store_pb2.Holder(name=name, uid=uid, tombstone=tombstone.decode(), released=True).SerializeToString()
    keys = [draft.keys.ip(segment, address) for address in addresses]
    for key in keys:
        draft.put(key, value)
    return [key.decode() for key in keys]


def choose_mac(draft: Draft, network: Intent[NetworkSpec], first: Address, *, segment: str, value: bytes) -> str:
    """The MAC that belongs to (network, first address), claimed in its segment: twins have the same."""
    return draft.propose(
        "MAC",
        lambda is_free: allocate.mac(network.uid, first, is_free=is_free),
        key_of=lambda mac: draft.keys.mac(segment, mac),
        value=value,
    )


def is_of(address_key: str, segment: str) -> bool:
    """Whether `k/u/ip/<segment uid>/<address>` is about this segment."""
    return address_key.rsplit("/", 2)[1] == segment


def _tombstones(draft: Draft, network: Intent[NetworkSpec]) -> list[TombstoneRow]:
    world = draft.reading.world
    rows = (world.tombstones.rows[key] for key in world.tombstones_by_network.keys(network.uid))
    return [row for row in rows if row.address_keys]


def _taken(draft: Draft, network: str, address: Address) -> Callable[[KeyValue], FailedPrecondition]:
    def refuse(found: KeyValue) -> FailedPrecondition:
        other = holder_of(found)
        text = f"{address} of {network} is held by {other.name}"
        if other.released:
            text = f"{address} of {network} was given up by {other.name} and is in quarantine{_until(draft, other)}"
        blocker = Blocker("ADDRESS_IN_USE", other.name, text)
        return FailedPrecondition(text, [blocker], reason="ADDRESS_IN_USE")

    return refuse


def _until(draft: Draft, held: store_pb2.Holder) -> str:
    parts = draft.keys.relative(held.tombstone.encode()).split("/")[2:]
    if len(parts) not in (2, 3):
        return ""
    row = draft.reading.world.tombstones.rows.get((parts[0], parts[1], parts[2] if len(parts) == 3 else ""))
    return f": {_reason(draft, row)}" if row else ""


def _reason(draft: Draft, row: TombstoneRow) -> str:
    """What an address in quarantine waits for."""
    world = draft.reading.world
    over = row.since + row.quarantine
    until = f"until {datetime.fromtimestamp(over, UTC):%H:%M:%S} UTC"
    hosts = world.hosts_by_uid.keys(row.host_uid)
    if row.acked or not hosts or world.hosts.rows[hosts[0]].spec.fenced:
        return until if over > time.time() else "about to be freed"
    status = world.host_status.rows.get(row.host_uid)
    lost = status is not None and status.state == LOST and row.host_uid not in world.sessions.rows
    state = " (LOST: return it, or `teal host fence` it)" if lost else ""
    return f"until {hosts[0]}{state} has confirmed that it is gone" + (f", not {until}" if over > time.time() else "")


def _exhausted(draft: Draft, network: Intent[NetworkSpec], version: int, *, segment: str) -> str:
    spec, world = network.spec, draft.reading.world
    total = sum(cidr.num_addresses for cidr in spec.cidrs if cidr.version == version)
    kept = total - sum(last - first + 1 for first, last in allocate.usable(spec, version))
    ports = [world.ports.rows[name] for name in world.ports_by_segment.keys(segment)]
    held = sum(1 for port in ports for address in port.spec.addresses if address.version == version)
    make = IPv4Address if version == 4 else IPv6Address
    reasons: dict[str, int] = {}
    for row in _tombstones(draft, network):
        own = [k for k in row.address_keys if is_of(k, segment) and is_version(int(k[-32:], 16), make)]
        if own:
            reasons[_reason(draft, row)] = reasons.get(_reason(draft, row), 0) + len(own)
    color = next((f"color {s.color} of " for s in spec.segments if s.uid == segment and s.color_number), "")
    text = (
        f"{color}{network.name} has no free IPv{version} address: of {total} addresses {held} are held by ports, "
        f"{kept} kept back (gateway, network, broadcast, reserved ranges), {sum(reasons.values())} in quarantine"
    )
    waits = "; ".join(f"{count} {reason}" for reason, count in list(reasons.items())[:5])
    return text + (f": {waits}" if waits else "")


def is_version(value: int, make: type[Address]) -> bool:
    """Whether a v4-mapped number stands for an address of this class."""
    return (value >> 32 == 0xFFFF) == (make is IPv4Address)
