"""Ports with real packets: attachment kinds, addresses, what a host lets be plugged, and what is left afterwards."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from typing import Any

import grpc
import pytest

from tealnet.client import ApiError
from tealnet.lab import Host
from tealnet.lab.machine import tail
from tealnet.lab.traffic import Workload
from tealnet.lab.wait import wait_for
from tealnet.probe import frames
from tealnet.store.v1 import store_pb2
from tealnet.v1 import port_pb2
from tests.lab.looks import look
from tests.lab.stand import (
    ACTIVE,
    DEVICE,
    FAILED,
    LINKS,
    NETNS,
    NETNS_PATH,
    READY,
    SOON,
    Stand,
    Store,
    expect_out_of_reach,
    expect_reached,
    full,
    pinging,
    reaches,
    spares_made,
    standing,
)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

# The most careless admin there can be: every device and every namespace of h1. h2 has the default, empty lists.
CARELESS = {"allow_netns": ["/run/netns/*", "/proc/1/ns/*", "/proc/*/ns/net"], "allow_device": ["*"]}


@pytest.fixture(scope="module")
def module_stand() -> Iterator[Stand]:
    with standing("t-ports", hosts=2) as stand:
        stand.settings("h1", **CARELESS)
        yield stand


@pytest.fixture
def stand(module_stand: Stand) -> Iterator[Stand]:
    """Whatever a test makes, deleting its tenants leaves every host as it was."""
    yield module_stand
    module_stand.clean()


@pytest.fixture
def acme(stand: Stand) -> Stand:
    """A tenant that may do everything, with a network of both families."""
    stand.tenant("acme", NETNS, NETNS_PATH, DEVICE)
    stand.network("acme/web", "10.1.0.0/24", "fd01::/64")
    return stand


@contextmanager
def namespace(host: Host, name: str) -> Iterator[str]:
    """Somebody's namespace; its path."""
    host.output(["ip", "netns", "add", name])
    try:
        yield f"/run/netns/{name}"
    finally:
        host.output(["ip", "netns", "delete", name])


@contextmanager
def tap(host: Host, name: str) -> Iterator[str]:
    """A device like a VM's tap: its other end is eth0 in the namespace `vm`."""
    with namespace(host, "vm"):
        host.output(["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", "vm"])
        try:
            yield "vm"
        finally:
            host.run(["ip", "link", "delete", name])


# -- several interfaces, several addresses, one family


def test_two_ports_share_a_namespace_and_each_has_the_routes_of_its_domain(acme: Stand) -> None:
    for router in ("main", "other"):
        acme.router(f"acme/{router}")
    acme.change("acme/web", router=full("routers", "acme/main"))
    acme.network("acme/db", "10.2.0.0/24", "fd02::/64", router="main")
    acme.network("acme/ops", "10.3.0.0/24", "fd03::/64", router="other")
    acme.network("acme/far", "10.4.0.0/24", "fd04::/64", router="other")
    acme.port("acme/box-0", "web", "h1", attachment={"namespace": "box"})
    acme.port("acme/box-1", "ops", "h1", attachment={"namespace": "box", "interface": "eth1"})
    for network in ("web", "db", "ops", "far"):
        acme.port(f"acme/{network}-2", network, "h2")
    acme.sync()
    box, second = acme.workloads("acme/box-0", "acme/box-1")
    peers = {name: acme.workload(f"acme/{name}-2") for name in ("web", "db", "ops", "far")}

    inside = look(box.host, "spaces")["spaces"]
    assert {line for line in inside if "acme.box route" in line and "dev eth1" in line and "via fd" not in line} >= {
        "acme.box route 10.4.0.0/24 via 10.3.0.1 dev eth1",
        "acme.box route fd04::/64 via fe80::1 dev eth1",
        "acme.box route 10.3.0.0/24 via  dev eth1",
    }
    assert {line for line in inside if "acme.box route default" in line} == {
        "acme.box route default via 10.1.0.1 dev eth0",
        "acme.box route default via fe80::1 dev eth0",
    }
    for peer in peers.values():
        expect_reached(box, peer.v4, peer.v6)
    expect_reached(peers["far"], second.v4, second.v6)
    expect_reached(peers["db"], box.v4, box.v6)
    expect_out_of_reach(peers["far"], box.v4, box.v6)

    acme.port("acme/near", "web", "h1")
    acme.sync()
    near = acme.workload("acme/near")
    with pinging((near, box.v4), (near, box.v6)), pinging((peers["web"], box.v4), (peers["db"], box.v6), most=LINKS):
        acme.delete("acme/box-1")
        acme.sync()
    inside = look(box.host, "spaces")["spaces"]
    assert not [line for line in inside if "eth1" in line]
    acme.delete("acme/box-0")
    acme.sync()
    assert not [line for line in look(box.host, "spaces")["spaces"] if line.startswith("acme.box")]


