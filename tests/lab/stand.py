"""What the tests of this directory stand on: a lab with daemons, its API in short words, and looks at its hosts."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tealnet import kinds
from tealnet.client import ApiError, Client
from tealnet.lab import Host, Lab, LabError, api
from tealnet.lab.traffic import Running, Workload
from tealnet.lab.wait import wait_for
from tealnet.v1 import common_pb2, host_pb2, network_pb2, port_pb2, router_pb2, system_pb2, tenant_pb2
from tests.lab.looks import Look, look

NETNS = common_pb2.ATTACHMENT_KIND_NETNS
NETNS_PATH = common_pb2.ATTACHMENT_KIND_NETNS_PATH
DEVICE = common_pb2.ATTACHMENT_KIND_DEVICE
ACTIVE, FAILED, UNKNOWN = (
    port_pb2.PortStatus.STATE_ACTIVE,
    port_pb2.PortStatus.STATE_FAILED,
    port_pb2.PortStatus.STATE_UNKNOWN,
)
READY, DISCONNECTED, FOREIGN_HISTORY = (
    host_pb2.Host.STATE_READY,
    host_pb2.Host.STATE_DISCONNECTED,
    host_pb2.Host.STATE_FOREIGN_HISTORY,
)
OFF, ENFORCE = network_pb2.Network.POLICY_OFF, network_pb2.Network.POLICY_ENFORCE
SOON = 10.0  # seconds: the deadline of what takes well below one
# Open vSwitch 3.1 with a userspace datapath forgets its routes for a moment whenever any link of the host appears or
# changes; flows that it checks just then lose their tunnel, in and out, until the next check (measured: in about one
# of eight such events, for 4 to 12 ms; also with links that have nothing to do with it). So a ping from another host
# can miss these many answers while ports come or go on a host; one on the same host none.
LINKS = 4


@dataclass
class Stand:
    """A lab, an admin's client, and short words for both. Objects are named as `acme/web`."""

    lab: Lab
    client: Client
    empty: dict[str, Look] = field(default_factory=dict)  # by host: what there is without tenants

    # -- objects

    def tenant(self, name: str, *granted: common_pb2.AttachmentKind) -> None:
        """A tenant; `granted` are the attachment kinds, NETNS if none."""
        body = tenant_pb2.Tenant(placement=tenant_pb2.Placement(kinds=granted))
        self.client.create(kinds.TENANT, ident=name, body=body)

    def router(self, name: str) -> None:
        """A router."""
        tenant, ident = name.split("/")
        self.client.create(kinds.ROUTER, parent=f"tenants/{tenant}", ident=ident, body=router_pb2.Router())

    def routes(self, name: str, routes: dict[str, str]) -> None:
        """Give a router these static routes: prefix → next hop."""
        found = [router_pb2.StaticRoute(prefix=prefix, next_hop=hop) for prefix, hop in routes.items()]
        self.client.update(router_pb2.Router(name=full("routers", name), routes=found), mask=["routes"])

    def network(
        self, name: str, *cidrs: str, router: str = "", mtu: int = 0, policy: network_pb2.Network.Policy = ENFORCE
    ) -> None:
        """A network, attached to a router of the same tenant or to none."""
        tenant, ident = name.split("/")
        body = network_pb2.Network(
            policy=policy, cidrs=cidrs, mtu=mtu, router=full("routers", f"{tenant}/{router}") if router else ""
        )
        body.address_quarantine.seconds = 0
        self.client.create(kinds.NETWORK, parent=f"tenants/{tenant}", ident=ident, body=body)

    def change(self, name: str, **fields: Any) -> None:
        """Update fields of a network."""
        body = network_pb2.Network(name=full("networks", name), **fields)
        self.client.update(body, mask=list(fields))

    def port(self, name: str, network: str, host: str, **fields: Any) -> port_pb2.Port:
        """A port of the tenant's `network` on `host`; fields as in the API, `attachment` as a dict."""
        tenant, ident = name.split("/")
        attachment = port_pb2.Attachment(**fields.pop("attachment", {}))
        body = port_pb2.Port(
            network=full("networks", f"{tenant}/{network}"), host=f"hosts/{host}", attachment=attachment, **fields
        )
        made: port_pb2.Port = self.client.create(kinds.PORT, parent=f"tenants/{tenant}", ident=ident, body=body)
        return made

    def state(self, name: str) -> port_pb2.PortStatus:
        """A port's status now."""
        status: port_pb2.PortStatus = self.client.get(full("ports", name)).status
        return status

    def delete(self, name: str) -> None:
        """Delete a port."""
        self.client.delete(full("ports", name))

    def workload(self, name: str) -> Workload:
        """A port as traffic needs it."""
        port = self.client.get(full("ports", name))
        tenant, ident = name.split("/")
        a = port.attachment
        return Workload(
            host=self.lab.host(port.host.rpartition("/")[2]),
            netns=a.path if a.kind == NETNS_PATH else f"{tenant}.{a.namespace or ident}",
            name=name,
            mac=port.mac,
            addresses=tuple(port.addresses),
            interface=a.interface or "eth0",
        )

    def workloads(self, *names: str) -> list[Workload]:
        """Several."""
        return [self.workload(name) for name in names]

    # -- waiting

    def sync(self, *, seconds: float = 30.0) -> system_pb2.SyncResponse:
        """Everything so far is on all hosts, or fail with who is behind."""
        answer = self.client.sync(timeout=seconds)
        assert answer.complete, str(answer)
        return answer

    def becomes(self, name: str, state: int, *, seconds: float = SOON) -> port_pb2.PortStatus:
        """Wait for a port's state."""
        wait_for(lambda: self.state(name).state == state, seconds=seconds, what=f"{name} in state {state}")
        return self.state(name)

    def host_becomes(self, name: str, state: int, *, seconds: float = 30.0) -> None:
        """Wait for a host's state; the controller may be on its way up."""

        def so() -> bool:
            try:
                return bool(self.client.get(f"hosts/{name}").status.state == state)
            except ApiError:
                return False

        wait_for(so, seconds=seconds, what=f"{name} in state {state}")

    def clean(self) -> None:
        """Delete all tenants; the hosts are then as they were at first."""
        for tenant in list(self.client.list_all(kinds.TENANT)):
            self.client.delete(tenant.name, force=True)
        self.sync()
        for host in self.lab.hosts:
            now = look(host)
            assert now == self.empty[host.name], difference(self.empty[host.name], now)

    # -- daemons

    def settings(self, host: str, **changed: Any) -> None:
        """Restart an agent with other settings."""
        path = self.lab.host(host).disk("/etc/tealnet") / "agent.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changed))
        self.restart_agent(host)

    def restart_agent(self, host: str) -> None:
        """Kill an agent, start it, and wait until it is in session."""
        self.lab.kill(host, "agent")
        wait_for(lambda: not self._in_session(host), seconds=SOON, what=f"{host}'s session has ended")
        self.lab.start(host, "agent")
        self.host_becomes(host, READY)

    def _in_session(self, host: str) -> bool:
        return bool(self.client.get(f"hosts/{host}").status.state == READY)


