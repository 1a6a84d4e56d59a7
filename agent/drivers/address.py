"""Addresses and routes of workloads, and both ends of their links up. Layer address, key: host-side device.

Ours are the addresses and routes that carry our protocol number (`rtnetlink.PROTOCOL`); kernels before 5.18 do not
keep it for addresses, there only what this process wrote counts. What a workload adds by itself is left alone, what
it removes of ours comes back.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv6Address, ip_interface

from agent import names
from agent.drivers import rtnetlink
from agent.drivers.allow import PlacementRefused
from agent.drivers.base import Failure
from agent.drivers.kernel import Kernel, NetnsMissing, set_ipv6
from agent.drivers.memory import Memory
from agent.drivers.netlink import Message, Netlink
from agent.drivers.nsthread import NetnsThread
from agent.drivers.pairs import Pair, find_pair, find_pairs
from agent.drivers.rtnetlink import PROTOCOL, UP, AddressInfo, LinkInfo, RouteInfo
from agent.objects import Addressing, NetnsKind, NetnsRef, Route

Outcome = tuple[Addressing | None, Failure | None]
_HOST = NetnsRef(NetnsKind.HOST, "")


class AddressDriver:
    """See `agent.drivers.base.Driver`."""

    def __init__(self, thread: NetnsThread) -> None:
        self._thread = thread
        self._wanted: dict[str, Addressing] = {}  # as last written, to recognise what lacks our mark
        self._memory: Memory[Addressing] = Memory()

    async def read(self) -> dict[str, Addressing]:
        """Links that are up or have something of ours; what is missing of it is missing here or named as a flaw."""

        def job(kernel: Kernel) -> dict[str, Addressing]:
            pairs = [self._describe(kernel, pair) for pair in find_pairs(kernel)]
            found = {value.device: value for value in pairs if value is not None}
            return self._memory.saw_all(found | self._adopted(kernel))

        return await self._thread.run(job)

    async def read_some(self, devices: Collection[str]) -> dict[str, Addressing]:
        """Those of these that are there."""
        return await self._thread.run(lambda kernel: self._find_some(kernel, devices))

    async def changed(self, devices: Collection[str]) -> set[str]:
        """Which of these are not as they were last read or written by this driver."""
        return await self._thread.look(lambda kernel: self._memory.differing(devices, self._find_some(kernel, devices)))

    async def apply(self, write: Mapping[str, Addressing], delete: Collection[str]) -> Mapping[str, Failure]:
        """Bring addresses and routes to what is wanted and set links up; deleting sets them down.

        Reasons: LinkMissing (there is no such link, or it leads elsewhere), RouteExists (somebody has a route to that
        prefix), AddressRefused (by the kernel), NotApplied.
        """

        def job(kernel: Kernel) -> dict[str, Failure]:
            outcomes = {device: self._delete(kernel, device) for device in delete}
            outcomes |= {device: self._write(kernel, want) for device, want in write.items()}
            for device, (_, failure) in list(outcomes.items()):
                if failure is not None and failure.reason == "RouteExists" and device in write:
                    # Perhaps it was in the way of a route that has moved here from another interface of ours.
                    outcomes[device] = self._write(kernel, write[device])
            return self._memory.wrote(outcomes)

        return await self._thread.run(job)

    # -- reading

    def _find_some(self, kernel: Kernel, devices: Collection[str]) -> dict[str, Addressing]:
        pairs = [pair for device in devices if (pair := find_pair(kernel, device)) is not None]
        values = [value for pair in pairs if (value := self._describe(kernel, pair)) is not None]
        adopted = self._adopted(kernel)
        return {value.device: value for value in values} | {k: v for k, v in adopted.items() if k in devices}

    def _adopted(self, kernel: Kernel) -> dict[str, Addressing]:
        """Others' devices that we set up; those of before a restart need not be known (see `LinkDriver.read`)."""
        found: dict[str, Addressing] = {}
        for device, want in self._wanted.items():
            link = rtnetlink.link(kernel.host, device) if want.netns.kind is NetnsKind.HOST else None
            if link is not None:
                found[device] = want if link.up else replace(want, flaw="the device is down")
        return found

    def _describe(self, kernel: Kernel, pair: Pair) -> Addressing | None:
        """What there is of ours at a link; None if there is nothing. A spare is up, and has nothing."""
        device, workload = pair.host.name, pair.workload
        if pair.netns == names.spare_netns(device):
            return None
        if pair.netns is None or workload is None:
            return Addressing(device, _HOST, "", flaw="it leads nowhere") if pair.host.up else None
        try:
            with kernel.enter(pair.netns.path) as inside:
                addresses = rtnetlink.addresses(inside, workload.index)
                routes = rtnetlink.routes(inside, workload.index)
        except (NetnsMissing, PlacementRefused):
            return None
        except OSError as error:
            if error.errno != errno.ENODEV:  # it went away just now
                raise
            return None
        want = self._wanted.get(device)
        mine = {a.address for a in addresses if a.protocol == PROTOCOL or (want and a.address in want.addresses)}
        paths = {_plain(r) for r in routes if r.protocol == PROTOCOL or (want and _plain(r) in want.routes)}
        local = _link_local(workload.mac)
        if not pair.host.up and not mine - {local} and not paths:
            return None
        found = Addressing(
            device=device,
            netns=pair.netns,
            interface=workload.name,
            addresses=tuple(sorted(mine - {local})),
            routes=tuple(sorted(paths, key=lambda route: (route.prefix, route.gateway))),
        )
        usable = {a.address for a in addresses if a.usable}
        return replace(found, flaw=_flaw(pair, workload, {*found.addresses, local} - usable))

    # -- writing

    def _write(self, kernel: Kernel, want: Addressing) -> Outcome:
        self._wanted[want.device] = want
        try:
            if want.netns.kind is NetnsKind.HOST:
                return _set_device_up(kernel, want)
            pair = find_pair(kernel, want.device)
            workload = pair.workload if pair is not None else None
            if pair is None or workload is None or (pair.netns, workload.name) != (want.netns, want.interface):
                return None, Failure("LinkMissing", f"{want.device} does not lead to {want.interface} where it should")
            if not pair.host.up:  # with datapath "netdev" the layer guard has done it
                kernel.host.check(rtnetlink.set_link(pair.host.index, flags=UP, change=UP))
            with kernel.enter(want.netns.path) as inside:
                failure = _bring(inside, workload, want)
        except PlacementRefused as refused:
            return None, refused.failure()
        except NetnsMissing as missing:
            return None, Failure("LinkMissing", str(missing))
        except OSError as error:
            return None, Failure("AddressRefused", str(error))
        if failure is not None:
            return None, failure
        pair = find_pair(kernel, want.device)
        found = self._describe(kernel, pair) if pair is not None else None
        if found != want:
            return None, Failure("NotApplied", f"{want.device} was written but is now {found}")
        return found, None

    def _delete(self, kernel: Kernel, device: str) -> Outcome:
        """Nothing of ours is left, and nothing passes."""
        want = self._wanted.pop(device, None)
        try:
            pair = find_pair(kernel, device)
            host = pair.host if pair is not None else None
            if pair is None and want is not None and want.netns.kind is NetnsKind.HOST:
                host = rtnetlink.link(kernel.host, device)
            if host is not None and host.up:
                kernel.host.check(rtnetlink.set_link(host.index, change=UP))
            if pair is not None and pair.netns is not None and pair.workload is not None:
                with kernel.enter(pair.netns.path) as inside:
                    index = pair.workload.index
                    _remove(inside, index, rtnetlink.addresses(inside, index), rtnetlink.routes(inside, index))
                    inside.check(rtnetlink.set_link(pair.workload.index, change=UP))
        except (NetnsMissing, PlacementRefused):
            return None, None
        except OSError as error:
            if error.errno != errno.ENODEV:
                return None, Failure("AddressRefused", str(error))
        return None, None