def test_a_port_has_several_addresses_and_they_change_alone(acme: Stand) -> None:
    acme.change("acme/web", cidrs=["10.1.0.0/24", "fd01::/64", "10.9.0.0/24"])
    first = ["10.1.0.10", "10.1.0.11", "10.9.0.10", "fd01::10", "fd01::11"]
    acme.port("acme/many", "web", "h1", addresses=first)
    acme.port("acme/peer", "web", "h2", addresses=["10.1.0.20", "10.9.0.20", "fd01::20"])
    acme.sync()
    many, peer = acme.workloads("acme/many", "acme/peer")
    expect_reached(peer, *first)
    expect_reached(many, "10.1.0.20", "10.9.0.20", "fd01::20")

    second = ["10.1.0.10", "10.1.0.12", "fd01::11", "fd01::12"]
    with pinging((peer, "10.1.0.10"), (peer, "fd01::11")):
        body = port_pb2.Port(name=full("ports", "acme/many"), addresses=second)
        acme.client.update(body, mask=["addresses"])
        acme.sync()
        expect_reached(peer, *second)
        expect_out_of_reach(peer, "10.1.0.11", "10.9.0.10", "fd01::10")
    assert acme.workload("acme/many").mac == many.mac


def test_networks_of_one_family(acme: Stand) -> None:
    acme.network("acme/four", "10.4.0.0/24")
    acme.network("acme/six", "fd06::/64")
    for network in ("four", "six"):
        for number in (1, 2):
            acme.port(f"acme/{network}-{number}", network, f"h{number}")
    acme.sync()
    four, four2, six, six2 = acme.workloads("acme/four-1", "acme/four-2", "acme/six-1", "acme/six-2")
    assert len(four.addresses) == len(six.addresses) == 1
    expect_reached(four, four2.v4, "10.4.0.1")
    expect_reached(six, six2.v6, "fd06::1", "fe80::1%eth0")
    inside = look(four.host, "spaces")["spaces"]
    ours = {line.split()[2] for line in inside if line.startswith("acme.four-1 eth0")}
    assert not [address for address in ours if ":" in address and not address.startswith("fe80::")]
    assert not [line for line in inside if line.startswith("acme.six-1 eth0") and ":" not in line.split()[2]]
    assert {
        "acme.four-1 route default via 10.4.0.1 dev eth0",
        "acme.six-1 route default via fe80::1 dev eth0",
    } <= inside
    assert "acme.four-1 route default via fe80::1 dev eth0" not in inside


def test_allowed_addresses_may_be_sent_from_and_no_others(acme: Stand) -> None:
    acme.port("acme/me", "web", "h1", allowed_addresses=["198.18.0.0/24", "fd99::/64", "10.1.0.200/32"])
    for number in (1, 2):
        acme.port(f"acme/peer-{number}", "web", f"h{number}")
    acme.sync()
    me, near, far = acme.workloads("acme/me", "acme/peer-1", "acme/peer-2")
    passing = [me.v4, me.v6, "198.18.0.7", "198.18.0.255", "fd99::1", "10.1.0.200"]
    dropped = ["198.18.1.7", "192.0.2.1", "fd98::1", "10.1.0.201", near.v4, "10.1.0.1"]
    for peer in (near, far):
        assert sources_that_pass(me, peer, *passing, *dropped) == set(passing)
    acme.client.update(port_pb2.Port(name=full("ports", "acme/me")), mask=["allowed_addresses"])
    acme.sync()
    for peer in (near, far):
        assert sources_that_pass(me, peer, *passing) == {me.v4, me.v6}


def sources_that_pass(me: Workload, peer: Workload, *sources: str) -> set[str]:
    """Which of these source addresses arrive: UDP datagrams that say where they claim to be from."""
    mark = secrets.token_hex(8)
    out = []
    for source in sources:
        target = peer.v4 if ip_address(source).version == 4 else peer.v6
        data = f"{mark} {source} .".encode()
        out.append(frames.udp_frame(src_mac=me.mac, dst_mac=peer.mac, src=source, dst=target, data=data))
    with peer.running("sniff", "eth0") as capture:
        me.probe("send", "eth0", *(frame.hex() for frame in out))
    seen = capture.result["frames"]
    return {source for source in sources if any(f"{mark} {source} .".encode().hex() in frame for frame in seen)}