def spares(host: Host) -> set[str]:
    """Devices that wait for a port to come (`agent.spares`)."""
    return set(re.findall(r"^\.(tn[0-9a-f]{12})\b", host.output(["ls", "-A", "/run/netns"]), re.M))


def spares_made(host: Host) -> set[str]:
    """… when all of them are plugged: for now no link of this host changes by itself."""
    wait_for(lambda: bool(spares(host)) and spares(host) <= plugged(host), seconds=SOON, what=f"spares of {host.name}")
    return spares(host)


def plugged(host: Host) -> set[str]:
    """Names of the ports of its integration bridge."""
    return set(host.output(["ovs-vsctl", "list-ports", "br-int"]).split())


def full(collection: str, name: str) -> str:
    """acme/web → tenants/acme/networks/web."""
    tenant, ident = name.split("/")
    return f"tenants/{tenant}/{collection}/{ident}"


@contextmanager
def standing(name: str, *, hosts: int, controllers: int = 1, etcd: int = 0) -> Iterator[Stand]:
    """A new lab; what a crashed run left under the name is removed first."""
    Lab.remove(name)
    with Lab.up(name, hosts=hosts, controllers=controllers, etcd=etcd) as lab, api.client(lab.context) as client:
        stand = Stand(lab, client)
        stand.sync()  # a host in session may still be at making its bridge
        stand.empty = {host.name: look(host) for host in lab.hosts}
        yield stand


