"""Our veth pairs, both ends of them, as a process without memory finds them."""

from __future__ import annotations

from dataclasses import dataclass

from agent.drivers import rtnetlink
from agent.drivers.allow import PlacementRefused
from agent.drivers.kernel import Kernel, NetnsMissing
from agent.drivers.rtnetlink import LinkInfo
from agent.objects import Marks, NetnsRef


@dataclass(frozen=True, slots=True)
class Pair:
    """A host-side device of ours and what it leads to."""

    host: LinkInfo
    netns: NetnsRef | None  # None: the other end is in no namespace that we could have put it into
    workload: LinkInfo | None


def is_ours(link: LinkInfo) -> bool:
    """Whether we made this device. One with our name but without our mark is somebody's."""
    return (
        link.kind == "veth" and link.name.startswith(Marks.DEVICE_PREFIX) and link.alias.startswith(Marks.ALIAS_PREFIX)
    )


def mark(tenant: str, port_uid: str) -> str:
    """What is written on a device of ours."""
    return f"{Marks.ALIAS_PREFIX}{tenant}/{port_uid}"


def owner(link: LinkInfo) -> tuple[str, str]:
    """Tenant and port uid of a device of ours, as it was marked."""
    tenant, _, port_uid = link.alias.removeprefix(Marks.ALIAS_PREFIX).rpartition("/")
    return tenant, port_uid


def leading_to(kernel: Kernel, path: str) -> list[LinkInfo]:
    """Our devices whose other end is in the namespace at a path, by whatever path it was put there."""
    nsid = kernel.nsid(path)
    if nsid is None:
        return []
    links = rtnetlink.links(kernel.host, kind="veth")
    return [link for link in links if is_ours(link) and link.peer_nsid == nsid]


def find_pairs(kernel: Kernel) -> list[Pair]:
    """All of them."""
    return [find_end(kernel, link) for link in rtnetlink.links(kernel.host, kind="veth") if is_ours(link)]


def find_pair(kernel: Kernel, device: str) -> Pair | None:
    """One of them."""
    link = rtnetlink.link(kernel.host, device)
    return find_end(kernel, link) if link is not None and is_ours(link) else None


def find_end(kernel: Kernel, host: LinkInfo) -> Pair:
    """Follow a device to its other end."""
    if host.peer_nsid is None:
        return Pair(host, None, None)
    try:
        netns = kernel.where(host.peer_nsid)
        if netns is None:
            return Pair(host, None, None)
        told = kernel.placed.get(host.name)
        if told is not None and kernel.same(told.path, netns.path):
            netns = told  # the same place by another path
        kernel.placed[host.name] = netns
        with kernel.enter(netns.path) as inside:
            return Pair(host, netns, rtnetlink.link_at(inside, host.peer))
    except (NetnsMissing, PlacementRefused):
        return Pair(host, None, None)
