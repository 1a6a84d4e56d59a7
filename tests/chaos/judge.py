"""Is all as the API says it is? Intent ↔ store ↔ tables ↔ what hosts were sent ↔ what they want ↔ their devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from agent.desired import LAYERS, Desired
from agent.devices import flow_place, link_place
from agent.features import FEATURES
from agent.inputs import Inputs
from agent.resources import Resources as Memory
from controller.derive import declare
from controller.resources import Resources
from controller.store import Store
from tealnet.core.tables import Graph
from tests.chaos.agent import SimAgent
from tests.chaos.etcd import Link
from tests.chaos.history import violations
from tests.chaos.operations import LABEL
from tests.chaos.replica import SimReplica
from tests.chaos.site import Site
from tests.controller.consistent import inconsistencies

LASTING = (
    "tenants", "hosts", "routers", "networks", "ports", "splits", "rollouts", "groups", "tiers", "identities",
    "guards", "tombstones", "port_status", "host_status", "rollout_steps", "confirmations", "lineages",
)  # fmt: skip

_OWNED = (
    "k/q/", "k/r/", "w/t/", "w/s/port/", "w/s/rollout/", "w/o/network", "w/o/port", "k/u/ip/", "k/u/mac/", "k/u/nic/",
)  # fmt: skip
"""Keys that are some tenant's."""


def unsettled(site: Site) -> str:
    """What is not yet as it should be, cheaply; "" when it is time for a judge."""
    revisions = set()
    for replica in site.replicas.values():
        if not replica.serves or replica.controller is None:
            return f"{replica.name} does not serve"
        revisions.add(replica.controller.store.revision)
    if len(revisions) > 1:
        return "replicas are not at one revision"
    for name, agent in site.agents.items():
        if agent.process.is_dead:
            return f"the agent of {name} is dead"
        sessions = [r.controller.sessions.by_host for r in site.replicas.values() if r.controller]
        uid = agent.core.resources.origin.host_uid
        session = next((found[uid] for found in sessions if uid in found), None)
        if session is None or not agent.core.server:
            return f"{name} is not in session: {agent.core.problem}"
        if session.synced < session.store.revision:
            return f"{name} is at {session.synced} of {session.store.revision}"
        if agent.pending():
            return f"{name} has {agent.pending()} things to do: {agent.backlog()}"
        if session.report.failures:
            return f"{name} has failures: {session.report.failures}"
        if not session.report.is_written:
            return f"what {name} has said is not written"
    return ""


async def judge(site: Site) -> list[str]:
    """What is wrong in the end, one line each."""
    lines = list(site.bugs) + site.loop.bugs + site.dead()
    fresh = Store(Link(site.server, site.dice), _keys(site), replica="judge")  # type: ignore[arg-type]
    resources = declare(fresh.world, default_mtu=1430)
    await fresh.load()
    resources.collect()
    for replica in site.replicas.values():
        lines += [f"{replica.name}: {line}" for line in await _replica(replica, fresh, resources)]
    for name, agent in site.agents.items():
        lines += [f"{name}: {line}" for line in _agent(agent, fresh, resources)]
    lines += twice(fresh)
    final = {row.name: dict(row.labels).get(LABEL, "") for row in _objects(fresh)}
    lines += violations(site.history, final)
    return lines


def _keys(site: Site) -> Any:
    return next(r.controller.store.keys for r in site.replicas.values() if r.controller)


def _objects(store: Store) -> Iterator[Any]:
    world = store.world
    for table in (world.tenants, world.networks, world.routers, world.ports, world.groups, world.rollouts):
        yield from table.rows.values()


async def _replica(replica: SimReplica, fresh: Store, resources: Resources) -> list[str]:
    """Its tables and what it derives are what a new one makes of the store."""
    assert replica.controller is not None
    controller = replica.controller
    lines = await inconsistencies(controller.store)
    for name in LASTING:
        mine, right = getattr(controller.store.world, name).rows, getattr(fresh.world, name).rows
        if mine != right:
            odd = {k for k in mine.keys() | right.keys() if mine.get(k) != right.get(k)}
            lines.append(f"table {name} is not the store's: {[(k, mine.get(k), right.get(k)) for k in list(odd)[:2]]}")
    own = controller.sessions.resources
    for host in fresh.world.hosts.rows.values():
        if own.scopes_of(host.uid) != resources.scopes_of(host.uid):
            lines.append(f"scopes of {host.name}: {own.scopes_of(host.uid)} != {resources.scopes_of(host.uid)}")
        for scope in resources.scopes_of(host.uid):
            mine, right = own.scope(scope).chunks, resources.scope(scope).chunks
            lines += [f"{scope}: {k} differs" for k in mine.keys() | right.keys() if mine.get(k) != right.get(k)]
    if (noted := controller.store.world.graph.noted()) != fresh.world.graph.noted():
        lines.append(f"remembers what derived rows have read of {noted} keys, not of {fresh.world.graph.noted()}")
    if controller.metrics.mismatches._value.get():
        lines.append("digests did not match")
    return lines


