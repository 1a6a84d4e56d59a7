"""Nothing of one tenant reaches another: real frames of all sorts, and captures on every port that see 0 of them.

Four tenants have the same prefixes, and on each host a port with the same address and the same MAC as the others'
there: only the mark in a frame tells whose it is. Each has one port more, with an address that nobody else has. Every
capture is proved able to see: its own tenant's marks must be in it.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from tealnet.lab import Host
from tealnet.lab.host import python_env
from tealnet.lab.traffic import Running, Workload, probe_argv, probing
from tealnet.probe import frames
from tealnet.v1 import port_pb2
from tests.lab.hostile import ROUTER_MAC, Party, forged, lies, towards
from tests.lab.stand import ACTIVE, NETNS, NETNS_PATH, Stand, full, standing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(150)]

TENANTS = ("ash", "birch", "cedar", "doum")
HOSTS = ("h1", "h2", "h3")
PATH = "/run/netns/cni-guest"
# Each of these frames is a new flow to the switch, which loses bursts of them: then nothing would have been tried.
PACE = "0.002"
ENOUGH = 60  # frames of each neighbour that must have come, of the about 100 that may


@dataclass
class Yard:
    """The stand with its workloads, and a mark for each."""

    stand: Stand
    workloads: dict[str, Workload]  # "ash/n1"
    token: str = field(default_factory=lambda: secrets.token_hex(3))

    def mark(self, name: str) -> bytes:
        """Eight bytes and more that are in no other frame."""
        return f"<{self.token}|{name}>".encode()

    def owners(self, capture: Running) -> dict[str, int]:
        """How many frames of whom are in a capture."""
        found: dict[str, int] = {}
        head = f"<{self.token}|".encode().hex()
        for frame in capture.result["frames"]:
            for part in frame.split(head)[1:]:
                name = bytes.fromhex(part.partition(b">".hex())[0]).decode()
                found[name] = found.get(name, 0) + 1
        return found


def party(workload: Workload) -> Party:
    return Party(workload.mac, workload.v4, workload.v6)


@pytest.fixture(scope="module")
def yard() -> Iterator[Yard]:
    with standing("t-isolation", hosts=3) as stand:
        for host in HOSTS:
            stand.settings(host, allow_netns=["/run/netns/cni-*"])
        for tenant in TENANTS:
            stand.tenant(tenant, NETNS, NETNS_PATH)
            stand.router(f"{tenant}/main")
            stand.network(f"{tenant}/web", "10.0.0.0/24", "fd00::/64", router="main")
        names = []
        for number, tenant in enumerate(TENANTS):
            for place, host in enumerate(HOSTS, start=1):
                addresses = [f"10.0.0.1{place}", f"fd00::1{place}"]
                stand.port(f"{tenant}/n{place}", "web", host, addresses=addresses, mac=f"02:00:00:00:00:1{place}")
                names.append(f"{tenant}/n{place}")
            host, last = HOSTS[number % 3], 100 + number
            stand.port(f"{tenant}/own", "web", host, addresses=[f"10.0.0.{last}", f"fd00::{last}"])
            names.append(f"{tenant}/own")
        stand.sync()
        yield Yard(stand, {name: stand.workload(name) for name in names})


@contextmanager
def captures(yard: Yard, names: Iterable[str]) -> Iterator[dict[str, Running]]:
    """On these ports; their results are there after the end."""
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        managers = {name: yard.workloads[name].running("sniff", "any") for name in names}
        entered = pool.map(stack.enter_context, managers.values())
        yield dict(zip(managers, entered, strict=True))


def tenant_of(name: str) -> str:
    return name.split("/")[0]


def send(yard: Yard, name: str, out: Mapping[str, bytes]) -> int:
    """All of these from a port."""
    me = yard.workloads[name]
    packed = [frame.hex() for frame in out.values()]
    for start in range(0, len(packed), 600):
        me.probe("send", "eth0", *packed[start : start + 600], "--interval", PACE)
    return len(packed)


def expect_no_foreign(yard: Yard, found: Mapping[str, Running]) -> None:
    """Whose frames each capture has: its own tenant's and nobody else's."""
    leaks = {
        name: {whose: count for whose, count in yard.owners(capture).items() if tenant_of(whose) != tenant_of(name)}
        for name, capture in found.items()
    }
    assert not any(leaks.values()), leaks


def test_nothing_of_any_tenant_reaches_a_port_of_another(yard: Yard) -> None:
    names = list(yard.workloads)
    total = 0
    with captures(yard, names) as found:

        def talk(name: str) -> int:
            me = yard.workloads[name]
            out: dict[str, bytes] = {}
            for other, target in yard.workloads.items():
                # Twins look the same from outside: what is meant for one of them is meant for all.
                is_twin = other.endswith(("n1", "n2", "n3"))
                if other == name or (is_twin and tenant_of(other) != tenant_of(name)):
                    continue
                out |= {
                    f"{other} {what}": frame
                    for what, frame in towards(party(me), party(target), yard.mark(name)).items()
                }
            return send(yard, name, out)

        with ThreadPoolExecutor(4) as pool:
            total = sum(pool.map(talk, names))
    expect_no_foreign(yard, found)
    for name, capture in found.items():
        own = yard.owners(capture)
        missing = [n for n in names if tenant_of(n) == tenant_of(name) and n != name and own.get(n, 0) < ENOUGH]
        assert not missing, f"{name} has seen too little of {missing}: {own}"
        _expect_no_answer_about_others(yard, name, capture)
    assert total > 15_000


def _expect_no_answer_about_others(yard: Yard, name: str, capture: Running) -> None:
    """ARP and ND for the addresses that only others have were asked for: nobody may have answered."""
    others = [w for n, w in yard.workloads.items() if n.endswith("/own") and tenant_of(n) != tenant_of(name)]
    for frame in capture.result["frames"]:
        for other in others:
            macs, v4, v6 = frames.mac_bytes(other.mac).hex(), ip_address(other.v4).packed, ip_address(other.v6).packed
            is_arp = frame[24:28] == "0806" and frame[56:64] == v4.hex()
            is_na = frame[24:28] == "86dd" and frame[108:110] == "88" and v6.hex() in frame
            assert macs not in frame[:24] and not is_arp and not is_na, f"{name} was told of {other.name}: {frame}"


def test_no_lie_passes(yard: Yard) -> None:
    """Of one kind after the other, to a peer on another host and (as its own twin sees it) on the same."""
    liar, peers = "ash/own", ("ash/n1", "ash/n2")  # it is on h1
    me = yard.workloads[liar]
    names = [n for n in yard.workloads if n != liar]
    kinds_tried = 0
    with captures(yard, names) as found:
        for number, peer in enumerate(peers):
            other = yard.workloads["ash/n3"]
            out = lies(party(me), party(yard.workloads[peer]), party(other), b"")
            out = {
                what: frame + f"<{yard.token}|liar/{number}.{index}>".encode()
                for index, (what, frame) in enumerate(
                    lies(party(me), party(yard.workloads[peer]), party(other), f"lie{yard.token}".encode()).items()
                )
            }
            kinds_tried += send(yard, liar, out)
            target = yard.workloads[peer]
            truth = frames.udp_frame(src_mac=me.mac, dst_mac=target.mac, src=me.v4, dst=target.v4, data=yard.mark(liar))
            send(yard, liar, {"truth": truth})
    for name, capture in found.items():
        passed = [frame for frame in capture.result["frames"] if f"lie{yard.token}".encode().hex() in frame]
        assert not passed, f"{len(passed)} lies reached {name}: {passed[:3]}"
        assert not [n for n in yard.owners(capture) if tenant_of(n) == "liar"], name
    for peer in peers:
        assert yard.owners(found[peer]) == {liar: 1}
    assert kinds_tried >= 2 * 100


# ---- tunnel packets

# Of its own: with a host's MAC it would besides draw, or cut off, that host's frames in any switch that learns.
ATTACKER = "02:01:00:00:00:77"


def inject(yard: Yard, out: Iterable[bytes]) -> None:
    """Frames onto the underlay, as from a machine that is connected to it."""
    argv = [*yard.stand.lab.fabric.enter(), "env", *(f"{k}={v}" for k, v in python_env().items())]
    argv += [sys.executable, "-m", "tealnet.probe", "send", "underlay", *(frame.hex() for frame in out)]
    argv += ["--interval", PACE]
    from tealnet.lab.machine import call

    call(argv)


def test_forged_tunnel_packets_are_not_delivered(yard: Yard) -> None:
    """Only what comes from a known VTEP, with a VNI that it has a member of, from an address that lives there."""
    client, lab = yard.stand.client, yard.stand.lab
    vni = {t: client.get(full("networks", f"{t}/web")).segments[0].vni for t in TENANTS}
    target, sender = yard.workloads["ash/n1"], yard.workloads["ash/n2"]
    macs = {name: lab.host(name).output(["cat", "/sys/class/net/br-underlay/address"]).strip() for name in HOSTS}
    vtep = {name: lab.host(name).vtep for name in HOSTS}
    out: dict[str, bytes] = {}

    def tunnel(what: str, *, src: str = "h2", network: int = 0, inner_src: Workload = sender, flags: int = 8) -> None:
        mark = f"<{yard.token}|forged/{what}>".encode()
        v4 = frames.udp_frame(src_mac=inner_src.mac, dst_mac=target.mac, src=inner_src.v4, dst=target.v4, data=mark)
        v6 = frames.udp_frame(src_mac=inner_src.mac, dst_mac=target.mac, src=inner_src.v6, dst=target.v6, data=mark)
        for family, inner in (("v4", v4), ("v6", v6)):
            out[f"{what} {family}"] = forged(
                src_mac=ATTACKER, dst_mac=macs["h1"], src=vtep.get(src, src),
                dst=vtep["h1"], vni=network or vni["ash"], inner=inner, flags=flags,
            )  # fmt: skip

    for unknown in ("192.0.2.77", "198.51.100.2", "10.0.0.12", "192.0.2.250"):
        tunnel(f"unknown VTEP {unknown}", src=unknown)
    tunnel("its own VTEP", src="h1")
    for number in (1, vni["ash"] + 100_000, 0xFFFFFF, 0):
        tunnel(f"unknown VNI {number}", network=number or 4095)
    for tenant in TENANTS[1:]:
        tunnel(f"VNI of {tenant}", network=vni[tenant], inner_src=yard.workloads["ash/own"])
    for name in ("ash/n3", "ash/own", "birch/own", "cedar/own", "doum/own"):
        if yard.workloads[name].host.name != "h2":
            tunnel(f"inner source {name}", inner_src=yard.workloads[name])
    tunnel("no VNI flag", flags=0)
    truth = yard.mark("ash/n2")
    inner = frames.udp_frame(src_mac=sender.mac, dst_mac=target.mac, src=sender.v4, dst=target.v4, data=truth)
    right = forged(src_mac=ATTACKER, dst_mac=macs["h1"], src=vtep["h2"], dst=vtep["h1"], vni=vni["ash"], inner=inner)
    flows = {h: _flows(lab.host(h)) for h in HOSTS}
    with captures(yard, yard.workloads) as found:
        inject(yard, [*out.values(), right])
    for name, capture in found.items():
        forgeries = [n for n in yard.owners(capture) if tenant_of(n) == "forged"]
        assert not forgeries, f"{name}: {forgeries}"
    # An underlay that lets anybody send as a VTEP is trusted as far as that: what looks right in all is delivered.
    assert yard.owners(found["ash/n1"]) == {"ash/n2": 1}
    assert flows == {h: _flows(lab.host(h)) for h in HOSTS}, "something was learned"
    assert len(out) >= 20


def _flows(host: Host) -> int:
    return len(host.output(["ovs-ofctl", "-O", "OpenFlow15", "--no-stats", "dump-flows", "br-int"]).splitlines())


# ---- the host and the underlay


def test_a_workload_reaches_neither_underlay_nor_management(yard: Yard) -> None:
    """Whatever it sends to VTEPs, hosts and the controller: outside there are only tunnel packets of its own VNI."""
    lab, client = yard.stand.lab, yard.stand.client
    name = "birch/own"
    me = yard.workloads[name]
    vni = client.get(full("networks", "birch/web")).segments[0].vni
    addresses = [host.vtep for host in lab.hosts] + [host.management for host in lab.hosts] + ["198.51.100.254"]
    targets = [Party(mac, address, "2001:db8:0:2::1") for address in addresses for mac in _macs(me.host)[:6]]
    out: dict[str, bytes] = {}
    for index, target in enumerate(targets):
        out |= {f"{index} {what}": frame for what, frame in towards(party(me), target, yard.mark(name)).items()}
    out = dict(list(out.items())[:: max(1, len(out) // 3000)])
    peer = yard.workloads["birch/n3"]
    out["truth"] = frames.udp_frame(src_mac=me.mac, dst_mac=peer.mac, src=me.v4, dst=peer.v4, data=yard.mark(name))
    argv = [*lab.fabric.enter(), "env", *(f"{k}={v}" for k, v in python_env().items())]
    argv += [sys.executable, "-m", "tealnet.probe", "sniff", "any"]
    with probing(argv, "capture in the fabric") as outside, me.running("sniff", "any") as inside:
        send(yard, name, out)
    mark = yard.mark(name).hex()
    vteps = {ip_address(host.vtep).packed for host in lab.hosts}
    seen = [frame for frame in outside.result["frames"] if mark in frame]
    assert seen, "the capture of the underlay has not even seen what may pass"
    for frame in seen:
        raw = bytes.fromhex(frame)
        assert raw[12:14] == b"\x08\x00" and raw[23] == 17 and raw[36:38] == (4789).to_bytes(2, "big"), frame
        assert raw[26:30] in vteps and int.from_bytes(raw[46:49], "big") == vni, frame  # a peer may quote it
    answers = [f for f in inside.result["frames"] if f[12:24] in {frames.mac_bytes(m).hex() for m in _macs(me.host)}]
    assert not answers, answers[:3]


def _macs(host: Host) -> list[str]:
    """Of all devices of a host."""
    text = host.output(["sh", "-c", "cat /sys/class/net/*/address"]).split()
    return sorted({mac for mac in text if len(mac) == 17 and mac != "00:00:00:00:00:00"} - {ROUTER_MAC})


def test_no_listener_of_the_host_is_reached(yard: Yard) -> None:
    """By TCP and UDP to every address of the host where something listens on all of them."""
    me = yard.workloads["cedar/own"]
    host = me.host
    with probing(probe_argv(host, "serve", "7001"), "listener on the host") as server:
        links = host.output(["sh", "-c", "ip -o address | awk '{print $4}' | cut -d/ -f1"]).split()
        targets = [a for a in dict.fromkeys(links) if a not in ("127.0.0.1", "::1")]
        scoped = [f"{a}%eth0" if a.startswith("fe80") else a for a in targets]
        assert me.probe("reach", "7001", *scoped, "--wait", "0.2")["reached"] == []
        own = yard.workloads["cedar/n1"]
        assert me.ping(own.v4)["lost"] == 0
    assert server.result == {"accepted": 0, "datagrams": 0}


# ---- while things change


@contextmanager
def guests(yard: Yard, *hosts: str) -> Iterator[dict[str, Running]]:
    """Namespaces made beforehand, with captures in them that see the first frame that ever comes."""
    machines = [yard.stand.lab.host(name) for name in hosts]
    name = PATH.rpartition("/")[2]
    with ExitStack() as stack:
        found = {}
        for host in machines:
            host.output(["ip", "netns", "add", name])
            stack.callback(host.output, ["ip", "netns", "delete", name])
        for host in machines:
            running = probing(probe_argv(host, "sniff", "any", netns=name), f"capture of the guest on {host.name}")
            found[host.name] = stack.enter_context(running)
        yield found


@contextmanager
def storm(yard: Yard, tenants: Iterable[str], *targets: Party) -> Iterator[None]:
    """Everybody of these tenants sends to these addresses all the time."""
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        managers = []
        for name, workload in yard.workloads.items():
            if tenant_of(name) in tenants and not name.endswith("n3"):
                out: dict[str, bytes] = {}
                for number, target in enumerate(targets):
                    sample = list(towards(party(workload), target, yard.mark(name)).items())
                    out |= {f"{number} {what}": frame for what, frame in sample[::3]}
                out |= {
                    f"truth {number}": frames.udp_frame(
                        src_mac=workload.mac, dst_mac=t.mac, src=workload.v4, dst=t.v4, data=yard.mark(name)
                    )
                    for number, t in enumerate(targets)
                }
                packed = [frame.hex() for frame in out.values()]
                managers.append(workload.running("repeat", "eth0", *packed, "--interval", "0.01"))
        list(pool.map(stack.enter_context, managers))
        yield


GUEST = Party("02:00:00:00:00:77", "10.0.0.77", "fd00::77")


def attach(yard: Yard, name: str, host: str) -> None:
    yard.stand.port(
        name, "web", host, addresses=[GUEST.v4, GUEST.v6], mac=GUEST.mac,
        attachment={"kind": NETNS_PATH, "path": PATH, "interface": "eth0"},
    )  # fmt: skip
    yard.stand.becomes(name, ACTIVE)


def tell(yard: Yard, stage: str, *names: str) -> None:
    """What is allowed, so often that some of it must be seen, says how far we are."""
    for name in names:
        me = yard.workloads[name]
        data = yard.mark(name) + f"stage {stage} ".encode()
        truth = frames.udp_frame(src_mac=me.mac, dst_mac=GUEST.mac, src=me.v4, dst=GUEST.v4, data=data)
        send(yard, name, {str(number): truth for number in range(20)})


def stages(capture: Running) -> list[str]:
    """The stages that a capture has heard of, in order."""
    found: list[str] = []
    for frame in capture.result["frames"]:
        _, _, rest = bytes.fromhex(frame).partition(b"stage ")
        if (stage := rest.partition(b" ")[0].decode(errors="replace")) and stage not in found:
            found.append(stage)
    return found


def test_nothing_foreign_is_seen_during_any_change(yard: Yard) -> None:
    """Attach, move, restarts, delete, and the tenant's end, with captures from the first frame on."""
    stand, lab = yard.stand, yard.stand.lab
    watched = ["ash/n1", "ash/n2", "birch/n1", "birch/own"]
    targets = (GUEST, party(yard.workloads["ash/n1"]))
    with (
        guests(yard, "h1", "h2") as inside,
        storm(yard, ("birch", "cedar", "ash"), *targets),
        captures(yard, watched) as found,
    ):
        attach(yard, "ash/guest", "h1")
        stand.sync()
        tell(yard, "attached", "ash/n1", "ash/n2")
        body = port_pb2.Port(name=full("ports", "ash/guest"), host="hosts/h2")
        stand.client.update(body, mask=["host"])
        stand.sync()
        tell(yard, "moved", "ash/n1", "ash/n2")
        stand.restart_agent("h2")
        for host in ("h2", "h1"):
            lab.kill(host, "ovs-vswitchd")
            lab.start(host, "ovs-vswitchd")
        stand.sync()
        stand.becomes("ash/guest", ACTIVE)
        tell(yard, "restarted", "ash/n1", "ash/n2")
        stand.delete("ash/guest")
        stand.sync()
        # The same place and addresses, for another tenant, at once.
        attach(yard, "birch/guest", "h2")
        stand.sync()
        tell(yard, "another's", "birch/n1", "birch/own")
        stand.client.delete("tenants/birch", force=True)
        stand.sync()
    heard = {host: stages(capture) for host, capture in inside.items()}
    assert heard["h2"] == ["moved", "restarted", "another's"]
    assert heard["h1"] in (["attached"], ["attached", "moved"])  # it lets go once all know the new place
    expect_no_foreign(yard, {name: capture for name, capture in found.items() if name in watched})
    whose = {host: yard.owners(capture) for host, capture in inside.items()}
    assert {tenant_of(n) for n in whose["h1"]} == {"ash"}, whose
    assert {tenant_of(n) for n in whose["h2"]} == {"ash", "birch"}, whose
    _expect_one_tenant_at_a_time(yard, inside["h2"])


def _expect_one_tenant_at_a_time(yard: Yard, capture: Running) -> None:
    """First it was ash's, then birch's: nothing of ash comes after the first frame of birch, nor of birch before."""
    order: list[str] = []
    for frame in capture.result["frames"]:
        for tenant in TENANTS:
            if f"<{yard.token}|{tenant}/".encode().hex() in frame and order[-1:] != [tenant]:
                order.append(tenant)
    assert order == ["ash", "birch"], order
