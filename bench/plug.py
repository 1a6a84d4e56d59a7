"""Workloads made by hand: a namespace, a veth, an address; for the floor and for OVN.

The usual way runs `ip` three times, as scripts and many plug-ins do; the lean way runs it once and configures the
inside by ioctl: about as well as it can be done without knowing the port in advance.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from pathlib import Path

from bench.inside import Card, Inside
from bench.prober import Where

MTU = 1400  # Geneve with its options takes 58 bytes


class Way(Enum):
    """How a single workload is made."""

    USUAL = ""
    LEAN = "_lean"


@dataclass(frozen=True, slots=True)
class Plug:
    """A workload: `name` is that of its namespace, too."""

    inside: Inside
    name: str
    address: str
    bits: int = 16
    mtu: int = MTU

    @property
    def device(self) -> str:
        """The host's end."""
        return f"v{self.name}"

    @property
    def mac(self) -> str:
        """From the address."""
        return "0a:00:" + ":".join(f"{byte:02x}" for byte in ip_address(self.address).packed)

    @property
    def where(self) -> Where:
        """Its place for a prober."""
        return Where(self.inside, self.name)

    def outer(self) -> list[str]:
        """Lines for `ip -batch`: no addresses on the host's end."""
        peer = f"peer name eth0 netns {self.name} mtu {self.mtu} address {self.mac}"
        return [
            f"netns add {self.name}",
            f"link add {self.device} mtu {self.mtu} type veth {peer}",
        ]

    def rise(self) -> list[str]:
        """Lines for `ip -batch`: the host's end up."""
        return [f"link set {self.device} addrgenmode none", f"link set {self.device} up"]

    def inner(self, way: Way = Way.LEAN) -> None:
        """Inside a job: configure the workload's end."""
        with self.inside.netns(self.name), Card("eth0") as card:
            _quiet()
            if way is Way.USUAL:
                Inside.ip(["link set eth0 up", f"address add {self.address}/{self.bits} dev eth0"])
            else:
                card.configure(self.address, self.bits)
            card.tx_checksum_off()


def _quiet() -> None:
    """No IPv6, whose first multicasts flood a big logical switch; a lost ARP costs 10 ms and not 1 s."""
    settings = {
        "ipv6/conf/all/disable_ipv6": "1",
        "ipv6/conf/default/disable_ipv6": "1",
        "ipv4/neigh/eth0/retrans_time_ms": "10",
        "ipv4/neigh/eth0/mcast_solicit": "100",
    }
    for name, value in settings.items():
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/net/{name}").write_text(value)


def make(plugs: Sequence[Plug], way: Way = Way.LEAN) -> None:
    """Inside a job of their host: all of them, ready but for Open vSwitch."""
    if way is Way.USUAL:
        Inside.ip([line for plug in plugs for line in plug.outer()])
        Inside.ip([line for plug in plugs for line in plug.rise()])
    else:
        make_outer(plugs)
    for plug in plugs:
        plug.inner(way)


def make_outer(plugs: Sequence[Plug]) -> None:
    """Inside a job: namespaces and devices."""
    Inside.ip([line for plug in plugs for line in (*plug.outer(), *plug.rise())])


def remove(plugs: Iterable[Plug]) -> None:
    """Inside a job: a device goes with the namespace its other end is in."""
    lines = [line for plug in plugs for line in (f"link del {plug.device}", f"netns del {plug.name}")]
    if lines:
        Inside.ip(lines)
