"""The underlay as this host sees it: the device that carries the VTEP, its MTU, and warm tunnel neighbours.

On a netdev datapath Open vSwitch encapsulates by itself and looks the next hop's MAC up in its own cache
(`tnl/neigh/show`): a miss costs the packet, and that cache cannot be trusted to fill itself. It learns only from ARP
and ND replies that reach the slow path, so a reply that matches a cached megaflow teaches nothing (measured: after a
lost entry the tunnel stayed dead as long as ARP went on). The kernel resolves the same next hops on the same device,
and tries again by itself: so we ask the kernel to resolve and copy its answer (`tnl/neigh/set`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from pyroute2 import AsyncIPRoute, NetlinkError

from agent.drivers.base import DeviceUnavailable, Failure
from agent.drivers.unixctl import UnixctlError, unixctl
from agent.drivers.vswitchd import control_socket

AF_INET, AF_INET6 = 2, 10
NTF_USE = 0x01  # linux/neighbour.h: resolve now, as if a packet were to be sent
NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # reachable, stale, delay, probe, noarp, permanent
NUD_FAILED = 0x20
RTN_UNICAST = 1
# Seconds: those who answer at once must not wait for those who do not, whom the kernel asks three times in 3 s.
RESOLVE_TIMEOUTS = (0.1, 3.4)
FIRST_POLL, LAST_POLL = 0.005, 0.2  # seconds; doubled each time: a look costs 4 ms, and who is down stays so for long
REFRESH = 300.0  # seconds; OVS forgets an entry that nothing used for 900 (`tnl/neigh/aging`)


@dataclass(frozen=True, slots=True)
class UnderlayFacts:
    """Where the VTEP is. `device` "" and `mtu` 0: no device of this host has the address."""

    vtep: str
    device: str = ""
    mtu: int = 0  # the smallest of the device and the NICs it is bridged to by OVS


@dataclass(frozen=True, slots=True)
class NextHop:
    """What the kernel sends a packet for a VTEP to."""

    device: str
    index: int
    address: str


async def read_underlay(vtep: str, *, members: Callable[[str], Collection[str]]) -> UnderlayFacts:
    """Find the device that carries `vtep` now.

    `members` names the other ports of an OVS bridge (`OvsdbDriver.members`): on netdev the VTEP is on a bridge's local
    port and packets leave through the NIC in that bridge.
    """
    wanted = ip_address(vtep)
    async with AsyncIPRoute() as netlink:
        names, mtus = await _links(netlink)
        async for message in await netlink.addr("dump"):
            address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if address is not None and ip_address(address) == wanted and message["index"] in names:
                device = names[message["index"]]
                path = [device, *(name for name in members(device) if name in mtus)]
                return UnderlayFacts(vtep, device, min(mtus[name] for name in path))
    return UnderlayFacts(vtep)


async def _links(netlink: Any) -> tuple[dict[int, str], dict[str, int]]:
    names: dict[int, str] = {}
    mtus: dict[str, int] = {}
    async for message in await netlink.link("dump"):
        name = message.get_attr("IFLA_IFNAME")
        names[message["index"]] = name
        mtus[name] = message.get_attr("IFLA_MTU")
    return names, mtus


class TunnelNeighbours:
    """Keeps the way to other VTEPs resolved, so that no first packet is lost.

    `datapath_type` "system": the kernel encapsulates and queues packets while it resolves; it is only asked to.
    """

    def __init__(self, datapath_type: str, *, run_dir: str) -> None:
        self._netdev = datapath_type == "netdev"
        self._run_dir = run_dir
        self._written: dict[NextHop, float] = {}  # when, by the loop's clock

    async def keep(self, vteps: Collection[str]) -> dict[str, Failure | None]:
        """Make the entries of all `vteps` warm; None = it is.

        Call it with all VTEPs in scope when one appears, after each vswitchd start and at least every 300 s. Takes
        up to 3.5 s if one does not answer. Reasons: NoRoute, Unresolved (no ARP or ND reply), OvsRefused.
        Raises DeviceUnavailable when vswitchd does not answer.
        """
        out: dict[str, Failure | None] = {}
        hops: dict[str, NextHop] = {}
        async with AsyncIPRoute() as netlink:
            names, _ = await _links(netlink)
            for vtep in vteps:
                found = await _next_hop(netlink, vtep, names)
                if isinstance(found, Failure):
                    out[vtep] = found
                else:
                    hops[vtep] = found
            macs: dict[NextHop, str] = {}
            failed: dict[NextHop, Failure] = {}
            for seconds in RESOLVE_TIMEOUTS:
                resolved = await _resolve(netlink, set(hops.values()) - macs.keys(), seconds)
                failed |= await self._write(resolved) if self._netdev and resolved else {}
                macs |= resolved
        unresolved = Failure("Unresolved", "the next hop does not answer ARP or neighbour solicitations")
        return out | {vtep: failed.get(hop) if hop in macs else unresolved for vtep, hop in hops.items()}

    async def _write(self, macs: Mapping[NextHop, str]) -> dict[NextHop, Failure]:
        """Bring OVS's cache in line with the kernel's; what OVS has already is written again before it ages."""
        try:
            path = control_socket(self._run_dir)
        except (OSError, ValueError) as error:
            raise DeviceUnavailable(f"ovs-vswitchd is down: {error}") from error
        cached = _parse_neighbours(await unixctl(path, "tnl/neigh/show"))
        now = asyncio.get_running_loop().time()
        self._written = {hop: at for hop, at in self._written.items() if now - at < REFRESH}
        failures: dict[NextHop, Failure] = {}
        for hop, mac in macs.items():
            if hop in self._written and cached.get((hop.device, hop.address)) == mac:
                continue
            try:
                await unixctl(path, "tnl/neigh/set", hop.device, hop.address, mac)
                self._written[hop] = now
            except UnixctlError as error:
                failures[hop] = Failure("OvsRefused", str(error))
        return failures


async def _next_hop(netlink: Any, vtep: str, names: Mapping[int, str]) -> NextHop | Failure:
    family = AF_INET6 if ip_address(vtep).version == 6 else AF_INET
    try:
        for message in await netlink.route("get", dst=vtep, family=family):
            index = message.get_attr("RTA_OIF")
            if message["type"] == RTN_UNICAST and index in names:
                address = message.get_attr("RTA_GATEWAY") or vtep
                return NextHop(names[index], index, str(ip_address(address)))
    except NetlinkError as error:
        return Failure("NoRoute", str(error))
    return Failure("NoRoute", "the route leads to no other host")


async def _resolve(netlink: Any, hops: set[NextHop], seconds: float) -> dict[NextHop, str]:
    """Have the kernel resolve all of them at once; returns the MACs of those that answered within the time."""
    for hop in hops:
        await netlink.neigh("replace", dst=hop.address, ifindex=hop.index, flags=NTF_USE, state=0)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    macs: dict[NextHop, str] = {}
    pending, pause = set(hops), FIRST_POLL
    while pending:
        states = await _kernel_neighbours(netlink, pending)
        for hop in list(pending):
            state, mac = states.get((hop.index, hop.address), (0, None))
            if state & NUD_USABLE and mac:
                macs[hop] = mac
            if state & (NUD_USABLE | NUD_FAILED):
                pending.discard(hop)
        if loop.time() > deadline:
            break
        if pending:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_POLL)
    return macs


async def _kernel_neighbours(netlink: Any, hops: Iterable[NextHop]) -> dict[tuple[int, str], tuple[int, str | None]]:
    out: dict[tuple[int, str], tuple[int, str | None]] = {}
    for version in {ip_address(hop.address).version for hop in hops}:
        async for message in await netlink.neigh("dump", family=AF_INET6 if version == 6 else AF_INET):
            address = message.get_attr("NDA_DST")
            if address is not None:
                key = message["ifindex"], str(ip_address(address))
                out[key] = message["state"], message.get_attr("NDA_LLADDR")
    return out


def _parse_neighbours(table: str) -> dict[tuple[str, str], str]:
    """`tnl/neigh/show`: two lines of heading, then "IP MAC Bridge"."""
    rows = [line.split() for line in table.splitlines()[2:]]
    return {(row[2], str(ip_address(row[0]))): row[1].lower() for row in rows if len(row) == 3}
