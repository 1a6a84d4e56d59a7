"""The kernel's own stack never sees what comes in from a workload. Layer guard, key: host-side device.

With a userspace datapath Open vSwitch gets a copy of each frame, and the kernel goes on with the original: it would
answer ARP, take UDP, accept TCP. One table `netdev tealnet` with one ingress chain per device, named after it, whose
policy is to drop; no rules. Open vSwitch's copy is taken before.

A guarded device is set up here already, before it is plugged: vswitchd reads the flags of a device that it opens and
writes them back as a whole, to make it promiscuous, 0.1 to 0.3 ms later (OVS 3.1, traced). Who sets it up in between is
undone, and only here nobody is. Its other end is up, but without addresses.

A chain ends with its device up to Linux 6.15; later it stays and takes hold of the next device of that name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agent.drivers import nftables, rtnetlink
from agent.drivers.base import Failure
from agent.drivers.kernel import Kernel
from agent.drivers.memory import Memory
from agent.drivers.netlink import Netlink
from agent.drivers.nftables import Chain
from agent.drivers.nsthread import NetnsThread
from agent.objects import Guard, Marks

TABLE = Marks.NFT_TABLE


class GuardDriver:
    """See `agent.drivers.base.Driver`. Want none with datapath "system": Open vSwitch comes after this hook there."""

    def __init__(self, thread: NetnsThread) -> None:
        self._thread = thread
        self._memory: Memory[Guard] = Memory()

    async def read(self) -> dict[str, Guard]:
        """All chains of our table; one that does not drop all of its device's frames has a flaw."""
        return await self._thread.run(lambda kernel: self._memory.saw_all(_find(kernel)))

    async def read_some(self, devices: Collection[str]) -> dict[str, Guard]:
        """Those of these that are there."""
        return await self._thread.run(lambda kernel: _find(kernel, devices))

    async def changed(self, devices: Collection[str] | None = None) -> set[str]:
        """Which of these (None: of all) are not as they were last read or written by this driver."""

        def job(kernel: Kernel) -> set[str]:
            found = _find(kernel, devices)
            return self._memory.differing(self._memory.keys() | found.keys() if devices is None else devices, found)

        return await self._thread.look(job)

    async def apply(self, write: Mapping[str, Guard], delete: Collection[str]) -> Mapping[str, Failure]:
        """One transaction (per 100), then the devices up. One whose guard is deleted is set down first.

        Reasons: DeviceMissing, GuardRefused (by the kernel).
        """

        def job(kernel: Kernel) -> dict[str, Failure]:
            with nftables.connect() as netlink:
                outcomes = _apply(kernel, netlink, set(write), set(delete))
            return self._memory.wrote(
                {k: (Guard(k) if k in write and f is None else None, f) for k, f in outcomes.items()}
            )

        return await self._thread.run(job)


def _find(kernel: Kernel, devices: Collection[str] | None = None) -> dict[str, Guard]:
    with nftables.connect() as netlink:
        chains = nftables.read_chains(netlink, TABLE, devices) or []
    return {chain.name: Guard(chain.name, flaw=_flaw(kernel, chain)) for chain in chains}


def _flaw(kernel: Kernel, chain: Chain) -> str:
    if chain.device != chain.name:
        return f"it guards {chain.device or 'nothing'}"
    if not chain.drops:
        return "it lets frames pass"
    return "" if rtnetlink.link(kernel.host, chain.name) is not None else "the device is missing"


def _apply(kernel: Kernel, netlink: Netlink, write: set[str], delete: set[str]) -> dict[str, Failure | None]:
    """What came of each key."""
    outcomes: dict[str, Failure | None] = dict.fromkeys((*write, *delete))
    for device in write:
        if rtnetlink.link(kernel.host, device) is None:
            outcomes[device] = Failure("DeviceMissing", f"{device}: no such device")
    chains = nftables.read_chains(netlink, TABLE, write | delete)
    if chains is None and write:  # no table, or one that somebody put to sleep
        nftables.change(netlink, TABLE, add=(), delete=())
        chains = nftables.read_chains(netlink, TABLE, write | delete)
    there = {chain.name: chain for chain in chains or []}
    wanted = {device for device in write if outcomes[device] is None}
    add = {device for device in wanted if device not in there or _flaw(kernel, there[device])}
    gone = (delete | add) & there.keys()
    _set_down(kernel, delete & there.keys())
    keys = sorted(add | gone)
    for start in range(0, len(keys), nftables.LIMIT):
        outcomes |= _change(netlink, set(keys[start : start + nftables.LIMIT]), add, gone)
    return outcomes | _set_up(kernel, [device for device in wanted if outcomes[device] is None])


def _change(netlink: Netlink, keys: set[str], add: set[str], gone: set[str]) -> dict[str, Failure | None]:
    """One transaction, or if that fails one for each: one of them may have spoilt it for all."""
    error = nftables.change(netlink, TABLE, add=sorted(keys & add), delete=sorted(keys & gone))
    if error is None:
        return dict.fromkeys(keys)
    if len(keys) == 1:
        return {key: Failure("GuardRefused", str(error)) for key in keys}
    outcomes: dict[str, Failure | None] = {}
    for key in keys:
        outcomes |= _change(netlink, {key}, add, gone)
    return outcomes


def _set_up(kernel: Kernel, devices: Collection[str]) -> dict[str, Failure | None]:
    failures: dict[str, Failure | None] = {}
    for device in devices:
        link = rtnetlink.link(kernel.host, device)
        try:
            if link is None:
                failures[device] = Failure("DeviceMissing", f"{device}: no such device")
            elif not link.up:
                kernel.host.check(rtnetlink.set_link(link.index, flags=rtnetlink.UP, change=rtnetlink.UP))
        except OSError as error:
            failures[device] = Failure("GuardRefused", f"{device}: {error}")
    return failures


def _set_down(kernel: Kernel, devices: Collection[str]) -> None:
    """No device is up without its guard: the host would answer whoever is behind it."""
    for device in devices:
        link = rtnetlink.link(kernel.host, device)
        if link is not None and link.up:
            kernel.host.execute(rtnetlink.set_link(link.index, change=rtnetlink.UP))
