"""Cached flows on the hosts of a lab: what a switch has to look through whenever its tables change."""

from __future__ import annotations

import re
import time
from ipaddress import IPv4Address

from bench.common import BenchError
from tealnet.lab.host import Host
from tealnet.lab.service import Service

FIRST = IPv4Address("10.1.64.0")  # of network web; nobody lives there
SECONDS = 60.0
_CURRENT = re.compile(r"flows\s*:\s*\(current (\d+)\)")


def megaflows(host: Host) -> int:
    """How many there are."""
    found = _CURRENT.search(host.output(["ovs-appctl", "upcall/show"]))
    if found is None:
        raise BenchError(f"{host.name} does not tell its cached flows")
    return int(found[1])


def keep(host: Host) -> None:
    """Cached flows stay although no packet comes by, and are looked through however few come.

    Else a sweep that takes long forgets those with less than 5 packets a second without looking: it would be quicker.
    """
    words = ("max-idle=3600000", "min-revalidate-pps=0")
    host.output(["ovs-vsctl", "set", "Open_vSwitch", ".", *(f"other_config:{word}" for word in words)])


def fill(service: Service, wanted: int, *, hosts: int) -> None:
    """At least so many on each of the first hosts, until flows change that they have looked at.

    Each client sends to so many addresses of network web. All of it goes through conntrack and by the weights, so each
    cached flow has to be looked at with each flip; as nobody lives there it ends in a drop.
    """
    for host, client in list(zip(service.lab.hosts, service.clients(), strict=True))[:hosts]:
        keep(host)
        deadline = time.monotonic() + SECONDS
        while (there := megaflows(host)) < wanted:
            if time.monotonic() > deadline:
                raise BenchError(f"only {there} cached flows on {host.name}")
            client.probe("scatter", str(FIRST), str(wanted), "--rate", "4000")
