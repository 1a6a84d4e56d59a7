"""Our system under measurement: a tenant with one network over two hosts of a lab, workloads made through the API."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import yaml

from bench.common import BenchError
from bench.inside import Inside
from bench.ovsdb import Switch
from bench.prober import Prober, Where, close_all, probe_all
from tealnet import kinds
from tealnet.client import ApiError
from tealnet.lab import Host, Lab, api
from tealnet.lab.wait import wait_for
from tealnet.v1 import network_pb2, port_pb2, system_pb2, tenant_pb2

TENANT = "bench"
PARENT = f"tenants/{TENANT}"
# Without policy, as what it is compared with; and as a network is made by default: its ports are guarded by rules.
NETWORK, GUARDED = f"{PARENT}/networks/net", f"{PARENT}/networks/guarded"
_CIDRS = {NETWORK: "10.97.0.0/16", GUARDED: "10.95.0.0/16"}
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Attached:
    """One attachment. Times in ms from the call: it has returned, the card is ready, ARP answered, first ping."""

    call: float
    card: float
    arp: float
    total: float
    started: float  # monotonic seconds

    def steps(self) -> dict[str, float]:
        """The times by step."""
        return {"call": self.call, "card": self.card, "arp": self.arp, "total": self.total}


@dataclass(frozen=True, slots=True)
class Bulk:
    """Many at once. Seconds from the call: it has returned, cards are ready, the last first ping."""

    call: float
    cards: float
    total: float


class Teal:
    """The tenant; `references` are the addresses of one workload on each host, by network."""

    def __init__(self, lab: Lab, insides: Sequence[Inside]) -> None:
        self.lab, self.insides = lab, insides
        self.hosts: list[Host] = [lab.host("h1"), lab.host("h2")]
        self.client = api.client(lab.context)
        self.count = 0
        self._serial = itertools.count(1)
        self.client.create(kinds.TENANT, ident=TENANT, body=tenant_pb2.Tenant())
        self.references: dict[str, list[str]] = {}
        for network, policy in ((NETWORK, "POLICY_OFF"), (GUARDED, "POLICY_ENFORCE")):
            ident = network.rpartition("/")[2]
            body = network_pb2.Network(cidrs=[_CIDRS[network]], policy=policy)
            self.client.create(kinds.NETWORK, parent=PARENT, ident=ident, body=body)
            ports = [self.create(f"ref-{ident}-{number}", number, network) for number in (0, 1)]
            self.references[network] = [port.addresses[0] for port in ports]
        self.synced()

    def create(self, ident: str, number: int, network: str = NETWORK) -> port_pb2.Port:
        """A port on the first or second host."""
        self.count += 1
        body = self._body(number, network)
        port: port_pb2.Port = self.client.create(kinds.PORT, parent=PARENT, ident=ident, body=body)
        return port

    def synced(self, *, seconds: float = 120.0) -> None:
        """All hosts have everything. Raises BenchError with who has not."""
        # Revision 0 and not the client's own: the answer to a Delete tells none.
        request = system_pb2.SyncRequest()
        request.timeout.FromSeconds(int(seconds))
        answer = self.client.call(self.client.system.Sync, request, timeout=seconds + 5)
        if not answer.complete:
            raise BenchError(f"not complete: {' '.join(str(answer).split())}")
        for host in self.hosts:
            switch = Switch(host, "br-int")
            switch.caught_up()
            switch.db.close()

    def fill(self, count: int) -> float:
        """Grow to so many ports, alternating between the hosts; returns the seconds it took."""
        started = time.monotonic()
        while self.count < count:
            self.batch(min(_BATCH, count - self.count))
        self.synced()
        return time.monotonic() - started

    def batch(self, count: int) -> list[port_pb2.Port]:
        """So many ports by one call, alternating between the hosts."""
        request = port_pb2.BatchCreatePortsRequest(parent=PARENT)
        for number in range(count):
            request.requests.add(parent=PARENT, port_id=f"b-{next(self._serial)}", port=self._body(number))
        answer = self.client.call(self.client.ports.BatchCreatePorts, request, timeout=120)
        for result in answer.results:
            if result.HasField("error"):
                raise BenchError(f"BatchCreatePorts: {result.error.message}")
        self.count += count
        return [result.port for result in answer.results]

    def attach(self, network: str = NETWORK) -> Attached:
        """One port on the first host, from the call to the first ping, and away again."""
        ident = f"a-{next(self._serial)}"
        future = Prober.start(Where(self.insides[0], f"{TENANT}.{ident}"), self.references[network][1])
        started = time.monotonic()
        self.create(ident, 0, network)
        returned = time.monotonic()
        prober = future.result()
        if prober is None or probe_all([prober]):
            raise BenchError(f"{ident} is not reached: {self._why(ident)}")
        prober.close()
        self.remove([f"{PARENT}/ports/{ident}"])
        call, card, arp, total = (
            (at - started) * 1000 for at in (returned, prober.found, prober.arp_at, prober.echo_at)
        )
        return Attached(call, card, arp, total, started)

    def bulk(self, count: int) -> Bulk:
        """So many by one call, until each has reached the other host, and away again."""
        started = time.monotonic()
        ports = self.batch(count)
        returned = time.monotonic()
        futures = [
            Prober.start(
                Where(self.insides[number % 2], f"{TENANT}.{port.name.rpartition('/')[2]}"),
                self.references[NETWORK][1 - number % 2],
                seconds=60,
            )
            for number, port in enumerate(ports)
        ]
        probers = [prober for future in futures if (prober := future.result()) is not None]
        missing = probe_all(probers, every=0.1, seconds=60)
        close_all(probers)
        if missing or len(probers) < count:
            raise BenchError(f"{len(missing) + count - len(probers)} of {count} workloads are not reached")
        cards = max(prober.found for prober in probers)
        total = max(prober.echo_at for prober in probers)
        self.remove([port.name for port in ports])
        return Bulk(returned - started, cards - started, total - started)

    def remove(self, names: Iterable[str]) -> None:
        """Away with ports, until all hosts have done it."""
        for name in names:
            self.client.delete(name)
            self.count -= 1
        self.synced()

    def _body(self, number: int, network: str = NETWORK) -> port_pb2.Port:
        return port_pb2.Port(network=network, host=f"hosts/{self.hosts[number % 2].name}")

    def _why(self, ident: str) -> str:
        try:
            return " ".join(str(self.client.get(f"{PARENT}/ports/{ident}").status).split())
        except ApiError as error:
            return str(error)

    # -- looking closer

    @contextmanager
    def debugging(self) -> Iterator[None]:
        """The agents say at which moment they do what; they are restarted for that, and again at the end."""
        self._restart("debug")
        yield
        self._restart("info")

    def _restart(self, level: str) -> None:
        for host in self.hosts:
            file = host.disk("/etc/tealnet") / "agent.yaml"
            settings = yaml.safe_load(file.read_text())
            settings["log_level"] = level
            file.write_text(yaml.safe_dump(settings, sort_keys=False))
            host.kill("agent")
            host.start("agent")
        api.wait_ready(self.client, self.hosts)
        wait_for(self._is_synced, seconds=60, what="both agents")

    def _is_synced(self) -> bool:
        """A host whose agent was just killed may have been taken for ready still."""
        try:
            self.synced()
        except BenchError:
            return False
        return True

    def flows(self, number: int) -> int:
        """How many flows the integration bridge of a host has."""
        words = ["ovs-ofctl", "-O", "OpenFlow15", "dump-aggregate", "br-int"]
        return int(self.hosts[number].output(words).split("flow_count=")[1].split()[0])

    def close(self) -> None:
        """Connections only; the lab's end takes the rest."""
        self.client.close()
