"""Daemons end, stand still, begin anew and forget, the store too; workloads go on, and nothing goes without proof."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.pipeline import PULSE
from tealnet.lab import Host
from tealnet.lab.traffic import Workload
from tealnet.lab.wait import wait_for
from tests.lab.looks import ERA, Look, look
from tests.lab.stand import (
    ACTIVE,
    DISCONNECTED,
    FOREIGN_HISTORY,
    LINKS,
    READY,
    SOON,
    UNKNOWN,
    Stand,
    Store,
    difference,
    expect_reached,
    pinging,
    reaches,
    repairs,
    spares_made,
    standing,
    until,
)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]


@dataclass(frozen=True)
class Site:
    """Two workloads on h1, one on h2, and what there is on both hosts."""

    stand: Stand
    one: Workload
    near: Workload
    far: Workload
    before: dict[str, Look]

    @property
    def h1(self) -> Host:
        """The host that things happen to."""
        return self.one.host

    def unchanged(self) -> None:
        """Both hosts are as they were."""
        for host in self.stand.lab.hosts:
            now = look(host)
            assert now == self.before[host.name], f"{host.name}: {difference(self.before[host.name], now)}"

    @contextmanager
    def pinging(self, *more: tuple[Workload, str], most: int = 0) -> Iterator[None]:
        """On one host and between two, both ways, both families; between two `most` answers may be missing (LINKS)."""
        one, near, far = self.one, self.near, self.far
        with pinging((one, far.v4), (far, one.v6), *more, most=most), pinging((near, one.v4)):
            yield


@pytest.fixture(scope="module")
def module_site() -> Iterator[Site]:
    with standing("t-restarts", hosts=2) as stand:
        stand.tenant("acme")
        stand.network("acme/web", "10.1.0.0/24", "fd01::/64")
        for name, host in {"one": "h1", "near": "h1", "far": "h2"}.items():
            stand.port(f"acme/{name}", "web", host)
        stand.sync()
        one, near, far = stand.workloads("acme/one", "acme/near", "acme/far")
        expect_reached(far, *one.addresses, *near.addresses)
        for each in stand.lab.hosts:
            spares_made(each)
        yield Site(stand, one, near, far, {host.name: look(host) for host in stand.lab.hosts})


@pytest.fixture
def site(module_site: Site) -> Iterator[Site]:
    """Whatever a test does, in the end all is as it was and said to be so."""
    yield module_site
    module_site.stand.sync()
    module_site.unchanged()
    expect_reached(module_site.far, *module_site.one.addresses, *module_site.near.addresses)


def settled(host: Host) -> bool:
    """Its agent is up, has all that is wanted on its devices, and nothing left to do."""
    try:
        now = json.loads(host.agent_http("/status"))
    except OSError:
        return False
    pending = any(layer["pending"] or layer["unavailable"] for layer in now["layers"].values())
    return bool(now["in_sync"] and now["applied"] == now["revision"] and not pending)


def wait_settled(host: Host, *, seconds: float = SOON) -> None:
    wait_for(lambda: settled(host), seconds=seconds, what=f"the agent of {host.name} has nothing left to do")


def in_session(host: Host) -> bool:
    return bool(json.loads(host.agent_http("/status"))["session"]["server"])


def youngest_flow(host: Host) -> float:
    """Seconds since a flow was last added."""
    flows = host.output(["ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "br-int"])
    # Added anew whenever somebody waits for the revalidators, and whenever a flow goes.
    others = (f"cookie={PULSE.key:#x},", ERA)
    lines = (line for line in flows.splitlines() if not any(other in line for other in others))
    return min(float(found[1]) for line in lines if (found := re.search(r"duration=([0-9.]+)s", line)))


def configurations(host: Host) -> str:
    """How often the configuration of Open vSwitch has been changed."""
    return host.output(["ovs-vsctl", "get", "Open_vSwitch", ".", "next_cfg"])


# -- the agent


def test_an_agent_killed_and_started_changes_nothing(site: Site) -> None:
    wait_settled(site.h1)
    configured, began = configurations(site.h1), time.monotonic()
    with site.pinging():
        site.stand.restart_agent("h1")
        wait_settled(site.h1)
        site.stand.sync()
    assert youngest_flow(site.h1) > time.monotonic() - began, "flows were added again"
    assert configurations(site.h1) == configured
    assert set(repairs(site.h1).values()) == {0}


CHECKPOINTS: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda data: data[:-7],
    "cut in its head": lambda data: data[:40],
    "empty": lambda data: b"",
    "garbage": lambda data: bytes(range(256)) * 20,
    "flipped": lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:],
}


@pytest.mark.parametrize("how", CHECKPOINTS)
def test_a_broken_checkpoint_costs_nothing(site: Site, how: str) -> None:
    path = site.h1.disk("/var/lib/tealnet") / "checkpoint"
    began = time.monotonic()
    with site.pinging():
        site.stand.lab.kill("h1", "agent")
        path.write_bytes(CHECKPOINTS[how](path.read_bytes()))
        site.stand.lab.start("h1", "agent")
        wait_settled(site.h1)
        site.stand.host_becomes("h1", READY)
        site.stand.sync()
    assert youngest_flow(site.h1) > time.monotonic() - began, "flows were added again"


def test_without_checkpoint_and_controller_nothing_is_touched(site: Site) -> None:
    path, lab = site.h1.disk("/var/lib/tealnet") / "checkpoint", site.stand.lab
    with site.pinging():
        lab.kill("controller", "controller")
        lab.kill("h1", "agent")
        path.write_bytes(b"nothing")
        lab.start("h1", "agent")
        wait_for(lambda: answers(site.h1), seconds=SOON, what="the agent answers")
        assert not json.loads(site.h1.agent_http("/status"))["in_sync"]
        site.unchanged()
        lab.start("controller", "controller")
        site.stand.host_becomes("h1", READY)
        wait_settled(site.h1)
        site.stand.host_becomes("h2", READY)


def answers(host: Host) -> bool:
    try:
        return bool(host.agent_http("/status"))
    except OSError:
        return False


WIPE = """
ip -all netns delete
for device in $(ip -o link | grep -o 'tn[0-9a-f]\\{12\\}' | sort -u); do ip link delete $device; done
nft flush ruleset
rm -f /run/tealnet/*
"""


def test_a_host_that_boots_is_served_from_its_checkpoint_alone(site: Site) -> None:
    lab, host = site.stand.lab, site.h1
    lab.kill("controller", "controller")
    try:
        lab.kill("h1", "agent")
        lab.kill("h1", "ovs-vswitchd")
        host.run(["sh", "-c", WIPE])
        found = look(host, "links", "guards", "spaces")
        assert not found["guards"] | found["spaces"] and not [line for line in found["links"] if line.startswith("tn")]
        lab.start("h1", "ovs-vswitchd")
        began = time.monotonic()
        lab.start("h1", "agent")
        until(lambda: all(reaches(site.far, site.one.v4, site.one.v6, wait=0.2).values()), seconds=SOON, what="a ping")
        took = time.monotonic() - began
        wait_settled(host)
        expect_reached(site.near, *site.one.addresses, *site.far.addresses)
        site.unchanged()
        assert not in_session(host)
    finally:
        lab.start("controller", "controller")
    for name in ("h1", "h2"):
        site.stand.host_becomes(name, READY)
    print(f"RESTART boot: first ping {took:.2f} s after the agent's start")


# -- Open vSwitch


def test_vswitchd_killed_and_started_forwards_again(site: Site) -> None:
    site.stand.lab.kill("h1", "ovs-vswitchd")
    ended = time.monotonic()
    site.stand.lab.start("h1", "ovs-vswitchd")
    until(lambda: all(reaches(site.far, site.one.v4, wait=0.1).values()), seconds=SOON, what="a ping")
    took = time.monotonic() - ended
    print(f"RESTART vswitchd: ping {took:.2f} s after the end of the old process")
    wait_settled(site.h1)


def test_ovsdb_server_killed_and_started_holds_packets_up_and_changes_nothing(site: Site) -> None:
    """Open vSwitch's userspace datapath stands still while vswitchd has no OVSDB, and it tries again after a second.

    What comes meanwhile waits in the devices' sockets, as far as it fits (docs/operations.md). Nothing is written anew.
    """
    repaired, began = repairs(site.h1), time.monotonic()
    with pinging((site.far, site.one.v4), (site.near, site.one.v6)) as running:
        site.stand.lab.kill("h1", "ovsdb-server")
        site.stand.lab.start("h1", "ovsdb-server")
        wait_settled(site.h1)
        site.stand.sync()
        expect_reached(site.near, site.one.v4)
    gaps = [ping.result["longest_gap_ms"] for ping in running]
    print(f"RESTART ovsdb-server: packets waited for up to {max(gaps):.0f} ms")
    assert max(gaps) < 2500
    assert repairs(site.h1) == repaired and youngest_flow(site.h1) > time.monotonic() - began - 0.05


# -- the controller


@pytest.mark.parametrize("process", ["controller", "etcd"])
def test_the_controller_killed_loses_nothing(site: Site, process: str) -> None:
    began, repaired = time.monotonic(), repairs(site.h1)
    with site.pinging(most=LINKS):  # a port comes and goes
        site.stand.lab.kill("controller", process)
        if process == "controller":  # which takes its etcd along, and starts it
            site.stand.lab.start("controller", process)
        for name in ("h1", "h2"):
            site.stand.host_becomes(name, READY)
        site.stand.sync()
        new = site.stand.port("acme/new", "web", "h2")
        site.stand.sync()
        expect_reached(site.one, *new.addresses)
        site.stand.delete("acme/new")
        site.stand.sync()
    assert youngest_flow(site.h1) > time.monotonic() - began, "flows were added again"
    assert repairs(site.h1) == repaired


def test_an_agent_that_stands_still_is_named_until_it_goes_on(site: Site) -> None:
    stand = site.stand
    with site.pinging(most=LINKS):  # a port comes and goes
        stand.lab.stop("h1", "agent")
        try:
            stand.port("acme/new", "web", "h2")  # concerns h1, too: it has the same domain
            answer = stand.client.sync(timeout=0.5)
            late = {lag.host for lag in answer.behind} | {*answer.disconnected}
            assert not answer.complete and late == {"hosts/h1"}, answer
            stand.host_becomes("h1", DISCONNECTED)
            status = stand.state("acme/one")
            assert (status.state, status.last, status.reason) == (UNKNOWN, ACTIVE, "HostDisconnected")
            assert stand.becomes("acme/new", ACTIVE)
            answer = stand.client.sync(timeout=5)
            assert not answer.complete and list(answer.disconnected) == ["hosts/h1"] and not answer.behind, answer
            assert answer.took.ToMilliseconds() < 4000, "it was waited for a host that is known to be away"
        finally:
            stand.lab.cont("h1", "agent")
        stand.host_becomes("h1", READY)
        stand.sync()
        assert stand.state("acme/one").state == ACTIVE
        expect_reached(site.one, *stand.workload("acme/new").addresses)
        stand.delete("acme/new")


# -- the store


def test_what_is_missing_in_the_store_without_proof_stays(site: Site) -> None:
    stand, store = site.stand, Store(site.stand)
    keys = [f"w/o/port/acme/{name}" for name in ("one", "near", "far")]
    values = {key: store.get(key) for key in keys}
    with site.pinging():
        store.remove(*keys)
        wait_for(lambda: unaccounted(stand) == [2, 1], seconds=SOON, what="three ports unaccounted for")
        stand.sync()
        for name in site.before:
            assert look(stand.lab.host(name)) == site.before[name]
        conditions = {condition.type for condition in stand.client.get("hosts/h1").status.conditions}
        assert "Unaccounted" in conditions
        store.put(values)
        wait_for(lambda: unaccounted(stand) == [0, 0], seconds=SOON, what="all accounted for")
        stand.sync()


def unaccounted(stand: Stand) -> list[int]:
    return [stand.client.get(f"hosts/{name}").status.unaccounted for name in ("h1", "h2")]


def test_what_is_missing_goes_when_an_admin_accepts_it(site: Site) -> None:
    stand, store = site.stand, Store(site.stand)
    gone = stand.port("acme/gone", "web", "h1")
    stand.sync()
    inside = look(site.h1, "spaces")
    with site.pinging():
        store.remove("w/o/port/acme/gone")
        wait_for(lambda: unaccounted(stand) == [1, 0], seconds=SOON, what="a port unaccounted for")
        stand.sync()
        assert look(site.h1, "spaces") == inside
        expect_reached(site.near, *gone.addresses)  # who is on the same host still finds it
    assert list(stand.client.accept("hosts/h1").hosts) == ["hosts/h1"]
    wait_for(lambda: unaccounted(stand) == [0, 0], seconds=SOON, what="nothing unaccounted for")
    stand.sync()
    assert "acme.gone" not in look(site.h1, "spaces")["spaces"]


def test_an_older_store_is_told_from_the_right_one(site: Site, tmp_path: Path) -> None:
    stand, lab, store = site.stand, site.stand.lab, Store(site.stand)
    snapshot = tmp_path / "snapshot"
    store.ctl("snapshot", "save", str(snapshot))
    # Later than the snapshot by a lineage, or a store that is written to could soon look like the newer one.
    lineages = store.count("w/m/lineage/")
    lab.kill("controller", "controller")
    lab.start("controller", "controller")
    for name in ("h1", "h2"):
        stand.host_becomes(name, READY)
    wait_for(lambda: store.count("w/m/lineage/") > lineages, seconds=30, what="the next term's lineage")
    stand.port("acme/late", "web", "h1")
    stand.sync()
    late = stand.workload("acme/late")
    inside = look(site.h1)
    with site.pinging((site.near, late.v4), (site.far, late.v4)):
        lab.kill("controller", "controller")
        shutil.rmtree(store.directory / "data")
        url = "unix://peer:0"
        words = ["--data-dir=data", "--name=tealnet", f"--initial-cluster=tealnet={url}"]
        store.ctl("snapshot", "restore", str(snapshot), *words, f"--initial-advertise-peer-urls={url}")
        lab.start("controller", "controller")
        stand.client.revision = 0  # this client is of another history, too
        for name in ("h1", "h2"):
            stand.host_becomes(name, FOREIGN_HISTORY)
        answer = stand.client.sync(timeout=2)
        assert not answer.complete and sorted([*answer.disconnected, *answer.lost]) == ["hosts/h1", "hosts/h2"], answer
        assert stand.state("acme/one").reason == "HostForeignHistory"
        site_now = look(site.h1)
        assert site_now == inside, difference(inside, site_now)
    with site.pinging(most=LINKS):  # a port goes
        assert sorted(stand.client.accept("hosts/-").hosts) == ["hosts/h1", "hosts/h2"]
        for name in ("h1", "h2"):
            stand.host_becomes(name, READY)
        stand.sync()
        wait_for(lambda: unaccounted(stand) == [1, 0], seconds=SOON, what="the port of the lost time unaccounted for")
        assert look(site.h1, "spaces")["spaces"] == inside["spaces"]
        stand.client.accept("hosts/h1")
        wait_for(lambda: unaccounted(stand) == [0, 0], seconds=SOON, what="nothing unaccounted for")
        stand.sync()