def _flaw(pair: Pair, workload: LinkInfo, unusable: Collection[str]) -> str:
    if not pair.host.up:
        return "the host side is down"
    if not workload.up:
        return "the interface is down"
    if unusable and not (workload.ipv6_off and all(ip_interface(a).version == 6 for a in unusable)):
        return f"{min(unusable)} is missing or not usable"
    return ""


def _plain(route: RouteInfo) -> Route:
    return Route(route.prefix, route.gateway)


def _link_local(mac: str) -> str:
    """The EUI-64 link-local address (RFC 4291, appendix A); added by hand so that it is never tentative."""
    b = bytes.fromhex(mac.replace(":", ""))
    raw = b"\xfe\x80" + bytes(6) + bytes((b[0] ^ 2, b[1], b[2], 0xFF, 0xFE, b[3], b[4], b[5]))
    return f"{IPv6Address(raw)}/64"


def _set_device_up(kernel: Kernel, want: Addressing) -> Outcome:
    link = rtnetlink.link(kernel.host, want.device)
    if link is None:
        return None, Failure("LinkMissing", f"{want.device}: no such device")
    if not link.up:
        kernel.host.check(rtnetlink.set_link(link.index, flags=UP, change=UP))
    return want, None


def _bring(inside: Netlink, workload: LinkInfo, want: Addressing) -> Failure | None:
    """Remove what is ours no more, add what is missing; routes last, they need the interface up."""
    six = any(ip_interface(a).version == 6 for a in want.addresses)
    index, ipv6 = workload.index, six or not workload.ipv6_off
    if six and workload.ipv6_off:
        set_ipv6(workload.name, "disable_ipv6", 0)
    if ipv6:
        for name in ("accept_ra", "autoconf"):
            set_ipv6(workload.name, name, 0)
    addresses, routes = rtnetlink.addresses(inside, index), rtnetlink.routes(inside, index)
    keep = (*want.addresses, _link_local(workload.mac))
    removed = _remove(inside, index, addresses, routes, keep=keep, keep_routes=want.routes)
    if removed:  # with an address go others of its prefix
        addresses = rtnetlink.addresses(inside, index)
    there = {item.address for item in addresses if item.usable and item.protocol == PROTOCOL}
    steps: list[tuple[str, Message]] = []
    if ipv6 and workload.generates:
        steps.append(("addrgenmode", rtnetlink.no_generated_addresses(index)))
    wanted = (*want.addresses, *((_link_local(workload.mac),) if ipv6 else ()))
    steps += [(address, rtnetlink.new_address(index, address)) for address in wanted if address not in there]
    steps.append((want.interface, rtnetlink.set_link(index, flags=UP, change=UP)))
    failure = _execute(inside, steps)
    if removed or not workload.up:  # … and routes
        routes = rtnetlink.routes(inside, index)
    present = {_plain(route) for route in routes}
    missing = [RouteInfo(route.prefix, route.gateway) for route in want.routes if route not in present]
    return _execute(inside, [(r.prefix, rtnetlink.new_route(index, r)) for r in missing]) or failure


def _remove(
    inside: Netlink,
    index: int,
    addresses: Collection[AddressInfo],
    routes: Collection[RouteInfo],
    *,
    keep: Collection[str] = (),
    keep_routes: Collection[Route] = (),
) -> bool:
    """Remove what is ours of these, but for what is to be kept; says whether there was anything."""
    stale = [route for route in routes if route.protocol == PROTOCOL and _plain(route) not in keep_routes]
    old = [item for item in addresses if item.protocol == PROTOCOL and item.address not in keep]
    inside.execute(
        *(rtnetlink.delete_route(index, route) for route in stale),
        *(rtnetlink.delete_address(index, item.address) for item in old),
    )
    return bool(stale or old)


def _execute(inside: Netlink, steps: Sequence[tuple[str, Message]]) -> Failure | None:
    """Try all; the first failure."""
    for (what, _), error in zip(steps, inside.execute(*(message for _, message in steps)), strict=True):
        if error is not None:
            reason = "RouteExists" if error.errno == errno.EEXIST else "AddressRefused"
            return Failure(reason, f"{what}: {error.strerror}")
    return None
