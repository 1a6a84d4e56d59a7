"""What ip(8) must do to move everything to the bridge, and to have it back. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from agent.underlay.state import Address, Route, Snapshot

Lines = dict[int, list[str]]  # by family; one batch each


def on_bridge(address: Address) -> Address:
    """An address as the bridge carries it: its routes are recorded ones, and it is no new one that might be taken."""
    flags = tuple(sorted({*address.flags, "noprefixroute", *(("nodad",) if address.family == 6 else ())}))
    return replace(address, flags=flags, label="", metric=0, protocol="")


def to_bridge(wanted: Snapshot, *, uplink: Snapshot, bridge: Snapshot) -> Lines:
    """Lines that move what `wanted` has from the uplink, and what is nowhere, to the bridge.

    Each route is deleted and added within microseconds, after its source address is on the bridge and before that
    leaves the uplink.
    """
    lines: Lines = {4: [], 6: []}
    there = {address.key for address in bridge.addresses}
    for address in in_order(wanted.addresses):
        if address.key not in there:
            lines[address.family].append(f"address add {on_bridge(address).words(bridge.link.name)}")
    for route in sorted(wanted.routes, key=lambda route: not route.is_on_link):
        if route in uplink.routes:
            lines[route.family].append(f"route del {route.text(uplink.link.name)}")
        if route not in bridge.routes:
            lines[route.family].append(f"route add {route.text_to_add(bridge.link.name)}")
    recorded = {address.key for address in wanted.addresses}
    for address in reversed(uplink.addresses):  # with the first of a subnet the kernel drops the others
        if address.key in recorded:
            lines[address.family].append(f"address del {_plain(address)} dev {uplink.link.name}")
    return lines


def to_uplink(wanted: Snapshot, actual: Snapshot) -> Lines:
    """Lines that bring the uplink nearer to `wanted`; none = it is there.

    Run, read again, and so on: the kernel makes and drops routes as addresses come and go. Addresses that somebody has
    added since stay, and with them routes that were not there before.
    """
    lines: Lines = {4: [], 6: []}
    device = wanted.link.name
    present = {address.key: address for address in actual.addresses}
    for address in in_order(wanted.addresses):
        old = present.pop(address.key, None)
        if old is None:
            # Without duplicate address detection, which takes a second in which the address is of no use; it was
            # ours all the time. The next round takes the flag away.
            added = replace(address, flags=tuple(sorted({*address.flags, "nodad"}))) if address.family == 6 else address
            lines[address.family].append(f"address add {added.words(device)}")
        elif old != address:
            if address.family == 4:  # of an existing one the kernel changes nothing but its lifetimes
                lines[4].append(f"address del {_plain(old)} dev {device}")
                lines[4].append(f"address add {address.words(device)}")
            else:
                lines[6].append(f"address change {address.words(device)}")
    if any(lines.values()):
        return lines  # routes can only be judged when addresses are at rest
    for route in _without(actual.routes, wanted.routes) if not present else ():
        lines[route.family].append(f"route del {route.text(device)}")
    for route in sorted(_without(wanted.routes, actual.routes), key=lambda route: not route.is_on_link):
        lines[route.family].append(f"route add {route.text_to_add(device)}")
    return lines


def in_order(addresses: Iterable[Address]) -> list[Address]:
    """Addresses in the order in which to add them so that ip(8) lists them as given: IPv6 puts a new one first."""
    given = list(addresses)
    return [one for one in given if one.family == 4] + [one for one in reversed(given) if one.family == 6]


def differences(wanted: Snapshot, actual: Snapshot) -> list[str]:
    """What is not as it was, in words; empty = exactly as it was."""
    out = [
        f"{name} is {got}, was {was}"
        for name in ("up", "promisc", "mtu", "mac", "master", "generates")
        if (got := getattr(actual.link, name)) != (was := getattr(wanted.link, name))
    ]
    for kind in ("addresses", "routes"):
        before, now = getattr(wanted, kind), getattr(actual, kind)
        out += [f"missing: {_text(one)}" for one in before if one not in now]
        out += [f"surplus: {_text(one)}" for one in now if one not in before]
    return out


def _without(routes: Sequence[Route], others: Sequence[Route]) -> list[Route]:
    return [route for route in routes if route not in others]


def _plain(address: Address) -> str:
    peer = f" peer {address.peer}" if address.peer else ""
    return f"{address.local}{peer}/{address.prefix_length}"


def _text(one: Address | Route) -> str:
    return f"address {_plain(one)}" if isinstance(one, Address) else f"route {' '.join(one.words)}"