def _agent(agent: SimAgent, fresh: Store, resources: Resources) -> Iterator[str]:
    """It knows what it must know, and nothing else; its devices are what a new one would make of that."""
    core, host = agent.core, agent.host
    row = fresh.world.hosts.rows.get(f"hosts/{host.name}")
    assert row is not None
    for scope in resources.scopes_of(row.uid):
        wanted = resources.scope(scope).digest("")
        name = "host" if scope.startswith("host/") else scope
        found = core.resources.digests().get(name)
        if ((found.bytes(), found.count) if found else (b"\0" * 16, 0)) != (wanted.digest, wanted.count):
            yield f"scope {scope} has {found.count if found else 0} resources of {wanted.count}, or others"
    strange = core.resources.digests().keys() - {
        "host" if scope.startswith("host/") else scope for scope in resources.scopes_of(row.uid)
    }
    if strange:
        yield f"has the scopes {strange}, which are none of its"
    if core.resources.unaccounted():
        yield f"unaccounted: {core.resources.unaccounted()}"
    if core.resources.problems:
        yield f"problems: {core.resources.problems}"
    if core.mismatches:
        yield f"{core.mismatches} digests did not match"
    yield from _devices(agent)
    yield from _intent(agent, fresh, row.uid)


def _devices(agent: SimAgent) -> Iterator[str]:
    graph = Graph()
    inputs = Inputs(graph)
    desired = Desired(
        [want for room in FEATURES for want in room.declare(graph, inputs)],
        places={"link": link_place, "flow": flow_place},
    )
    for key, row in Memory().load([agent.core.resources.snapshot()]).items():
        inputs.put(key, row)
    for facts in ("ofports", "issued", "guarded", "this", "spares", "taken"):
        getattr(inputs, facts).replace_all(dict(getattr(agent.inputs, facts).rows))
    graph.settle()
    desired.update()
    for layer in LAYERS:
        wanted, found = desired.deltas[layer].desired, agent.host.content[layer]
        for place in wanted.keys() | found.keys():
            if wanted.get(place) != found.get(place):
                yield f"{layer} {place}: is {found.get(place)}, is to be {wanted.get(place)}"
    if failures := desired.failures():
        yield f"failures: {failures}"
    if (noted := agent.inputs.graph.noted()[: len(graph.noted())]) != graph.noted():  # others use its graph after that
        yield f"remembers what derived rows have read of {noted} keys by table, a new one would of {graph.noted()}"


def _intent(agent: SimAgent, fresh: Store, host_uid: str) -> Iterator[str]:
    """What the API's objects mean for this host, said without any of the code in between."""
    world = fresh.world
    own = {p.uid for p in world.ports.rows.values() if p.spec.host == f"hosts/{agent.host.name}"}
    if own != set(agent.inputs.localports.rows):
        yield f"its ports are {sorted(agent.inputs.localports.rows)}, by the API {sorted(own)}"

    def domain(port: Any) -> str:
        network = world.networks.rows[port.spec.network]
        return network.spec.router or network.name

    near = {domain(p) for p in world.ports.rows.values() if p.uid in own}
    known = {p.uid: p for p in world.ports.rows.values() if p.spec.host and domain(p) in near}
    found = agent.inputs.endpoints.rows
    if set(found) != set(known):
        yield f"endpoints {sorted(set(found) ^ set(known))} should not be, or are missing"
    for uid, port in known.items():
        if uid not in found:
            continue
        endpoint, spec = found[uid], port.spec
        if set(map(str, endpoint.addresses)) != set(map(str, spec.addresses)):
            yield f"{port.name} has the addresses {spec.addresses}, not {endpoint.addresses}"
        if endpoint.host_uid != world.hosts.rows[spec.host].uid:
            yield f"{port.name} is on {spec.host}, not on {endpoint.host_uid}"
        if endpoint.identity != spec.identity:
            yield f"{port.name} is identity {spec.identity}, not {endpoint.identity}"


def twice(fresh: Store) -> Iterator[str]:
    """Numbers and addresses that must be one object's."""
    world = fresh.world
    networks, ports = world.networks.rows.values(), world.ports.rows.values()
    numbers: dict[str, Counter[Any]] = {
        "VNI": Counter(s.vni for n in networks for s in n.spec.segments),
        "network number": Counter(n.spec.number for n in networks),
        "domain": Counter([n.spec.own_domain for n in networks] + [r.spec.domain for r in world.routers.rows.values()]),
        "address": Counter((p.spec.segment_uid, a) for p in ports for a in p.spec.addresses),
        "MAC": Counter((p.spec.segment_uid, p.spec.mac) for p in ports),
        "host number": Counter(h.spec.number for h in world.hosts.rows.values()),
        "uid": Counter(o.uid for o in _objects(fresh)),
    }
    for what, counts in numbers.items():
        yield from (f"{what} {value} is used {n} times" for value, n in counts.items() if n > 1)


def leftovers(site: Site) -> list[str]:
    """What there is although there are no tenants any more."""
    lines = []
    for name, host in site.hosts.items():
        for layer in LAYERS:
            for key, value in host.content[layer].items():
                if layer in ("netns", "link", "guard", "address", "zone") or "port_uid" in str(value):
                    lines.append(f"{name}: {layer} {key} is left")
    keys = _keys(site)
    for key in site.server.rows:
        try:
            relative = keys.relative(key)
        except ValueError:
            continue
        if relative.startswith(_OWNED):
            lines.append(f"key {relative} is left")
    return lines
