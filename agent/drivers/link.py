"""The links of ports: veth pairs of ours, and devices of others that we were allowed to plug. Layer link.

Key: the host-side device. A pair's host side is a wire's end and nothing more: no addresses, no ARP, no IPv6. It is
made down, and set up by the layers `guard` and `address`. The workload's end is up from the start, but has nothing to
send from without an address: so the carrier comes with the guard, before vswitchd is at work on the port, and not as
one more change of flags after that, for which vswitchd would configure all bridges anew and forward nothing meanwhile.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from agent.drivers import allow, rtnetlink, syscalls
from agent.drivers.allow import Allowed, PlacementRefused
from agent.drivers.base import Failure
from agent.drivers.device import Adopted
from agent.drivers.kernel import Kernel, NetnsMissing, set_ipv6
from agent.drivers.memory import Memory
from agent.drivers.netlink import Netlink
from agent.drivers.nsthread import NetnsThread
from agent.drivers.pairs import Pair, find_pair, find_pairs, is_ours, leading_to, mark, owner
from agent.drivers.rtnetlink import NO_ARP, UP, LinkInfo
from agent.objects import Link, NetnsKind, NetnsRef

Outcome = tuple[Link | None, Failure | None]
_NOWHERE = NetnsRef(NetnsKind.PATH, "")


class LinkDriver:
    """See `agent.drivers.base.Driver`.

    `foreign_ovs_ports` names the interfaces in OVS bridges that are not ours (`OvsFacts.foreign_ports`), or returns
    None while that is not known; called on the event loop.
    """

    def __init__(
        self,
        thread: NetnsThread,
        *,
        datapath_type: str,
        allowed: Allowed,
        foreign_ovs_ports: Callable[[], Collection[str] | None],
    ) -> None:
        self._thread = thread
        self._netdev = datapath_type == "netdev"
        self._allowed = allowed
        self._foreign = foreign_ovs_ports
        self._adopted = Adopted(allowed)
        self._memory: Memory[Link] = Memory()

    async def read(self) -> dict[str, Link]:
        """Our pairs, and the devices that were plugged through this driver.

        Of others' devices nothing is changed but the MTU, so those plugged before a restart need not be known.
        """
        foreign = self._foreign()

        def job(kernel: Kernel) -> dict[str, Link]:
            found = {pair.host.name: _value(pair) for pair in find_pairs(kernel)}
            return self._memory.saw_all(found | self._adopted.read(kernel, foreign))

        return await self._thread.run(job)

    async def read_some(self, devices: Collection[str]) -> dict[str, Link]:
        """Those of these that are there and ours."""
        foreign = self._foreign()
        return await self._thread.run(lambda kernel: self._find_some(kernel, devices, foreign))

    async def changed(self, devices: Collection[str]) -> set[str]:
        """Which of these are not as they were last read or written by this driver."""
        foreign = self._foreign()
        return await self._thread.look(
            lambda kernel: self._memory.differing(devices, self._find_some(kernel, devices, foreign))
        )

    async def apply(self, write: Mapping[str, Link], delete: Collection[str]) -> Mapping[str, Failure]:
        """Make, repair and delete links; others' devices only get the MTU.

        Reasons: NetnsMissing, NetnsForeign (of that name, but not made by us), NetnsNotAllowed, NetnsInUse (it has an
        interface of another tenant), InterfaceExists (it has another device of that name), DeviceForeign (the host
        has), DeviceMissing, DeviceNotAllowed, DeviceInUse, OvsUnknown (whose device it is cannot be told now),
        LinkRefused (by the kernel), NotApplied.
        """
        foreign = self._foreign()

        def job(kernel: Kernel) -> dict[str, Failure]:
            outcomes = self._delete(kernel, delete)
            outcomes |= {device: self._write(kernel, link, foreign) for device, link in write.items()}
            return self._memory.wrote(outcomes)

        return await self._thread.run(job)

    def _find_some(self, kernel: Kernel, devices: Collection[str], foreign: Collection[str] | None) -> dict[str, Link]:
        pairs = [pair for device in devices if (pair := find_pair(kernel, device)) is not None]
        adopted = self._adopted.read(kernel, foreign)
        return {pair.host.name: _value(pair) for pair in pairs} | {k: v for k, v in adopted.items() if k in devices}

    def _write(self, kernel: Kernel, want: Link, foreign: Collection[str] | None) -> Outcome:
        try:
            if want.netns.kind is NetnsKind.HOST:
                return self._adopted.write(kernel, want, foreign), None
            self._check_place(kernel, want)
            kernel.placed[want.device] = want.netns
            self._write_pair(kernel, want)
        except PlacementRefused as refused:
            return None, refused.failure()
        except NetnsMissing as missing:
            return None, Failure("NetnsMissing", str(missing))
        except OSError as error:
            return None, Failure("LinkRefused", str(error))
        pair = find_pair(kernel, want.device)
        found = _value(pair) if pair is not None else None
        if found != want:
            return None, Failure("NotApplied", f"{want.device} was written but is now {found}")
        return found, None

    def _check_place(self, kernel: Kernel, want: Link) -> None:
        netns = want.netns
        if netns.kind is NetnsKind.OURS:
            if not kernel.is_ours(netns.path):
                raise PlacementRefused("NetnsForeign", f"{netns.path} was not made by this agent", retriable=True)
            return
        allow.netns_path(netns.path, self._allowed.netns)
        if kernel.is_ours(netns.path):
            raise PlacementRefused("NetnsNotAllowed", f"{netns.path}: it belongs to ports of NETNS", retriable=False)
        others = (link for link in leading_to(kernel, netns.path) if link.name != want.device)
        if any(owner(link)[0] != want.tenant for link in others):
            text = f"{netns.path}: it has an interface of another tenant"
            raise PlacementRefused("NetnsInUse", text, retriable=True)

    def _write_pair(self, kernel: Kernel, want: Link) -> None:
        pair = find_pair(kernel, want.device)
        if pair is not None and pair.workload is not None and not want.is_made_anew(_value(pair)):
            if pair.netns is None or not kernel.same(pair.netns.path, want.netns.path):
                # A spare, and its port has another namespace already. It is made there once nobody holds this one.
                kernel.host.check(rtnetlink.delete_link(pair.host.index))
                raise PlacementRefused("NotApplied", f"{want.device} led to another namespace", retriable=True)
            with kernel.enter(want.netns.path) as inside:
                _repair(inside, pair.workload, want)
                self._offload(want)
        else:
            if want.spare is not None and pair is None and self._memory.knows(want.device):
                # Whoever chose it took it for what it was, and Open vSwitch may hold that still.
                raise PlacementRefused("NotApplied", f"{want.device} has just gone", retriable=True)
            if pair is not None:
                kernel.host.check(rtnetlink.delete_link(pair.host.index))
            with kernel.enter(want.netns.path) as inside:
                _create(kernel, inside, want)
                self._offload(want)
        _silence(kernel, want)  # to be asked for its other end gives that namespace an id
        kernel.learn(want.netns.path)

    def _offload(self, want: Link) -> None:
        if self._netdev:
            syscalls.tx_checksum_off(want.interface)

    def _delete(self, kernel: Kernel, devices: Collection[str]) -> dict[str, Outcome]:
        for device in devices:
            self._adopted.drop(device)
            kernel.placed.pop(device, None)
        hosts = [link for device in devices if (link := rtnetlink.link(kernel.host, device)) and is_ours(link)]
        failures: dict[str, Failure] = {}
        for host, error in zip(hosts, rtnetlink.delete_links(kernel.host, hosts), strict=True):
            if error is not None and error.errno != errno.ENODEV:
                failures[host.name] = Failure("LinkRefused", str(error))
        return {device: (None, failures.get(device)) for device in devices}


def _value(pair: Pair) -> Link:
    host, workload = pair.host, pair.workload
    tenant, port_uid = owner(host)
    found = Link(
        device=host.name,
        netns=pair.netns or _NOWHERE,
        interface=workload.name if workload else "",
        mac=workload.mac if workload else "",
        mtu=workload.mtu if workload else 0,
        port_uid=port_uid,
        tenant=tenant,
    )
    if workload is None:
        return replace(found, flaw="the workload side is not in a namespace that is known")
    if workload.mtu != host.mtu:
        return replace(found, flaw=f"the MTU of the host side is {host.mtu}")
    if not host.flags & NO_ARP or not host.ipv6_off or host.generates:
        return replace(found, flaw="the host side speaks ARP or IPv6")
    return found


def _create(kernel: Kernel, inside: Netlink, want: Link) -> None:
    """A new pair, made from inside: the interface gets its name at once."""
    obstacle = rtnetlink.link(inside, want.interface)
    if obstacle is not None:
        if not _is_left_over(kernel, inside, obstacle, want):
            text = f"{want.netns.path} has a device {want.interface} already"
            raise PlacementRefused("InterfaceExists", text, retriable=True)
        inside.check(rtnetlink.delete_link(obstacle.index))
    message = rtnetlink.new_veth(
        want.interface, mac=want.mac, mtu=want.mtu, peer=want.device, peer_netns=kernel.host_fd
    )
    try:
        inside.check(message)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
        text = f"the host has a device {want.device} that is not ours"
        raise PlacementRefused("DeviceForeign", text, retriable=True) from error
    made = rtnetlink.link(inside, want.interface)
    if made is not None:
        inside.check(rtnetlink.no_generated_addresses(made.index), rtnetlink.set_link(made.index, flags=UP, change=UP))


def _is_left_over(kernel: Kernel, inside: Netlink, obstacle: LinkInfo, want: Link) -> bool:
    """Whether what is in the way is this very link: its host side was renamed, or not marked yet by a dying agent."""
    if obstacle.kind != "veth" or obstacle.peer_nsid is None:
        return False
    if rtnetlink.nsid(inside, kernel.host_fd) != obstacle.peer_nsid:
        return False
    host = rtnetlink.link_at(kernel.host, obstacle.peer)
    if host is None:
        return False
    return host.alias == mark(want.tenant, want.port_uid) or (host.name == want.device and not host.alias)


def _repair(inside: Netlink, workload: LinkInfo, want: Link) -> None:
    if workload.name != want.interface:
        obstacle = rtnetlink.link(inside, want.interface)
        if obstacle is not None:
            text = f"{want.netns.path} has another device {want.interface}"
            raise PlacementRefused("InterfaceExists", text, retriable=True)
        down = rtnetlink.set_link(workload.index, change=UP)
        inside.check(down, rtnetlink.set_link(workload.index, name=want.interface))
    if (workload.mac, workload.mtu) != (want.mac, want.mtu):
        inside.check(rtnetlink.set_link(workload.index, mac=want.mac, mtu=want.mtu))


def _silence(kernel: Kernel, want: Link) -> None:
    """Mark the host side as ours, and have the host's own stack use it as little as it lets us (see layer guard)."""
    host = rtnetlink.link(kernel.host, want.device)
    if host is None:
        raise OSError(errno.ENODEV, "it went away", want.device)
    messages = []
    alias = mark(want.tenant, want.port_uid)
    if not host.flags & NO_ARP or (host.mtu, host.alias) != (want.mtu, alias):  # vswitchd looks at all, at each change
        messages.append(rtnetlink.set_link(host.index, flags=NO_ARP, change=NO_ARP, mtu=want.mtu, alias=alias))
    if host.generates:
        messages.append(rtnetlink.no_generated_addresses(host.index))
    kernel.host.check(*messages)
    if not host.ipv6_off:
        set_ipv6(want.device, "disable_ipv6", 1)
