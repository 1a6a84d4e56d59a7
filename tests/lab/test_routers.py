"""Routing domains with real packets: networks come to them, leave them and grow while others' traffic goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from tealnet.client import ApiError
from tealnet.lab.traffic import Workload
from tealnet.v1 import network_pb2
from tests.lab.stand import ENFORCE, OFF, Stand, expect_out_of_reach, expect_reached, full, pinging, standing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def module_stand() -> Iterator[Stand]:
    with standing("t-routers", hosts=2) as stand:
        yield stand


@pytest.fixture
def policy() -> network_pb2.Network.Policy:
    """Without rules, unless a test says otherwise."""
    return OFF


@pytest.fixture
def stand(module_stand: Stand, policy: network_pb2.Network.Policy) -> Iterator[Stand]:
    """Two tenants with the same addresses: web on a router, db on none; a port of each network on both hosts."""
    for tenant in ("acme", "globex"):
        module_stand.tenant(tenant)
        module_stand.router(f"{tenant}/main")
        module_stand.network(f"{tenant}/web", "10.1.0.0/24", "fd01::/64", router="main", policy=policy)
        module_stand.network(f"{tenant}/db", "10.2.0.0/24", "fd02::/64", policy=policy)
        for number in (1, 2):
            for network in ("web", "db"):
                module_stand.port(f"{tenant}/{network}-{number}", network, f"h{number}")
    module_stand.sync()
    yield module_stand
    module_stand.clean()


@contextmanager
def undisturbed(stand: Stand) -> Iterator[None]:
    """Not one packet is lost inside web and inside db of either tenant, between two hosts."""
    names = [f"{tenant}/{network}" for tenant in ("acme", "globex") for network in ("web", "db")]
    pairs = [stand.workloads(f"{name}-1", f"{name}-2") for name in names]
    with pinging(*((one, (two.v4, two.v6)[index % 2]) for index, (one, two) in enumerate(pairs))):
        yield


def expect_hops(source: Workload, target: str, hops: int) -> None:
    """The answer has come by so many routers, and so had the question."""
    done = source.host.run_in_netns(source.netns, ["ping", "-n", "-c1", "-W1", target])
    found = re.search(r"(?:ttl|hlim)=(\d+)", done.stdout)
    assert found and int(found[1]) == 64 - hops, done.stdout


@pytest.mark.parametrize("policy", [OFF, ENFORCE], ids=["off", "enforce"])
def test_a_live_network_is_attached_and_detached(stand: Stand) -> None:
    """With rules packets pass conntrack on their way: none may be lost between two passes (agent/staying.py)."""
    web, web2, db, db2 = stand.workloads("acme/web-1", "acme/web-2", "acme/db-1", "acme/db-2")
    theirs = stand.workload("globex/web-1")
    expect_out_of_reach(web, db.v4, db.v6, db2.v4, db2.v6)
    with pinging((web, web2.v4), (db, db2.v6), (theirs, stand.workload("globex/web-2").v4)):
        for _ in range(3):
            stand.change("acme/db", router=full("routers", "acme/main"))
            stand.sync()
            expect_reached(web, db.v4, db.v6, db2.v4, db2.v6, "10.2.0.1", "fd02::1")
            expect_reached(db2, web.v4, web.v6)
            expect_out_of_reach(theirs, db.v4, db2.v6)
            stand.change("acme/db", router="")
            stand.sync()
            expect_out_of_reach(web, db.v4, db.v6, db2.v4, db2.v6, "10.2.0.1")
            expect_out_of_reach(db2, web.v4, web.v6)
            expect_reached(db, db2.v4, db2.v6, "10.2.0.1", "fd02::1")


def test_routed_packets_have_come_by_one_router_each_way(stand: Stand) -> None:
    stand.change("acme/db", router=full("routers", "acme/main"))
    stand.sync()
    web, web2, db, db2 = stand.workloads("acme/web-1", "acme/web-2", "acme/db-1", "acme/db-2")
    for target in (db.v4, db.v6, db2.v4, db2.v6):
        expect_hops(web, target, 1)
    for target in (web2.v4, web2.v6):
        expect_hops(web, target, 0)
    with db2.running("serve", "7000"):
        for target in (db2.v4, db2.v6):
            assert web.probe("transfer", target, "7000")["ok"]


def test_a_live_network_gets_another_prefix_and_loses_it(stand: Stand) -> None:
    stand.change("acme/db", router=full("routers", "acme/main"))
    stand.sync()
    web, web2, db = stand.workloads("acme/web-1", "acme/web-2", "acme/db-1")
    before, more, unused = ["10.1.0.0/24", "fd01::/64"], ["10.7.0.0/24", "fd07::/64"], ["10.8.0.0/24", "fd08::/64"]
    with pinging((web, web2.v4), (web2, web.v6), (web, db.v4), (stand.workload("acme/db-2"), web.v6)):
        expect_out_of_reach(web, "10.7.0.1", "fd07::1")
        stand.change("acme/web", cidrs=[*before, *more, *unused])
        stand.sync()
        expect_reached(web, "10.7.0.1", "fd07::1")
        expect_reached(db, "10.7.0.1", "fd07::1")
    stand.port("acme/new", "web", "h2", addresses=["10.7.0.9", "fd07::9"])
    stand.sync()
    new = stand.workload("acme/new")
    expect_reached(new, web.v4, web.v6, web2.v4, db.v4, db.v6)
    expect_reached(web, "10.7.0.9", "fd07::9")
    expect_reached(db, "10.7.0.9", "fd07::9")
    with pytest.raises(ApiError) as caught:
        stand.change("acme/web", cidrs=[*before, *unused])
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "tenants/acme/ports/new" in str(caught.value)
    expect_reached(web, "10.8.0.1", "fd08::1")
    with pinging((web, web2.v4), (web2, web.v6), (web, db.v4), (new, web.v4)):
        stand.change("acme/web", cidrs=[*before, *more])
        stand.sync()
        expect_out_of_reach(web, "10.8.0.1", "fd08::1")


def test_overlapping_networks_stay_apart(stand: Stand) -> None:
    stand.network("acme/twin", "10.1.0.0/24")
    with pytest.raises(ApiError) as caught:
        stand.change("acme/twin", router=full("routers", "acme/main"))
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "tenants/acme/networks/web" in str(caught.value)
    stand.port("acme/twin-1", "twin", "h1")
    stand.port("acme/twin-2", "twin", "h2", addresses=[stand.workload("acme/web-1").v4])
    stand.sync()
    one, two = stand.workloads("acme/twin-1", "acme/twin-2")
    expect_reached(one, two.v4)
    expect_reached(two, one.v4)


def test_a_workload_with_an_interface_in_two_networks_of_one_router(stand: Stand) -> None:
    stand.port("acme/box-0", "web", "h1", attachment={"namespace": "box"})
    stand.port("acme/box-1", "db", "h1", attachment={"namespace": "box", "interface": "eth1"})
    stand.network("acme/cache", "10.3.0.0/24", "fd03::/64", router="main")
    stand.port("acme/cache-2", "cache", "h2")
    stand.sync()
    web2, db2, cache2 = stand.workloads("acme/web-2", "acme/db-2", "acme/cache-2")
    zero, one = stand.workloads("acme/box-0", "acme/box-1")
    with pinging((web2, zero.v4), (web2, zero.v6), (db2, one.v4), (db2, one.v6), (cache2, zero.v4)):
        for router in (full("routers", "acme/main"), ""):
            stand.change("acme/db", router=router)
            stand.sync()  # refuses failures: a route that the namespace has already was one
            expect_reached(zero, web2.v4, web2.v6, db2.v4, db2.v6, cache2.v4, cache2.v6)
            expect_reached(cache2, zero.v4, zero.v6)
            expect_reached(db2, one.v4, one.v6)


FORWARD = "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"


def test_routes_lead_through_a_port_that_forwards(stand: Stand) -> None:
    """web (main) ── eth0, a namespace that forwards, eth1 ── dmz (edge): each router has a route by way of it."""
    stand.router("acme/edge")
    stand.network("acme/dmz", "10.5.0.0/24", "fd05::/64", router="edge")
    stand.port("acme/in", "web", "h2", attachment={"namespace": "nva"})
    stand.port("acme/out", "dmz", "h2", attachment={"namespace": "nva", "interface": "eth1"})
    for number in (1, 2):
        stand.port(f"acme/dmz-{number}", "dmz", f"h{number}")
    stand.sync()
    inner, outer = stand.workloads("acme/in", "acme/out")
    web, web2, dmz, dmz2 = stand.workloads("acme/web-1", "acme/web-2", "acme/dmz-1", "acme/dmz-2")
    done = inner.host.run_in_netns("acme.nva", ["sh", "-c", FORWARD])
    assert done.returncode == 0, done.stderr
    targets = (dmz.v4, dmz.v6, dmz2.v4, dmz2.v6)
    expect_out_of_reach(web, *targets)
    with undisturbed(stand):
        stand.routes("acme/main", {"10.5.0.0/24": inner.v4, "fd05::/64": inner.v6})
        stand.routes("acme/edge", {"10.1.0.0/24": outer.v4, "fd01::/64": outer.v6})
        stand.sync()
        for source in (web, web2):
            expect_reached(source, *targets)
        expect_reached(dmz, web.v4, web.v6, web2.v4, web2.v6)
        for target in targets:
            expect_hops(web, target, 2)  # the sender's router and the namespace; from there on it is the same network
    with dmz.running("serve", "7000"):  # not beside the pings: what fills the queues of a switch loses packets
        assert web.probe("transfer", dmz.v4, "7000")["ok"]
    with undisturbed(stand):
        stand.routes("acme/main", {})
        stand.sync()
        expect_out_of_reach(web, *targets)
    stand.routes("acme/edge", {})


def test_a_network_without_router_is_a_world_of_its_own(stand: Stand) -> None:
    db, db2, web = stand.workloads("acme/db-1", "acme/db-2", "acme/web-1")
    theirs = stand.workloads("globex/db-1", "globex/web-2")
    expect_reached(db, db2.v4, db2.v6, "10.2.0.1", "fd02::1", "fe80::1%eth0")
    foreign = [address for other in (web, *theirs) for address in other.addresses if address not in db2.addresses]
    expect_out_of_reach(db, *(a for a in foreign if a not in db.addresses), "10.1.0.1", "fd01::1")