@contextmanager
def pinging(*pairs: tuple[Workload, str], most: int = 0) -> Iterator[list[Running]]:
    """A 10 ms ping from each workload to each address meanwhile; of each no more than `most` answers may be missing."""
    for host in {source.host.name: source.host for source, _ in pairs}.values():  # what was done before is over
        with suppress(LabError):  # … unless it goes on for ever: that is not what is looked at
            wait_for(host.rests, seconds=3, what=f"nothing is done on {host.name}")
    with _all([source.running("ping", address) for source, address in pairs]) as running:
        yield running
    for (source, address), ping in zip(pairs, running, strict=True):
        got = ping.result
        assert got["received"] > 0 and got["lost"] <= most, f"{source.name} → {address}: {got}"


@contextmanager
def _all(managers: Sequence[Any]) -> Iterator[list[Running]]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield [stack.enter_context(manager) for manager in managers]


def reaches(source: Workload, *targets: str, wait: float = 1.0) -> dict[str, bool]:
    """One echo request to each of these at once: who answers?"""
    each = "; ".join(f"(ping -n -c1 -W{wait:g} {t} >/dev/null && echo {t}) &" for t in targets)
    # Word by word: a shell takes `&;` for an error.
    script = each.replace("&;", "&") + " wait"
    found = source.host.run_in_netns(source.netns, ["sh", "-c", script]).stdout.split()
    return {target: target in found for target in targets}


def expect_reached(source: Workload, *targets: str) -> None:
    """Each answers the first echo request."""
    found = reaches(source, *targets)
    assert all(found.values()), f"{source.name}: {found}"


def expect_out_of_reach(source: Workload, *targets: str) -> None:
    """None answers; they are given little time, because others answer within milliseconds."""
    found = reaches(source, *targets, wait=0.3)
    assert not any(found.values()), f"{source.name}: {found}"


def difference(before: Any, after: Any) -> str:
    """What went and what came, by section."""
    lines = []
    for section in sorted({*before, *after}):
        old, new = before.get(section, frozenset()), after.get(section, frozenset())
        lines += [f"{section}: gone: {line}" for line in sorted(old - new)[:8]]
        lines += [f"{section}: new: {line}" for line in sorted(new - old)[:8]]
    return "\n".join(lines) or "no difference"


def until(condition: Callable[[], bool], *, seconds: float, what: str) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    wait_for(condition, seconds=seconds, what=what, every=0.002)
    return time.monotonic() - began


def repairs(host: Host) -> dict[str, int]:
    """By layer: how many objects the agent found that somebody else had changed."""
    found = re.findall(r'^tealnet_repairs_total\{layer="(\w+)"\} (\d+)', host.agent_http("/metrics"), re.M)
    return {layer: int(number) for layer, number in found}


class Store:
    """The lab's etcd, by hand: what a person with etcdctl does to it."""

    def __init__(self, stand: Stand) -> None:
        self.directory = Path(stand.lab.controller.disk("/var/lib/tealnet")) / "controller" / "etcd"
        self.root = f"/tealnet/{stand.client.status().cluster_uid}/v1/"

    def ctl(self, *words: str, given: bytes = b"") -> bytes:
        """Run etcdctl; raises if it fails."""
        done = subprocess.run(
            ["etcdctl", "--endpoints=unix://client:0", *words],
            cwd=self.directory,  # the socket is named relative to it
            env={**os.environ, "ETCDCTL_API": "3"},
            input=given,
            capture_output=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def get(self, key: str) -> bytes:
        """The value of a key below the root."""
        # It ends what it prints with a newline of its own.
        return self.ctl("get", "--print-value-only", self.root + key)[:-1]

    def put(self, values: Mapping[str, bytes]) -> None:
        """Set these keys, all at once."""
        # As a Go string: any byte can be written in hexadecimal digits.
        quoted = {key: "".join(f"\\x{byte:02x}" for byte in value) for key, value in values.items()}
        self._transact(f'put {self.root}{key} "{value}"' for key, value in quoted.items())

    def count(self, prefix: str) -> int:
        """How many keys begin so."""
        return len(self.ctl("get", "--prefix", "--keys-only", self.root + prefix).split())

    def remove(self, *keys: str) -> None:
        """Remove keys, all at once, and nothing that belongs to them."""
        answers = self._transact(f"del {self.root}{key}" for key in keys)
        assert answers == ["1"] * len(keys), answers

    def _transact(self, operations: Iterable[str]) -> list[str]:
        """What each operation answers, in one transaction without conditions."""
        script = "\n".join(["", *operations, "", "", ""])
        first, *answers = self.ctl("txn", given=script.encode()).decode().split()
        assert first == "SUCCESS", (first, answers)
        return answers
