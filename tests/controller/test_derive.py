"""Rows in, resources out: exact bodies, scopes, moves; and any history ends like a start from scratch."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.etcd.types import Put
from controller.outbox import Outbox
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.digest import Digest
from tealnet.core.rows.stream import Endpoint, HostPeer, LocalPort, Route, Segment
from tests.controller.deriving import KEYS, MAKE, Derivation, body_of
from tests.controller.making import mac_of, uid_of
from tests.samples import samples

WEB, DB, OTHER = "tenants/acme/networks/web", "tenants/acme/networks/db", "tenants/globex/networks/web"
ROUTER = "tenants/acme/routers/main"
P1, P2, P3 = (f"tenants/acme/ports/p{n}" for n in (1, 2, 3))
H1, H2, H3 = (uid_of(f"hosts/h{n}") for n in (1, 2, 3))


def base() -> Derivation:
    derivation = Derivation().put(
        MAKE.host("h1", 1, vtep="192.0.2.1"),
        MAKE.host("h2", 2, vtep="2001:db8::2"),
        MAKE.host("h3", 3),
        MAKE.network(WEB, 1, ["10.0.0.0/24", "fd00::/64"]),
        MAKE.network(OTHER, 9, ["10.0.0.0/24"]),
        MAKE.port(P1, WEB, ["10.0.0.5", "fd00::5"], host="h1", allowed=["10.9.0.0/16"]),
        MAKE.port(P2, WEB, ["10.0.0.6"], host="h2"),
        MAKE.port("tenants/globex/ports/p1", OTHER, ["10.0.0.5"], host="h2"),
    )
    return derivation.settle()


def test_bodies() -> None:
    derivation = base()
    domain, own = derivation.rows("domain/1001"), derivation.rows(f"host/{H1}")
    segment = domain["segment/5001"]
    assert isinstance(segment, Segment)
    assert (segment.domain, segment.color, segment.network_number, segment.mtu) == (1001, 0, 1, 1430)
    assert [(str(s.prefix), str(s.gateway)) for s in segment.subnets] == [
        ("10.0.0.0/24", "10.0.0.1"),
        ("fd00::/64", "fd00::1"),
    ]
    endpoint = domain[f"endpoint/{uid_of(P1)}"]
    assert isinstance(endpoint, Endpoint)
    assert (endpoint.vni, endpoint.host_uid, endpoint.previous_host_uid) == (5001, H1, "")
    assert (endpoint.mac, endpoint.identity) == (mac_of(P1), 4711)
    assert [str(a) for a in endpoint.addresses] == ["10.0.0.5", "fd00::5"]
    assert [str(p) for p in endpoint.sources] == ["10.9.0.0/16"]
    local = own[f"localport/{uid_of(P1)}"]
    assert isinstance(local, LocalPort)
    assert (local.tenant, local.name, local.where, local.interface) == ("acme", "p1", "p1", "eth0")
    peer = own[f"hostpeer/{H2}"]
    assert isinstance(peer, HostPeer) and (str(peer.vtep), peer.number) == ("2001:db8::2", 2)
    assert own.keys() == {f"localport/{uid_of(P1)}", f"hostpeer/{H2}"}


def test_scopes_are_those_of_local_ports() -> None:
    derivation = base()
    assert derivation.resources.scopes_of(H1) == {f"host/{H1}", "domain/1001"}
    assert derivation.resources.scopes_of(H2) == {f"host/{H2}", "domain/1001", "domain/1009"}
    assert derivation.resources.scopes_of(H3) == {f"host/{H3}"}
    derivation.put(KEYS.intent(P2)).settle()
    assert derivation.resources.scopes_of(H2) == {f"host/{H2}", "domain/1009"}
    assert f"hostpeer/{H2}" not in derivation.rows(f"host/{H1}")


def test_a_router_joins_domains_without_touching_bodies() -> None:
    derivation = base().put(MAKE.network(DB, 2, ["10.1.0.0/24"]), MAKE.port(P3, DB, ["10.1.0.5"], host="h3")).settle()
    before = derivation.resources.scope("domain/1001").chunks[f"endpoint/{uid_of(P1)}"].version
    derivation.put(
        MAKE.router(ROUTER, 77),
        MAKE.network(WEB, 1, router=ROUTER),
        MAKE.network(DB, 2, ["10.1.0.0/24"], router=ROUTER),
    ).settle()
    joined = derivation.resources.scope("domain/77").chunks
    assert joined[f"endpoint/{uid_of(P1)}"].version == before
    assert {"segment/5001", "segment/5002", f"endpoint/{uid_of(P3)}"} <= joined.keys()
    assert not derivation.resources.scope("domain/1001").chunks
    assert derivation.resources.scopes_of(H3) == {f"host/{H3}", "domain/77"}
    assert f"host/{H1}" not in derivation.changed or uid_of(P1) not in str(derivation.changed[f"host/{H1}"])


def test_a_static_route_is_a_source_of_its_next_hop() -> None:
    derivation = base().put(
        MAKE.router(ROUTER, 77, [("10.200.0.0/16", "10.0.0.6")]), MAKE.network(WEB, 1, router=ROUTER)
    )
    derivation.settle()
    route = derivation.rows("domain/77")["route/77/10.200.0.0/16"]
    assert isinstance(route, Route) and str(route.next_hop) == "10.0.0.6"
    endpoint, other = (derivation.rows("domain/77")[f"endpoint/{uid_of(p)}"] for p in (P2, P1))
    assert [str(p) for p in endpoint.sources] == ["10.200.0.0/16"]
    assert [str(p) for p in other.sources] == ["10.9.0.0/16"]  # its own allowed addresses
    local = derivation.rows(f"host/{H2}")[f"localport/{uid_of(P2)}"]
    assert [str(p) for p in local.sources] == ["10.200.0.0/16"]
    derivation.put(MAKE.router(ROUTER, 77)).settle()
    assert not derivation.rows("domain/77")[f"endpoint/{uid_of(P2)}"].sources
    assert "route/77/10.200.0.0/16" not in derivation.rows("domain/77")


def test_move_step_by_step() -> None:
    derivation = base().put(MAKE.applied(P1, "h1"))
    key, local = f"endpoint/{uid_of(P1)}", f"localport/{uid_of(P1)}"

    def state() -> tuple[str, str, list[str]]:
        endpoint = derivation.settle().rows("domain/1001")[key]
        holding = [h for h, uid in (("h1", H1), ("h2", H2)) if local in derivation.rows(f"host/{uid}")]
        names = {H1: "h1", H2: "h2", "": ""}
        return names[endpoint.host_uid], names[endpoint.previous_host_uid], holding

    assert state() == ("h1", "", ["h1"])
    derivation.put(MAKE.port(P1, WEB, ["10.0.0.5"], host="h2"), MAKE.tombstone("h1", P1, moved_to="h2", network=WEB))
    assert state() == ("h1", "h2", ["h1", "h2"])
    derivation.put(MAKE.applied(P1, "h2", b""))  # it failed there
    assert state() == ("h1", "h2", ["h1", "h2"])
    derivation.put(MAKE.applied(P1, "h2"))
    assert state() == ("h2", "h1", ["h1", "h2"])
    derivation.put(MAKE.tombstone("h1", P1, moved_to="h2", network=WEB, due=True))
    assert state() == ("h2", "", ["h2"])
    assert derivation.resources.proof(H1, uid_of(P1)) == derivation.revision


def test_a_fenced_host_is_withdrawn() -> None:
    derivation = base().put(MAKE.host("h2", 2, vtep="2001:db8::2", fenced=True)).settle()
    assert f"endpoint/{uid_of(P2)}" not in derivation.rows("domain/1001")
    assert f"hostpeer/{H2}" not in derivation.rows(f"host/{H1}")
    # A port that leaves a fenced host is at the new one at once.
    derivation.put(MAKE.port(P2, WEB, ["10.0.0.6"], host="h3"), MAKE.tombstone("h2", P2, moved_to="h3"))
    derivation.settle()
    assert derivation.rows("domain/1001")[f"endpoint/{uid_of(P2)}"].host_uid == H3


def test_what_does_not_matter_changes_nothing() -> None:
    derivation = base()
    derivation.put(MAKE.host("h1", 1, vtep="192.0.2.1"), MAKE.tenant("acme"), MAKE.applied(P1, "h1")).settle()
    assert not derivation.changed


def test_one_change_is_small_on_the_stream() -> None:
    derivation = base()
    outbox = Outbox(derivation.resources, H1)
    for scope in derivation.resources.scopes_of(H1):
        outbox.mark_whole(1, scope)
    outbox.cut(1, (1, "l" * 32))
    outbox.taken(1)
    derivation.put(MAKE.port(P2, WEB, ["10.0.0.77", "fd00::77"], host="h2")).settle()
    for scope, keys in derivation.changed.items():
        if scope in outbox.scopes:
            outbox.mark(5, scope, keys)
    unit = outbox.cut(5, (10**6, "l" * 32))
    assert sum(map(len, unit.parts)) <= 500
    (update,) = (pb.ToAgent.FromString(part).update for part in unit.parts)
    (delta,) = update.scopes
    assert (delta.scope, delta.digest) == ("domain/1001", derivation.resources.scope("domain/1001").digest(""))


def test_a_large_scope_goes_in_parts() -> None:
    derivation = base()
    for n in range(12_000):
        name = f"tenants/acme/ports/x{n}"
        derivation.put(MAKE.port(name, WEB, [f"10.{n >> 8}.{n & 255}.1", f"fd00::{n:x}:1"], host="h2"))
    derivation.settle()
    outbox = Outbox(derivation.resources, H1)
    for scope in derivation.resources.scopes_of(H1):
        outbox.mark_whole(1, scope)
    unit = outbox.cut(7, (1, "x"))
    updates = [pb.ToAgent.FromString(part).update for part in unit.parts]
    assert all(len(part) <= (1 << 20) + 1024 for part in unit.parts) and len(updates) > 1
    assert [u.part for u in updates] == list(range(len(updates)))
    assert [u.last for u in updates] == [False] * (len(updates) - 1) + [True]
    held = [(r.key, r.body) for u in updates for d in u.scopes if d.scope == "domain/1001" for r in d.upserts]
    (digest,) = (d.digest for u in updates for d in u.scopes if d.scope == "domain/1001" and d.HasField("digest"))
    assert (digest.digest, digest.count) == (Digest.of(held).bytes(), len(held))


# ---- random histories

HOSTS, PORTS, NETWORKS = ("h1", "h2", "h3"), (P1, P2, P3), (WEB, DB)
COLORS = ((), (("blue", 4),), (("blue", 4), ("green", 1)), (("blue", 2), ("green", 4)))
hosts = st.sampled_from(HOSTS)
ports = st.sampled_from(PORTS)
networks = st.sampled_from(NETWORKS)
anywhere = st.sampled_from((*HOSTS, ""))


def host(name: str, *, fenced: bool) -> Put:
    return MAKE.host(name, int(name[1]), vtep=f"192.0.2.{name[1]}", fenced=fenced)


def network(name: str, router: str, colors: tuple[tuple[str, int], ...]) -> Put:
    cidrs = [f"10.{NETWORKS.index(name)}.0.0/24"]
    return MAKE.network(name, NETWORKS.index(name) + 1, cidrs, router=router, colors=colors)


def port(name: str, of: str, where: str, last: int, segment: str) -> Put:
    return MAKE.port(name, of, [f"10.{NETWORKS.index(of)}.0.{last}"], host=where, segment=segment)


def tombstone(name: str, where: str, to: str, *, due: bool) -> Put:
    return MAKE.tombstone(where, name, moved_to=to, due=due)


changes = st.one_of(
    st.builds(host, hosts, fenced=st.booleans()),
    st.builds(lambda h: KEYS.intent(f"hosts/{h}"), hosts),
    st.builds(network, networks, st.sampled_from(("", ROUTER)), st.sampled_from(COLORS)),
    st.builds(
        lambda name, blue, green: MAKE.split(name, {"blue": blue, "green": green}),
        networks,
        st.integers(0, 2),
        st.integers(0, 2),
    ),
    st.builds(lambda name: KEYS.intent(f"{name}/trafficSplit"), networks),
    st.builds(KEYS.intent, networks),
    st.builds(
        lambda domain, hop: MAKE.router(ROUTER, domain, [("10.99.0.0/16", hop)]),
        st.integers(70, 71),
        st.sampled_from(("10.0.0.5", "10.1.0.6")),
    ),
    st.just(KEYS.intent(ROUTER)),
    st.builds(port, ports, networks, anywhere, st.integers(5, 7), st.sampled_from(("base", "green"))),
    st.builds(KEYS.intent, ports),
    st.builds(tombstone, ports, hosts, anywhere, due=st.booleans()),
    st.builds(lambda p, h: KEYS.tombstone(uid_of(f"hosts/{h}"), uid_of(p)), ports, hosts),
    st.builds(MAKE.applied, ports, hosts, st.sampled_from((b"", b"v"))),
)


@settings(max_examples=samples(75, many=2000))
@given(st.lists(st.lists(changes, min_size=1, max_size=4), max_size=15))
def test_any_history_ends_like_a_start_from_scratch(history: list[list[Put | bytes]]) -> None:
    lived = Derivation()
    mirror: dict[str, dict[str, bytes]] = {}
    for step in history:
        lived.put(*unique(step)).settle()
        follow(mirror, lived)
        assert mirror == lived.everything()  # what is announced as changed is all that changed
    fresh = Derivation()
    for name, table in vars(lived.world).items():
        if hasattr(table, "replace_all"):
            getattr(fresh.world, name).replace_all(table.rows)
    fresh.settle()
    assert fresh.everything() == lived.everything()
    for name, scope in lived.resources._scopes.items():
        held = [(key, body_of(chunk.encoded)) for key, chunk in scope.chunks.items()]
        assert scope.digest(name).digest == Digest.of(held).bytes()
    for table in ("hosts_of_domain", "domains_of_host", "peers_of_host"):
        derived, again = (getattr(d.resources.of_hosts, table).rows for d in (lived, fresh))
        assert derived == again


def unique(step: Iterable[Put | bytes]) -> list[Put | bytes]:
    """A transaction writes a key once."""
    return list({(op if isinstance(op, bytes) else op.key): op for op in step}.values())


def follow(mirror: dict[str, dict[str, bytes]], derivation: Derivation) -> None:
    for scope, keys in derivation.changed.items():
        chunks = derivation.resources.scope(scope).chunks
        held = mirror.setdefault(scope, {})
        for key in keys:
            held.pop(key, None)
            if key in chunks:
                held[key] = chunks[key].version
        if not held:
            del mirror[scope]
