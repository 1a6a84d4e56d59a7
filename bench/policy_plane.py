"""Security groups under measurement: ten hosts, each with a port whose rules name a group of a thousand members.

The members are ports of one more host that is simulated, so that what is measured is what they cost the others. Of
the ten the real ones have their own agent and Open vSwitch; the others are simulated, too: in session, with a port in
the same scope, so they are sent the same, and they take it and say that it is applied as soon as they have it. A
measurement is from the call until Sync says that the last of all has applied it: the slowest of the real ones.
"""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import yaml
from google.protobuf import field_mask_pb2

from bench.common import BenchError
from bench.simulated import SimulatedHost
from bench.streams import cpu_of
from tealnet import kinds
from tealnet.lab import Host, Lab, api
from tealnet.lab.host import AGENT
from tealnet.v1 import network_pb2, port_pb2, security_pb2, system_pb2, tenant_pb2

PARENT = "tenants/bench"
METRICS = 9464  # TCP port of the controller's metrics
_BATCH, _CHANGES = 250, 1000  # ports of one call
_SENT = re.compile(r"^tealnet_sent_bytes_total (\S+)$", re.MULTILINE)
_FLOW = re.compile(r" cookie=\w+, (table=\S+ .*?) ?actions=(.*)")

Flows = dict[str, str]  # table, priority and match → actions