# -- what others have made


def test_a_namespace_of_somebody_gets_an_interface_and_loses_only_that(acme: Stand) -> None:
    host = acme.lab.host("h1")
    with namespace(host, "cni-1") as path:
        host.run_in_netns("cni-1", ["ip", "link", "add", "own0", "type", "dummy"])
        before = look(host, "spaces")
        attachment = {"kind": NETNS_PATH, "path": path, "interface": "net1"}
        acme.port("acme/pod", "web", "h1", attachment=attachment)
        acme.port("acme/peer", "web", "h2")
        acme.sync()
        pod, peer = acme.workloads("acme/pod", "acme/peer")
        expect_reached(peer, pod.v4, pod.v6)
        expect_reached(pod, peer.v4, peer.v6)
        acme.delete("acme/pod")
        acme.sync()
        assert look(host, "spaces") == before


def test_a_namespace_that_vanishes_and_comes_back_is_plugged_again(acme: Stand) -> None:
    host = acme.lab.host("h1")
    with namespace(host, "cni-2") as path:
        acme.port("acme/pod", "web", "h1", attachment={"kind": NETNS_PATH, "path": path})
        acme.port("acme/peer", "web", "h2")
        acme.sync()
        pod, peer = acme.workloads("acme/pod", "acme/peer")
    status = acme.becomes("acme/pod", FAILED)
    assert status.reason == "NetnsMissing" and path in status.text
    with namespace(host, "cni-2"):
        acme.becomes("acme/pod", ACTIVE)
        expect_reached(peer, pod.v4, pod.v6)


def test_a_device_of_somebody_is_plugged_guarded_and_given_back(acme: Stand) -> None:
    host = acme.lab.host("h1")
    with tap(host, "tap0") as vm:
        made = acme.port("acme/vm", "web", "h1", attachment={"kind": DEVICE, "device": "tap0"})
        acme.port("acme/peer", "web", "h2")
        acme.sync()
        peer = acme.workload("acme/peer")
        guest = Workload(host, vm, "vm", made.mac, tuple(made.addresses))
        lines = [f"link set eth0 address {guest.mac} mtu 1430 up", f"address add {guest.v4}/24 dev eth0"]
        lines += [f"address add {guest.v6}/64 dev eth0 nodad"]
        host.run_in_netns(vm, ["ip", "-batch", "-"], given="\n".join(lines) + "\n")
        host.run_in_netns(vm, ["ethtool", "-K", "eth0", "tx", "off"])
        expect_reached(peer, guest.v4, guest.v6)
        with peer.running("serve", "7000"):
            assert guest.probe("transfer", peer.v4, "7000")["ok"]
        now = look(host)
        assert 'chain tap0 { type filter hook ingress device "tap0" priority filter; policy drop; }' in now["guards"]
        assert [line for line in now["links"] if line.startswith("tap0 veth mtu=1430")]

        acme.delete("acme/vm")
        acme.sync()
        now = look(host)
        assert not [line for line in now["guards"] | now["interfaces"] if "tap0" in line]
        assert [line for line in now["links"] if line.startswith("tap0 veth")]
        expect_out_of_reach(peer, guest.v4)


# -- what a host does not let be plugged


@pytest.mark.parametrize(
    "attachment",
    [{"kind": NETNS_PATH, "path": "/run/netns/cni-1"}, {"kind": DEVICE, "device": "tap0"}],
    ids=["path", "device"],
)
def test_without_a_grant_the_api_refuses(stand: Stand, attachment: dict[str, object]) -> None:
    stand.tenant("acme")
    stand.network("acme/web", "10.1.0.0/24")
    with pytest.raises(ApiError) as caught:
        stand.port("acme/it", "web", "h1", attachment=attachment)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "KIND_NOT_GRANTED")
    assert "placement.kinds" in caught.value.message


@pytest.mark.parametrize(
    "field, value",
    [
        *(("device", name) for name in ("eth0", "br-underlay", "br-int", "lo", "vxlan0", "tn0123456789ab", "")),
        *(("path", path) for path in ("/proc/1/ns/net", "/run/netns/globex.secret", "/var/run/netns/globex.secret")),
        *(("path", path) for path in ("netns/x", "/run/netns/../../proc/1/ns/net", "/run//netns/x", "")),
    ],
)
def test_what_is_never_a_workloads_the_api_refuses(acme: Stand, field: str, value: str) -> None:
    attachment = {"kind": DEVICE if field == "device" else NETNS_PATH, field: value}
    with pytest.raises(ApiError) as caught:
        acme.port("acme/it", "web", "h1", attachment=attachment)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [path for path, _ in caught.value.violations] == [f"port.attachment.{field}"]


