"""Links of nobody, kept ready for ports to come (`agent.spares`): each in a namespace of its own, guarded and plugged.

No flow knows them, so nothing passes. A spare's workload side is called as most ports want it, and both its sides are
up, so that a port which takes it over changes nothing that Open vSwitch would look at all devices for.
"""

from __future__ import annotations

from agent import names
from agent.desired import Pairs, Wants
from agent.inputs import THIS, Inputs
from agent.objects import Guard, Link, Marks, Namespace, OvsPort
from tealnet.core.tables import Graph, Read

INTERFACE = "eth0"


def declare(graph: Graph, inputs: Inputs) -> list[Wants]:
    """Namespaces, links, guards and OVS ports. Nobody's: that one cannot be made is no port's failure."""

    def namespace(read: Read, device: str) -> Pairs | None:
        name = names.spare_namespace(device)
        return ((name, Namespace(name)),) if read.get(inputs.spares, device) else None

    def link(read: Read, device: str) -> Pairs | None:
        mtu = read.get(inputs.spares, device)
        return ((device, spare_link(device, mtu=mtu)),) if mtu else None

    def guard(read: Read, device: str) -> Pairs | None:
        this = read.get(inputs.this, THIS)
        if not read.get(inputs.spares, device) or this is None or this.datapath != "netdev":
            return None
        return ((device, Guard(device)),)

    def ovs_port(read: Read, device: str) -> Pairs | None:
        this, ofport = read.get(inputs.this, THIS), read.get(inputs.issued, device)
        if not read.get(inputs.spares, device) or this is None or ofport is None:
            return None
        return ((("port", device), OvsPort(this.bridge, device, ofport, Marks.POOL)),)

    spares = inputs.spares
    return [
        Wants("netns", graph.derive(spares, namespace)),
        Wants("link", graph.derive(spares, link)),
        Wants("guard", graph.derive(spares, guard)),
        Wants("ovsdb", graph.derive(spares, ovs_port)),
    ]


def spare_link(device: str, *, mtu: int) -> Link:
    """A spare's link; its MAC is any that is nobody's."""
    mac = bytes.fromhex("02" + device[-10:]).hex(":")
    return Link(device, names.spare_netns(device), INTERFACE, mac, mtu, Marks.POOL)
