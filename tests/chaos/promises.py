"""Promises that need many ports or hosts, kept on the simulation: `python -m tests.chaos.promises NAME|all`.

Each raises AssertionError if it is not kept, and prints its figures.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from agent import names
from agent.desired import LAYERS
from agent.objects import OvsPort
from controller.etcd.types import delete
from tealnet.v1 import host_pb2, network_pb2, port_pb2, tenant_pb2
from tests.chaos.judge import leftovers, unsettled
from tests.chaos.replica import SimReplica
from tests.chaos.simulation import simulated
from tests.chaos.site import Site

PORTS = 500
SOON = 30.0  # virtual seconds


async def _tenant(site: Site) -> SimReplica:
    """A tenant of many ports, half of them on each host."""
    for name in site.replica_names:
        site.start_replica(name)
    await site.until(lambda: all(r.serves for r in site.replicas.values()), SOON, "replicas serve")
    replica = site.replicas["a"]
    for name, host in site.hosts.items():
        request = host_pb2.CreateHostRequest(host_id=name, host=host_pb2.Host(vtep=host.vtep))
        await replica.call("host", "CreateHost", request)
        site.start_agent(name)
    await replica.call("tenant", "CreateTenant", tenant_pb2.CreateTenantRequest(tenant_id="acme"))
    body = network_pb2.Network(cidrs=["10.0.0.0/20"])
    body.address_quarantine.seconds = 0
    await replica.call(
        "network",
        "CreateNetwork",
        network_pb2.CreateNetworkRequest(parent="tenants/acme", network_id="web", network=body),
    )
    batch = port_pb2.BatchCreatePortsRequest(parent="tenants/acme")
    for number in range(PORTS):
        where = f"hosts/{site.names[number % len(site.names)]}"
        batch.requests.add(port_id=f"p{number}", port=port_pb2.Port(network="tenants/acme/networks/web", host=where))
    await replica.call("port", "BatchCreatePorts", batch)
    await site.until(lambda: not unsettled(site), SOON, "all ports are there")
    assert sum(map(_plugged, site.hosts.values())) == PORTS
    return replica


def _plugged(host: Any) -> int:
    return sum(isinstance(value, OvsPort) for value in _of_ports(host, "ovsdb").values())


def _of_ports(host: Any, layer: str) -> dict[Any, Any]:
    """Without what is kept ready for ports to come."""
    links = host.content["link"].items()
    spares = {device for device, link in links if link.netns == names.spare_netns(device)}
    spaces = {names.spare_namespace(device) for device in spares}
    gone = spares | spaces | {("port", device) for device in spares}
    return {key: value for key, value in host.content[layer].items() if key not in gone}


def _cut(site: Site, *, cut: bool) -> None:
    for ways in site.ways.values():
        ways.up.is_cut = ways.down.is_cut = cut


async def tenant_deleted_while_hosts_are_away(site: Site) -> None:
    """All its ports go in one unit per host once the hosts are back (A4: there is proof of each)."""
    replica = await _tenant(site)
    _cut(site, cut=True)
    await site.until(lambda: not any(a.core.server for a in site.agents.values()), SOON, "hosts are away")
    await replica.call("tenant", "DeleteTenant", tenant_pb2.DeleteTenantRequest(name="tenants/acme", force=True))
    await asyncio.sleep(3)
    assert sum(map(_plugged, site.hosts.values())) == PORTS, "a host that is away serves what it knows"
    sizes: dict[str, list[int]] = {name: [len(a.inputs.localports.rows)] for name, a in site.agents.items()}
    for name, agent in site.agents.items():
        agent.core.on_resources = lambda agent=agent, name=name: sizes[name].append(  # type: ignore[misc]
            len(agent.inputs.localports.rows)
        )
    _cut(site, cut=False)
    took = await site.until(lambda: not unsettled(site), SOON, "hosts are back")
    for name, seen in sizes.items():
        steps = [a for a, b in zip(seen, [-1, *seen], strict=False) if a != b]
        assert steps == [PORTS // len(site.names), 0], f"{name}: local ports were {seen}"
    assert sum(map(_plugged, site.hosts.values())) == 0
    assert not any(a.core.resources.unaccounted() for a in site.agents.values())
    await site.until(lambda: not leftovers(site), 60, "the store has forgotten them, too")
    print(f"{PORTS} ports gone in one unit per host, {took:.2f} s (virtual) after healing")


async def keys_removed_by_hand(site: Site) -> None:
    """What is missing in the store without proof stays and is said to be unaccounted for, until it is accepted."""
    replica = await _tenant(site)
    before = {name: {layer: _of_ports(host, layer) for layer in LAYERS} for name, host in site.hosts.items()}
    assert replica.controller is not None
    keys = replica.controller.store.keys
    gone = [delete(keys.intent(f"tenants/acme/ports/p{number}")) for number in range(PORTS)]
    site.server.txn((), gone)

    async def told() -> dict[str, host_pb2.Host]:
        answer = await replica.call("host", "ListHosts", host_pb2.ListHostsRequest())
        return {host.name.rpartition("/")[2]: host for host in answer.hosts}

    for _ in range(300):
        if sum(host.status.unaccounted for host in (await told()).values()) == PORTS:
            break
        await asyncio.sleep(0.1)
    hosts = await told()
    assert [host.status.unaccounted for host in hosts.values()] == [PORTS // len(hosts)] * len(hosts), hosts
    assert all("Unaccounted" in {c.type for c in host.status.conditions} for host in hosts.values())
    await asyncio.sleep(400)  # also after every resync
    for name, host in site.hosts.items():
        for layer in ("netns", "link", "guard", "ovsdb", "address"):
            assert _of_ports(host, layer) == before[name][layer], f"{layer} of {name} has changed"
    await replica.call("host", "AcceptHost", host_pb2.AcceptHostRequest(name="hosts/-"))
    await site.until(lambda: not sum(map(_plugged, site.hosts.values())), SOON, "what was accepted goes")
    print(f"{PORTS} ports without proof stayed, and went when they were accepted")


async def all_agents_at_once(site: Site) -> None:
    """The one controller dies and comes back: every host resumes by digests, none is sent what it has."""
    replica = await _tenant(site)
    assert replica.controller is not None
    site.kill_replica("a")
    await site.until(lambda: not any(a.core.server for a in site.agents.values()), SOON, "hosts have noticed")
    took: dict[str, list[int]] = {name: [] for name in site.agents}
    for name, agent in site.agents.items():
        real = agent.core.take

        async def take(unit: Any, name: str = name, real: Any = real) -> Any:
            took[name].append(sum(len(delta.upserts) for part in unit.parts for delta in part.scopes))
            return await real(unit)

        agent.core.take = take  # type: ignore[method-assign]
    site.start_replica("a")
    seconds = await site.until(lambda: not unsettled(site), SOON, "all hosts are back")
    assert all(sum(sent) == 0 for sent in took.values()), took
    print(f"{len(took)} agents back {seconds:.2f} s (virtual) after the controller's start, nothing was sent again")


PROMISES: dict[str, tuple[Callable[[Site], Awaitable[None]], int]] = {
    "tenant_deleted_while_hosts_are_away": (tenant_deleted_while_hosts_are_away, 2),
    "keys_removed_by_hand": (keys_removed_by_hand, 2),
    "all_agents_at_once": (all_agents_at_once, 200),
}


def main(name: str) -> None:
    """Keep one."""
    work, hosts = PROMISES[name]
    with simulated(1, hosts=hosts, replicas=1) as site:
        site.loop.run_until_complete(work(site))


def everything() -> None:
    """Each in a process of its own."""
    for name in PROMISES:
        subprocess.run([sys.executable, "-m", "tests.chaos.promises", name], check=True)


if __name__ == "__main__":
    everything() if sys.argv[1] == "all" else main(sys.argv[1])