@pytest.mark.parametrize(
    "attachment, reason, setting",
    [
        ({"kind": NETNS_PATH, "path": "/run/netns/vm"}, "NetnsNotAllowed", "allow_netns"),
        ({"kind": DEVICE, "device": "tap0"}, "DeviceNotAllowed", "allow_device"),
    ],
    ids=["path", "device"],
)
def test_without_the_hosts_own_list_it_fails_and_says_so(
    acme: Stand, attachment: dict[str, object], reason: str, setting: str
) -> None:
    host = acme.lab.host("h2")
    with tap(host, "tap0"):
        before = look(host, "links", "interfaces", "spaces", "guards")
        acme.port("acme/it", "web", "h2", attachment=attachment)
        status = acme.becomes("acme/it", FAILED)
        assert status.reason == reason and setting in status.text
        answer = acme.client.sync(timeout=5)
        assert not answer.complete
        assert [(f.host, f.object, f.reason) for f in answer.failed] == [("hosts/h2", "tenants/acme/ports/it", reason)]
        assert look(host, "links", "interfaces", "spaces", "guards") == before
        acme.delete("acme/it")
        acme.sync()


@contextmanager
def forged(stand: Stand, name: str, **attachment: Any) -> Iterator[None]:
    """A port whose attachment was written into the store behind the API's back, as a broken controller might."""
    store, key = Store(stand), f"w/o/port/{name}"
    kept = store.get(key)
    row = store_pb2.Stored.FromString(kept)
    port = port_pb2.Port.FromString(row.message)
    port.attachment.CopyFrom(port_pb2.Attachment(**attachment))
    row.message = port.SerializeToString()
    store.put({key: row.SerializeToString()})
    try:
        yield
    finally:
        store.put({key: kept})


def expect_refused(stand: Stand, name: str, *, reasons: set[str], text: str) -> None:
    wait_for(partial(refused, stand, name, reasons, text), seconds=SOON, what=f"{name} refused because of {text}")


def refused(stand: Stand, name: str, reasons: set[str], text: str) -> bool:
    status = stand.state(name)
    return status.state == FAILED and status.reason in reasons and text in status.text


def test_the_agent_alone_refuses_devices_of_the_host_whatever_its_list_says(acme: Stand) -> None:
    host = acme.lab.host("h1")
    acme.tenant("globex")
    acme.network("globex/web", "10.1.0.0/24")
    acme.port("globex/secret", "web", "h1")
    acme.port("acme/it", "web", "h1", attachment={"kind": DEVICE, "device": "tap9"})
    acme.becomes("acme/it", FAILED)
    acme.becomes("globex/secret", ACTIVE)
    theirs = acme.state("globex/secret").device
    before = look(host)
    for device in ("eth0", "br-underlay", "lo", "br-int", "mgmt0", "ovs-netdev", theirs):
        with forged(acme, "acme/it", kind=DEVICE, device=device):
            reasons = {"DeviceNotAllowed", "DeviceInUse", "BadResource"}
            expect_refused(acme, "acme/it", reasons=reasons, text=f"{device}: ")
            assert look(host) == before
            assert acme.state("globex/secret").state == ACTIVE
        # When it is over, nobody has lost anything by it either.
        expect_refused(acme, "acme/it", reasons={"DeviceMissing"}, text="tap9: ")
        assert look(host) == before
    assert acme.client.get("hosts/h1").status.state == READY
    acme.delete("acme/it")


