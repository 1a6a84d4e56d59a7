"""A web service in two colors and its clients, on all hosts of a lab: what flips and the demo stand on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tealnet import kinds
from tealnet.client import Client
from tealnet.lab.errors import LabError
from tealnet.lab.lab import Lab
from tealnet.lab.traffic import Workload
from tealnet.v1 import network_pb2, port_pb2, router_pb2, tenant_pb2

BLUE, GREEN = "blue", "green"
PORT = 8000
NETWORKS = {"web": ("10.1.0.0/16", "fd01::/64"), "clients": ("10.0.0.0/24", "fd00::/64")}


class Service:
    """Network `web`, on each host a server of each color with the same addresses; network `clients`, shared, likewise.

    All begin in blue; green is there once `bring_up` has been called.
    """

    def __init__(self, lab: Lab, client: Client, *, tenant: str) -> None:
        self.lab, self.client, self.tenant = lab, client, tenant
        self.parent = f"tenants/{tenant}"
        self.web = f"{self.parent}/networks/web"

    @property
    def addresses(self) -> list[str]:
        """Where the servers are, v4, one on each host; the same in each color."""
        return [f"10.1.0.{10 + host.number}" for host in self.lab.hosts]

    @property
    def addresses6(self) -> list[str]:
        """The same servers, v6."""
        return [f"fd01::{10 + host.number}" for host in self.lab.hosts]

    def build(self) -> None:
        """Tenant, router, networks, clients and the blue servers; on all hosts at the end."""
        self.client.create(kinds.TENANT, ident=self.tenant, body=tenant_pb2.Tenant())
        self.client.create(kinds.ROUTER, parent=self.parent, ident="main", body=router_pb2.Router())
        for name, cidrs in NETWORKS.items():
            body = network_pb2.Network(
                cidrs=cidrs, router=f"{self.parent}/routers/main", colors=[BLUE, GREEN] if name == "web" else []
            )
            self.client.create(kinds.NETWORK, parent=self.parent, ident=name, body=body)
        for host in self.lab.hosts:
            self._port(f"client-{host.number}", "clients", host.name)
        self.bring_up(BLUE)

    def bring_up(self, color: str) -> None:
        """The servers of a color, on all hosts at the end."""
        for host, *addresses in zip(self.lab.hosts, self.addresses, self.addresses6, strict=True):
            self._port(f"web-{color}-{host.number}", "web", host.name, color=color, addresses=tuple(addresses))
        self.synced()

    @contextmanager
    def tester(self, color: str) -> Iterator[Workload]:
        """One more workload of network `web`, in a color, on the first host; gone afterwards."""
        self._port(f"tester-{color}", "web", self.lab.hosts[0].name, color=color)
        self.synced()
        yield self.workload(f"tester-{color}")
        self.client.delete(f"{self.parent}/ports/tester-{color}")
        self.synced()

    def _port(self, ident: str, network: str, host: str, *, color: str = "", addresses: tuple[str, ...] = ()) -> None:
        body = port_pb2.Port(
            network=f"{self.parent}/networks/{network}",
            host=f"hosts/{host}",
            color=color,
            addresses=addresses,
            labels={"app": ident.partition("-")[0]},
        )
        self.client.create(kinds.PORT, parent=self.parent, ident=ident, body=body)

    def workload(self, ident: str) -> Workload:
        """One of its ports as traffic needs it."""
        port = self.client.get(f"{self.parent}/ports/{ident}")
        return Workload(
            host=self.lab.host(port.host.rpartition("/")[2]),
            netns=f"{self.tenant}.{ident}",
            name=f"{self.tenant}/{ident}",
            mac=port.mac,
            addresses=tuple(port.addresses),
        )

    def servers(self, color: str) -> list[Workload]:
        """Of a color, in order of hosts."""
        return [self.workload(f"web-{color}-{host.number}") for host in self.lab.hosts]

    def clients(self) -> list[Workload]:
        """Those without a color, in order of hosts."""
        return [self.workload(f"client-{host.number}") for host in self.lab.hosts]

    @contextmanager
    def serving(self, color: str) -> Iterator[None]:
        """All servers of a color answer with the name of it, also to echo requests."""
        with ExitStack() as stack:
            for server in self.servers(color):
                stack.enter_context(server.running("answer", str(PORT), color, "--echo"))
            yield

    def synced(self) -> None:
        """Everything up to now is on all hosts; raises LabError with who is behind."""
        answer = self.client.sync(timeout=30)
        if not answer.complete:
            raise LabError(f"not complete: {' '.join(str(answer).split())}")
