"""Moving a machine's addresses and routes from its card to the bridge, and back."""

from __future__ import annotations

import time
from dataclasses import replace

from agent.underlay import plan, switch
from agent.underlay.record import Record
from agent.underlay.state import Snapshot, aged, read
from agent.underlay.tools import UnderlayError, batch, batch_all, call, words_of

_ROUNDS = 6  # addresses, their flags, routes; the rest is for what others do meanwhile


def engage(record: Record) -> None:
    """Bring about what `record` says is wanted on the bridge. Idempotent.

    The order keeps the machine reachable all the time: the bridge works before it has the addresses, and the kernel
    stops listening on the card last.

    Raises:
        UnderlayError: a step failed; `restore` puts everything back from wherever it is.
    """
    device, bridge, link = record.device, record.bridge, record.uplink.link
    switch.make_bridge(bridge, link=link)
    switch.switch_features(device, switch.glueing(device), state="off")
    call("ip", "link", "set", device, "up")
    if link.generates:
        # A card that loses its carrier would make a new link-local address.
        call("ip", "link", "set", device, "addrgenmode", "none")
        call("ip", "link", "set", bridge, "addrgenmode", "none")
    switch.copy_settings(device, bridge)
    call("ip", "link", "set", bridge, "up")
    switch.plug(bridge, device)
    uplink, inner = must_read(device), must_read(bridge)
    lines = plan.to_bridge(renewed(record, uplink, inner), uplink=uplink, bridge=inner)
    for family in (4, 6):
        batch(family, lines[family])
    switch.guard(device)


def engaged(record: Record) -> list[str]:
    """What is missing of what `engage` brings about, in words; empty = all is in place. Raises UnderlayError."""
    uplink, bridge = read(record.device), read(record.bridge)
    if uplink is None or bridge is None:
        return [f"there is no device {record.device if uplink is None else record.bridge}"]
    out = [] if bridge.link.up else [f"{record.bridge} is down"]
    if bridge.link.mac != record.uplink.link.mac:
        out.append(f"the MAC of {record.bridge} is {bridge.link.mac} and not {record.uplink.link.mac}")
    if switch.bridge_of(record.device) != record.bridge:
        out.append(f"{record.device} is not in {record.bridge}")
    if not switch.guarded(record.device):
        out.append(f"the guard of {record.device} is missing")
    lines = plan.to_bridge(renewed(record, uplink, bridge), uplink=uplink, bridge=bridge)
    return [*out, *(f"to do: ip -{family} {line}" for family in (4, 6) for line in lines[family])]


def restore(record: Record) -> list[str]:
    """Put everything back; returns what is not as it was, in words. Idempotent, from any state, with or without OVS.

    Raises:
        UnderlayError: the card is not there, or ip(8) does not work.
    """
    device, bridge = record.device, record.bridge
    uplink, inner = read(device), read(bridge)
    if uplink is None:
        raise UnderlayError(f"there is no device {device} to restore; is it called otherwise now?")
    wanted = renewed(record, *(one for one in (inner, uplink) if one))
    notes = [_unguard()]
    if inner is not None:
        # Faster than vswitchd, and without it if need be: its addresses and routes go with the link.
        notes.append(batch_all(4, [f"address flush dev {bridge}", f"link set {bridge} down"]))
    notes.append(_restore_link(record))
    for _ in range(_ROUNDS):
        lines = plan.to_uplink(wanted, must_read(device))
        if not any(lines.values()):
            break
        notes += [batch_all(family, lines[family]) for family in (4, 6)]
    left = [_remove_bridge(bridge)]
    # vswitchd gives the card the flags that it believes it had.
    notes.append(_restore_link(record))
    left += plan.differences(wanted, must_read(device))
    if switch.guarded(device):
        left.append(f"{device} is still guarded")
    left = [text for text in left if text]
    return [*left, *(f"(on the way: {text})" for text in notes if text)] if left else []


def renewed(record: Record, *snapshots: Snapshot) -> Snapshot:
    """What is recorded, with the lifetimes of today: as somebody has renewed them since, else as much shorter."""
    addresses = {one.key: one for snapshot in reversed(snapshots) for one in snapshot.addresses}
    routes = {one: one for snapshot in reversed(snapshots) for one in snapshot.routes}
    elapsed = int(time.time() - record.taken)
    now = []
    for address in record.uplink.addresses:
        found = addresses.get(address.key)
        if found is not None:
            now.append(replace(address, valid=found.valid, preferred=found.preferred))
        else:
            now += aged([address], seconds=elapsed)
    expiring = (
        replace(one, expires=routes[one].expires if one in routes else one.expires) for one in record.uplink.routes
    )
    return replace(record.uplink, addresses=tuple(now), routes=tuple(expiring))


def must_read(device: str) -> Snapshot:
    """What a device has now. Raises UnderlayError if it is not there."""
    found = read(device)
    if found is None:
        raise UnderlayError(f"there is no device {device}")
    return found


def _unguard() -> str:
    try:
        switch.unguard()
    except UnderlayError as error:
        return str(error)
    return ""


def _remove_bridge(bridge: str) -> str:
    try:
        switch.remove_bridge(bridge)
    except UnderlayError as error:
        return f"bridge {bridge} stays in Open vSwitch's database; run this again when that is up ({error})"
    return ""


def _restore_link(record: Record) -> str:
    """Flags, MTU, address generation and offloads of the card; returns what went wrong."""
    link = record.uplink.link
    lines = [f"link set {link.name} mtu {link.mtu}", f"link set {link.name} promisc {'on' if link.promisc else 'off'}"]
    if link.generates:
        lines.append(f"link set {link.name} addrgenmode {link.generates}")
    lines.append(f"link set {link.name} {'up' if link.up else 'down'}")
    on = [word for name in record.features for word in (name, "on")]
    return batch_all(4, lines) or (words_of("ethtool", "--features", link.name, *on) if on else "")