def test_the_agent_alone_refuses_namespaces_of_the_host_and_of_others(acme: Stand) -> None:
    host = acme.lab.host("h1")
    acme.tenant("globex")
    acme.network("globex/web", "10.1.0.0/24")
    acme.port("globex/secret", "web", "h1")
    acme.port("acme/own", "web", "h1")
    with namespace(host, "other") as path:
        acme.port("acme/it", "web", "h1", attachment={"kind": NETNS_PATH, "path": path})
        acme.sync()
        # The same namespaces under innocent names: mounted once more, which no pattern of names can tell.
        host.output(["touch", "/run/netns/one", "/run/netns/two"])
        host.output(["mount", "--bind", "/proc/1/ns/net", "/run/netns/one"])
        host.output(["mount", "--bind", "/run/netns/globex.secret", "/run/netns/two"])
        try:
            paths = ["/proc/1/ns/net", "/proc/self/ns/net", "/run/netns/one", "/run/netns/two"]
            for there in (*paths, "/run/netns/globex.secret", "/run/netns/acme.own", "/run/netns/../netns/other"):
                with forged(acme, "acme/it", kind=NETNS_PATH, path=there, interface="evil0"):
                    expect_refused(acme, "acme/it", reasons={"NetnsNotAllowed", "BadResource"}, text=there)
                    found = look(host, "links", "spaces")
                    assert not [line for line in found["links"] | found["spaces"] if "evil0" in line]
                acme.becomes("acme/it", ACTIVE)
        finally:
            host.output(["umount", "/run/netns/one", "/run/netns/two"])
            host.output(["rm", "/run/netns/one", "/run/netns/two"])
        acme.delete("acme/it")
        acme.sync()


# -- what a workload finds, and what is left of it


def test_what_a_workload_finds_inside_and_what_the_host_has(stand: Stand) -> None:
    stand.tenant("acme")
    stand.network("acme/web", "10.1.0.0/24", "fd01::/64", mtu=1400)
    stand.port("acme/it", "web", "h1", mac="02:11:22:33:44:55", attachment={"interface": "net7"})
    stand.sync()
    it, device = stand.workload("acme/it"), stand.state("acme/it").device
    inside = {line for line in look(it.host, "spaces")["spaces"] if line.startswith("acme.it")}
    assert {
        f"acme.it link net7 veth mtu=1400 ['UP']  none {it.mac}",
        f"acme.it net7 {it.v4}/24",
        f"acme.it net7 {it.v6}/64",
        "acme.it net7 fe80::11:22ff:fe33:4455/64",
        "acme.it lo 127.0.0.1/8",
        "acme.it route default via 10.1.0.1 dev net7",
        "acme.it route default via fe80::1 dev net7",
    } <= inside
    assert {line.split()[1] for line in inside if len(line.split()) == 3} == {"net7", "lo"}
    offload = it.host.run_in_netns(it.netns, ["ethtool", "-k", "net7"]).stdout
    assert "tx-checksumming: off" in offload
    (outer,) = json.loads(it.host.output(["ip", "-j", "-d", "addr", "show", "dev", device]))
    assert outer["addr_info"] == [] and outer["mtu"] == 1400 and {"NOARP", "UP"} <= set(outer["flags"])
    assert it.host.output(["cat", f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6"]).strip() == "1"
    assert outer["ifalias"].startswith("tealnet:")


def test_a_name_used_again_is_another_port(acme: Stand) -> None:
    acme.port("acme/peer", "web", "h2")
    uids, devices = set(), set()
    for _ in range(3):
        made = acme.port("acme/it", "web", "h1")
        acme.sync()
        uids.add(made.uid)
        devices.add(acme.state("acme/it").device)
        assert acme.state("acme/it").state == ACTIVE
        expect_reached(acme.workload("acme/peer"), *made.addresses)
        acme.delete("acme/it")
        acme.sync()
        assert "acme.it" not in look(acme.lab.host("h1"), "spaces")["spaces"]
    assert len(uids) == len(devices) == 3


def test_fifty_ports_in_one_call(acme: Stand) -> None:
    request = port_pb2.BatchCreatePortsRequest(parent="tenants/acme")
    for number in range(50):
        port = port_pb2.Port(network=full("networks", "acme/web"), host=f"hosts/h{1 + number % 2}")
        request.requests.add(port_id=f"p{number}", port=port)
    answer = acme.client.call(acme.client.ports.BatchCreatePorts, request)
    assert len(answer.results) == 50 and all(result.HasField("port") for result in answer.results), answer
    acme.sync()
    ports = [result.port for result in answer.results]
    assert len({address for port in ports for address in port.addresses}) == 100
    first = acme.workload("acme/p0")
    every = [address for port in ports[1:] for address in port.addresses]
    # Hosts make new spares in place of those that were taken: links, which cost frames between hosts (stand.LINKS).
    wait_for(lambda: all(len(spares_made(host)) > 2 for host in acme.lab.hosts), seconds=SOON, what="new spares")
    found = reaches(first, *every)
    assert all(found.values()), [target for target, answered in found.items() if not answered]
    states = {acme.state(f"acme/p{number}").state for number in range(50)}
    assert states == {ACTIVE}, tail(acme.lab.logs("h1", "agent")[0])
