"""The story that `teal demo` tells and tests/lab checks: two tenants with the same addresses on three hosts, and a
third one whose web service changes color.

Each chapter does something real through the public API and looks at packets. It returns what it found, or raises
StoryError with what should not be.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tealnet import kinds
from tealnet.client import Client
from tealnet.lab import chapters_colors, chapters_isolation, chapters_life
from tealnet.lab.errors import LabError
from tealnet.lab.lab import Lab
from tealnet.lab.traffic import Workload
from tealnet.v1 import network_pb2, port_pb2, router_pb2, tenant_pb2

TENANTS = ("acme", "globex")
NETWORKS = {"web": ("10.0.0.0/24", "fd00::/64"), "db": ("10.0.1.0/24", "fd00:0:0:1::/64")}
# Both tenants ask for these; the others get automatic ones.
ADDRESSES = {"web-2": ("10.0.0.20", "fd00::20")}
# name → (network, host number): seven workloads per tenant over all three hosts.
PORTS = {
    "web-1": ("web", 1),
    "web-1b": ("web", 1),
    "web-2": ("web", 2),
    "web-3": ("web", 3),
    "db-1": ("db", 1),
    "db-2": ("db", 2),
    "db-3": ("db", 3),
}


class StoryError(LabError):
    """Something is not as promised."""


@dataclass
class Story:
    """A lab of three hosts, an admin's client, and the workloads by tenant/name."""

    lab: Lab
    client: Client
    workloads: dict[str, Workload] = field(default_factory=dict)

    def workload(self, name: str) -> Workload:
        """acme/web-1 as it is now."""
        return self.workloads[name]

    def refresh(self, name: str) -> Workload:
        """Read a port again (after a move) and remember it."""
        tenant, ident = name.split("/")
        port = self.client.get(f"tenants/{tenant}/ports/{ident}")
        self.workloads[name] = Workload(
            host=self.lab.host(port.host.rpartition("/")[2]),
            netns=f"{tenant}.{port.attachment.namespace or ident}",
            name=name,
            mac=port.mac,
            addresses=tuple(port.addresses),
        )
        return self.workloads[name]

    def expect(self, fact: bool, text: str) -> None:
        """Raise StoryError unless it is so."""
        if not fact:
            raise StoryError(text)

    def synced(self, *, timeout: float = 30.0) -> None:
        """Everything up to now is on all hosts; raises StoryError with who is behind."""
        answer = self.client.sync(timeout=timeout)
        self.expect(answer.complete, f"not complete: {answer}".replace("\n", " "))


@dataclass(frozen=True, slots=True)
class Chapter:
    """One line of the table."""

    title: str
    run: Callable[[Story], str]


def build(story: Story) -> str:
    """Tenants, routers, networks and ports through the API; complete on all hosts."""
    started = time.monotonic()
    client = story.client
    for tenant in TENANTS:
        parent = f"tenants/{tenant}"
        client.create(kinds.TENANT, ident=tenant, body=tenant_pb2.Tenant())
        client.create(kinds.ROUTER, parent=parent, ident="main", body=router_pb2.Router())
        for name, cidrs in NETWORKS.items():
            body = network_pb2.Network(cidrs=cidrs, router=f"{parent}/routers/main")
            client.create(kinds.NETWORK, parent=parent, ident=name, body=body)
        for name, (network, host) in PORTS.items():
            port = port_pb2.Port(
                network=f"{parent}/networks/{network}", host=f"hosts/h{host}", addresses=ADDRESSES.get(name, ())
            )
            client.create(kinds.PORT, parent=parent, ident=name, body=port)
    story.synced()
    took = time.monotonic() - started
    for tenant in TENANTS:
        for name in PORTS:
            story.refresh(f"{tenant}/{name}")
    twins = " and ".join(f"{tenant}/web-2" for tenant in TENANTS)
    same = {story.workload(f"{tenant}/web-2").v4 for tenant in TENANTS}
    story.expect(same == {"10.0.0.20"}, f"{twins} have {same}")
    return f"{len(story.workloads)} workloads on 3 hosts in {took:.1f} s, complete on all; {twins} are both 10.0.0.20"


def reach(story: Story) -> str:
    """Same host, other host, routed; v4 and v6; ping and TCP with digests compared."""
    pairs = {
        "same host": ("web-1", "web-1b"),
        "other host": ("web-1", "web-2"),
        "routed, same host": ("web-1", "db-1"),
        "routed, other host": ("web-2", "db-3"),
    }
    pings = transfers = 0
    for tenant in TENANTS:
        for what, (a, b) in pairs.items():
            source, target = story.workload(f"{tenant}/{a}"), story.workload(f"{tenant}/{b}")
            with target.running("serve", "7000"):
                for address in (target.v4, target.v6):
                    got = source.ping(address, count=5)
                    story.expect(got["lost"] == 0, f"{tenant}: {what}: ping {a} → {b} ({address}): {got}")
                    sent = source.probe("transfer", address, "7000")
                    story.expect(bool(sent["ok"]), f"{tenant}: {what}: transfer {a} → {b} ({address}): {sent}")
                    pings, transfers = pings + got["received"], transfers + 1
    return f"{pings} of {pings} pings answered, {transfers} transfers of 1 MiB intact (v4, v6, routed and not)"


def gateways(story: Story) -> str:
    """The router answers ping at its addresses of both families."""
    source = story.workload("acme/web-1")
    addresses = ("10.0.0.1", "fd00::1", "10.0.1.1", "fd00:0:0:1::1", "fe80::1%eth0")
    for address in addresses:
        got = source.ping(address, count=2)
        story.expect(got["lost"] == 0, f"gateway {address} does not answer: {got}")
    return f"{len(addresses)} router addresses answer"


CHAPTERS = (
    Chapter("networks through the API", build),
    Chapter("workloads reach each other", reach),
    Chapter("the router answers", gateways),
    Chapter("nothing crosses tenants (captured)", chapters_isolation.tenants),
    Chapter("spoofed frames go nowhere (captured)", chapters_isolation.spoofing),
    Chapter("the host is out of reach", chapters_isolation.hosts),
    Chapter("address probes stay silent", chapters_isolation.probes),
    Chapter("a workload moves", chapters_life.move),
    Chapter("agents killed under ping", chapters_life.agents),
    Chapter("controller killed under ping", chapters_life.controller),
    Chapter("a web service in blue, under load", chapters_colors.blue),
    Chapter("green beside it, tested in isolation", chapters_colors.green),
    Chapter("canary, then the full switch", chapters_colors.switch),
    Chapter("a broken green is left again", chapters_colors.rollback),
    Chapter("everything deleted", chapters_life.delete),
)