@dataclass(frozen=True, slots=True)
class Change:
    """One measurement: ms until the call had returned, and until the last host had it; ms of processor time that agent
    and vswitchd of a host used for it, on average."""

    call: float
    total: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one change: flows that are other than before, on the host that has most, and bytes of units for one host."""

    flows: int
    sent: float


def group_name(own: str) -> str:
    """A security group of the tenant."""
    return f"{PARENT}/securityGroups/{own}"


class Plane:
    """The tenant: `members` and `others` are names of ports that are in the group, or not; `hosts` are real."""

    def __init__(self, lab: Lab, *, members: int, simulated: int) -> None:
        self.lab, self.hosts = lab, list(lab.hosts)
        self._listen()
        self.client = api.client(lab.context)
        api.wait_serving(self.client, lab.controllers)
        api.wait_ready(self.client, self.hosts)
        self.far = SimulatedHost(lab, self.client, "far", vtep="192.0.2.200")
        self.simulated = [
            SimulatedHost(lab, self.client, f"simulated-{number}", vtep=f"192.0.2.{200 + number}")
            for number in range(1, simulated + 1)
        ]
        self._answer_for(self.far, *self.simulated)
        self._numbers = itertools.count(1)
        quota = tenant_pb2.Quota(ports=3 * members)
        self.client.create(kinds.TENANT, ident="bench", body=tenant_pb2.Tenant(quota=quota))
        self.client.create(kinds.NETWORK, parent=PARENT, ident="net", body=network_pb2.Network(cidrs=["10.97.0.0/16"]))
        for own in ("members", "spare", "service"):
            self.client.create(kinds.GROUP, parent=PARENT, ident=own, body=security_pb2.SecurityGroup())
        for name in [host.name for host in self.hosts] + [host.name for host in self.simulated]:
            self._port(f"local-{name}", name, "service")
        self.others = self._batch(members, "spare")
        self.members: list[str] = []
        self.synced()
        self.rules: list[security_pb2.SecurityRule] = []

    def close(self) -> None:
        """Connections only; the lab's end takes the rest."""
        for host in (self.far, *self.simulated):
            host.close()
        self.client.close()

    # -- changes

    def fill(self) -> None:
        """All others become members."""
        self._move(self.others, "members")
        self.members, self.others = [*self.members, *self.others], []
        self.synced()

    def spare(self, count: int) -> None:
        """So many ports that are not members."""
        self.others = self._batch(count, "spare")
        self.synced()

    def rule(self) -> None:
        """One more rule that names the group, with a port of its own."""
        port = str(1000 + next(self._numbers))
        self.rules = [
            *self.rules,
            security_pb2.SecurityRule(protocol="tcp", ports=[port], remote_group=group_name("members")),
        ]
        body = security_pb2.SecurityGroup(name=group_name("service"), ingress=self.rules)
        self.client.update(body, mask=["ingress"])

    def join(self) -> None:
        """One more member."""
        one = self.others.pop()
        self._move([one], "members")
        self.members.append(one)

    def replace(self) -> None:
        """All members leave, as many others join."""
        leaving, joining = self.members, self.others[: len(self.members)]
        self._move(leaving, "spare")
        self._move(joining, "members")
        self.members, self.others = joining, [*leaving, *self.others[len(joining) :]]

    # -- measuring

    def measure(self, change: Callable[[], None]) -> Change:
        """Do it and wait for the last host."""
        used = self._cpu()
        started = time.monotonic()
        change()
        returned = time.monotonic()
        self.synced()
        done = time.monotonic()
        cpu = (self._cpu() - used) / len(self.hosts)
        return Change(1000 * (returned - started), 1000 * (done - started), 1000 * cpu)

    def _cpu(self) -> float:
        return sum(cpu_of(host, process) for host in self.hosts for process in (AGENT, "ovs-vswitchd"))

    def cost(self, change: Callable[[], None]) -> Cost:
        """Do it and count."""
        flows, sent = self.flows(), self.sent()
        change()
        self.synced()
        touched = max(_differ(before, after) for before, after in zip(flows, self.flows(), strict=True))
        return Cost(touched, (self.sent() - sent) / (len(self.hosts) + len(self.simulated) + 1))

    def synced(self, *, seconds: float = 120.0) -> None:
        """All hosts have everything. Raises BenchError with who has not.

        On a machine that is too busy an agent may be away for a moment: it is waited for.
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            request = system_pb2.SyncRequest(revision=self.client.revision)
            request.timeout.FromSeconds(max(1, int(left)))
            answer = self.client.call(self.client.system.Sync, request, timeout=left + 5)
            if answer.complete:
                return
            if answer.failed:
                break
        raise BenchError(f"not complete: {' '.join(str(answer).split())[:500]}")

    def flows(self) -> list[Flows]:
        """The flows of each host."""
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(_flows, self.hosts))

    def rule_flows(self) -> int:
        """Flows of security's room on the first host (docs/pipeline.md, cookies)."""
        words = ["ovs-ofctl", "-O", "OpenFlow15", "--no-stats", "dump-flows", "br-int", "cookie=0x7405000000000000/"]
        words[-1] += "0xffff000000000000"
        return self.hosts[0].output(words).count("table=")

    def sent(self) -> float:
        """Bytes of units that the controller has sent since its start."""
        url = f"http://{self.lab.controller.address}:{METRICS}/metrics"
        program = f"import urllib.request as u; print(u.urlopen({url!r}, timeout=10).read().decode())"
        found = _SENT.search(self.hosts[0].output([sys.executable, "-I", "-S", "-c", program]))
        if found is None:
            raise BenchError("the controller tells no bytes")
        return float(found[1])

    # -- the API

    def _answer_for(self, *simulated: SimulatedHost) -> None:
        """Real hosts find the way to the simulated ones as if these had answered: who is down costs them time.

        What is permanent is so no longer once the kernel is asked to use it; what needs no ARP stays.
        """
        for host in self.hosts:
            for number, other in enumerate(simulated):
                words = [other.vtep, "lladdr", f"02:74:6e:ff:00:{number:02x}", "dev", "br-underlay"]
                host.output(["ip", "neighbour", "replace", *words, "nud", "noarp"])

    def _listen(self) -> None:
        """Metrics are off by default: restart the controller with them."""
        file = self.lab.controller.disk("/etc/tealnet") / "controller.yaml"
        settings = yaml.safe_load(file.read_text()) | {"metrics_listen": f"0.0.0.0:{METRICS}"}
        file.write_text(yaml.safe_dump(settings, sort_keys=False))
        self.lab.kill("controller", "controller")
        self.lab.start("controller", "controller")

    def _move(self, ports: Sequence[str], group: str) -> None:
        """One call for a port, and one for each thousand."""
        if len(ports) == 1:
            self.client.update(_in_group(ports[0], group), mask=["security_groups"])
            return
        for start in range(0, len(ports), _CHANGES):
            request = port_pb2.BatchUpdatePortsRequest(parent=PARENT)
            for name in ports[start : start + _CHANGES]:
                mask = field_mask_pb2.FieldMask(paths=["security_groups"])
                request.requests.add(port=_in_group(name, group), update_mask=mask)
            _refuse_errors(self.client.call(self.client.ports.BatchUpdatePorts, request, timeout=120))

    def _port(self, ident: str, host: str, group: str) -> None:
        self.client.create(kinds.PORT, parent=PARENT, ident=ident, body=_body(host, group))

    def _batch(self, count: int, group: str) -> list[str]:
        names: list[str] = []
        while len(names) < count:
            request = port_pb2.BatchCreatePortsRequest(parent=PARENT)
            for _ in range(min(_BATCH, count - len(names))):
                request.requests.add(parent=PARENT, port_id=f"m-{next(self._numbers)}", port=_body("far", group))
            answer = self.client.call(self.client.ports.BatchCreatePorts, request, timeout=120)
            _refuse_errors(answer)
            names += [result.port.name for result in answer.results]
        return names


def _body(host: str, group: str) -> port_pb2.Port:
    return port_pb2.Port(network=f"{PARENT}/networks/net", host=f"hosts/{host}", security_groups=[group_name(group)])


def _in_group(name: str, group: str) -> port_pb2.Port:
    return port_pb2.Port(name=name, security_groups=[group_name(group)])


def _refuse_errors(answer: Any) -> None:
    for result in answer.results:
        if result.HasField("error"):
            raise BenchError(f"ports: {result.error.message}")


def _flows(host: Host) -> Flows:
    text = host.output(["ovs-ofctl", "-O", "OpenFlow15", "--no-stats", "dump-flows", "br-int"])
    lines = [line for line in text.splitlines() if "pkt_mark" not in line]  # no packet meets those
    return {found[1]: found[2] for line in lines if (found := _FLOW.match(line))}


def _differ(before: Flows, after: Flows) -> int:
    """How many flows have come, gone or changed."""
    return sum(before.get(place) != after.get(place) for place in before.keys() | after.keys())
