"""What lies between lab machines: two Linux bridges in a network namespace of their own.

`underlay` carries tunnels (192.0.2.0/24 and 2001:db8:0:2::/64), `management` the hosts' sessions with the controller
(198.51.100.0/24): documentation prefixes (RFC 5737, RFC 3849). They are apart so that the one can be cut and the other
kept.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path

from tealnet.lab.machine import Machine, call

HOSTS_MAX = 240  # above are members of etcd and controllers
_DISABLED, _FORWARDING = 0, 3  # of a bridge port (bridge(8), state)


class Network(StrEnum):
    """A network between the machines; the value is its bridge."""

    UNDERLAY = "underlay"
    MANAGEMENT = "management"


class Direction(StrEnum):
    """Which frames of a machine are lost."""

    BOTH = "both"
    OUT = "out"
    """What it sends."""
    IN = "in"
    """What is sent to it."""


# Hooks of nftables' netdev family as seen from the near end of a cable: what the machine sends comes in here.
_HOOKS = {Direction.OUT: "ingress", Direction.IN: "egress"}
_CUT = "cut_"


def management_address(number: int) -> str:
    """Where host `number` is on the management network."""
    return f"198.51.100.{number}"


def underlay_address(number: int) -> str:
    """IPv4 address of host `number` on the underlay."""
    return f"192.0.2.{number}"


def underlay_address6(number: int) -> str:
    """IPv6 address of host `number` on the underlay."""
    return f"2001:db8:0:2::{number:x}"


def _near(network: Network, number: int) -> str:
    """The bridge port of a host."""
    return f"{network[0]}{number}"


class Fabric(Machine):
    """The machine that holds the bridges."""

    def __init__(self, directory: Path) -> None:
        super().__init__("fabric", directory)

    def build(self) -> None:
        """Start it and make the bridges. Snooping is off: neighbour discovery must work from the first packet."""
        self.create()
        lines = ["link set lo up"]
        for network in Network:
            lines += [
                f"link add {network} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                f"link set {network} addrgenmode none",
                f"link set {network} up",
            ]
        self.ip(lines)

    def connect(self, machine: Machine, number: int, *, network: Network, device: str, mtu: int = 1500) -> None:
        """Put a cable between a machine and a network: `device` there, `u1` or `m1` here; the machine's end is down."""
        holder = machine.holder()
        assert holder is not None  # it has just been created
        near, last = _near(network, number), number & 0xFF
        address = f"02:{'01' if network is Network.UNDERLAY else '02'}:00:00:00:{last:02x}"
        far = f"peer name {device} mtu {mtu} address {address} netns {holder.pid}"
        self.ip(
            [
                f"link add {near} mtu {mtu} type veth {far}",
                f"link set {near} addrgenmode none",
                f"link set {near} master {network} up",
            ]
        )

    def cut(self, number: int, network: Network, *, direction: Direction = Direction.BOTH) -> None:
        """Lose frames of a machine silently: its link stays up, as when something breaks farther away."""
        self.heal(number, network)
        if direction is Direction.BOTH:
            self._set_state(number, network, state=_DISABLED)
        else:
            near = _near(network, number)
            hook = f"type filter hook {_HOOKS[direction]} device {near} priority 0; policy drop;"
            self._nft(f"table netdev {_CUT}{near} {{ chain {direction} {{ {hook} }}; }}")

    def heal(self, number: int, network: Network) -> None:
        """Carry the machine's frames again."""
        table = f"netdev {_CUT}{_near(network, number)}"
        self._nft(f"table {table}; delete table {table}")  # declared first: deleting what is not there is an error
        self._set_state(number, network, state=_FORWARDING)

    def _set_state(self, number: int, network: Network, *, state: int) -> None:
        # bridge(8) and not `ip link`, which takes the state and does nothing with it.
        call([*self.net(), "bridge", "link", "set", "dev", _near(network, number), "state", str(state)])

    def _nft(self, text: str) -> None:
        call([*self.net(), "nft", text])

    def cuts(self) -> dict[int, list[str]]:
        """What is cut, by machine number: "underlay", or "underlay (out)"."""
        found: dict[int, list[str]] = {}
        for port in json.loads(call([*self.net(), "bridge", "-json", "link"]) or "[]"):
            if port["state"] == "disabled":
                found.setdefault(int(port["ifname"][1:]), []).append(str(_network_of(port["ifname"])))
        rows = json.loads(call([*self.net(), "nft", "-j", "list", "chains", "netdev"]))["nftables"]
        for chain in (row["chain"] for row in rows if "chain" in row):
            near = chain["table"].removeprefix(_CUT)
            found.setdefault(int(near[1:]), []).append(f"{_network_of(near)} ({chain['name']})")
        return found


def _network_of(near: str) -> Network:
    return next(network for network in Network if near.startswith(network[0]))
