"""A workload never reaches the host's own stack, whatever it tries; and Open vSwitch still gets its frames."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from agent.drivers import nftables
from agent.drivers.netlink import NETFILTER, Netlink
from agent.objects import Guard, Namespace

pytestmark = pytest.mark.isolated
Shell = Callable[[str], str]
PORT = 7777
PROBE = """
import select, socket, sys, time
end, waiting, udp = time.monotonic() + float(sys.argv[1]), {}, []
for address in sys.argv[2:]:
    six = ":" in address
    scope = socket.if_nametoindex("eth0") if address.startswith("fe80") else 0
    target = (address, 7777, 0, scope) if six else (address, 7777)
    family = socket.AF_INET6 if six else socket.AF_INET
    tcp = socket.socket(family, socket.SOCK_STREAM)
    tcp.setblocking(False)
    tcp.connect_ex(target)
    waiting[tcp] = address
    udp.append(socket.socket(family, socket.SOCK_DGRAM))
    try:
        udp[-1].sendto(address.encode(), target)
    except OSError:
        pass
while waiting and (left := end - time.monotonic()) > 0:
    for tcp in select.select((), waiting, (), left)[1]:
        address = waiting.pop(tcp)
        if not tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            print(address)
"""


class Listeners:
    """UDP and TCP on all addresses of the host."""

    def __init__(self) -> None:
        self.udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self.tcp = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        for sock in (self.udp, self.tcp):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            sock.bind(("::", PORT))
        self.tcp.listen()

    def heard(self) -> set[str]:
        """What came over UDP: the addresses that it was sent to."""
        found = set()
        while True:
            try:
                found.add(self.udp.recv(100).decode())
            except BlockingIOError:
                return found

    def close(self) -> None:
        self.udp.close()
        self.tcp.close()


async def test_nothing_reaches_the_host(stack: Any, sh: Shell) -> None:
    w = stack.workload(1)
    stack.want(w)
    await stack.settle()
    # As bad as it gets: the host's addresses are in the workload's own subnet, and the device speaks everything.
    sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up")
    sh("ip addr add 10.0.0.200/24 dev up0; ip addr add fd00::200/64 dev up0 nodad; sysctl -qw net.ipv4.ip_forward=1")
    host_mac = sh(f"ip -o link show {w.device}").split("link/ether ")[1].split()[0]
    spoken = f"ip link set {w.device} arp on; sysctl -qw net.ipv6.conf.{w.device}.disable_ipv6=0"
    sh(f"{spoken}; ip addr add fe80::99/64 dev {w.device} nodad; ip addr add 169.254.9.9/16 dev {w.device}")
    targets = ["10.0.0.200", "169.254.9.9", "fd00::200", "fe80::99"]
    listeners = Listeners()
    try:
        assert await _reached(sh, listeners, w, targets, host_mac) == set()
        # The same without the guard, to know that this would have been seen.
        sh("nft flush ruleset")
        seen = await _reached(sh, listeners, w, targets, host_mac, seconds=1.5)
        assert seen >= {"10.0.0.200 udp", "fe80::99 tcp", "arp", "nd"}
        assert await stack.guard.apply({w.device: stack.guard_of(w)}, ()) == {}
        sh("ip netns exec acme.w1 ip neigh flush all")
        assert await _reached(sh, listeners, w, targets, host_mac) == set()
    finally:
        listeners.close()


async def _reached(
    sh: Shell, listeners: Listeners, w: Any, targets: list[str], host_mac: str, *, seconds: float = 0.5
) -> set[str]:
    """What of the host answered, asked by name and with a guessed MAC."""
    found: set[str] = set()
    sh("ip -n acme.w1 route replace 169.254.0.0/16 dev eth0")
    for guessed in ("", host_mac):
        for address in targets:
            neighbour = f"ip -n acme.w1 neigh replace {address} lladdr {guessed} dev eth0 nud permanent"
            sh(neighbour if guessed else f"ip -n acme.w1 neigh del {address} dev eth0 2>/dev/null || true")
        said = sh(f"ip netns exec acme.w1 python3 -c '{PROBE}' {seconds} {' '.join(targets)}").split()
        found |= {f"{address} tcp" for address in said} | {f"{address} udp" for address in listeners.heard()}
        known = "" if guessed else sh("ip -n acme.w1 neigh")
        asked = {line.split()[0] for line in known.splitlines() if "lladdr" in line} & set(targets)
        found |= {"nd" if ":" in address else "arp" for address in asked}
    sh("ip -n acme.w1 neigh flush all nud permanent 2>/dev/null || true")
    return found


async def test_a_packet_socket_still_gets_the_frames(stack: Any, sh: Shell) -> None:
    """As Open vSwitch's userspace datapath reads them."""
    w = stack.workload(1)
    stack.want(w)
    await stack.settle()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
        tap.bind((w.device, 0))
        tap.settimeout(5)
        sh("ip netns exec acme.w1 ping -c 1 -W 0.2 10.0.0.99 || true")
        kinds = set()
        while 0x0806 not in kinds:
            kinds.add(struct.unpack_from("!H", tap.recv(2000), 12)[0])


async def test_a_device_made_anew_is_guarded_again(stack: Any, sh: Shell) -> None:
    """A chain may end with its device (up to Linux 6.15) or take hold of the next of that name."""
    w = stack.workload(1)
    stack.want(w)
    await stack.settle()
    sh(f"ip link del {w.device}")
    found = await stack.guard.read()
    assert not found or found[w.device].flaw
    for _ in range(2):
        await stack.step()
    await stack.look()
    assert stack.pending() == set()
    sh(f"ip addr add 10.0.0.99/24 dev {w.device}; ip link set {w.device} arp on")
    sh("ip netns exec acme.w1 ping -c 1 -W 0.2 10.0.0.99 || true")
    assert "lladdr" not in sh("ip -n acme.w1 neigh show 10.0.0.99")


async def test_a_guarded_device_is_up_before_anybody_plugs_it(stack: Any, sh: Shell) -> None:
    """Open vSwitch writes back the flags that it read when it opened a device: who sets it up meanwhile is undone."""
    w = stack.workload(1)
    assert await stack.netns.apply({w.name: Namespace(w.name)}, ()) == {}
    assert await stack.link.apply({w.device: w.link}, ()) == {}
    assert "UP" not in flags(sh(f"ip -o link show {w.device}"))
    assert "LOWER_UP" not in flags(sh("ip -o -n acme.w1 link show eth0"))
    assert await stack.guard.apply({w.device: stack.guard_of(w)}, ()) == {}
    assert "UP" in flags(sh(f"ip -o link show {w.device}"))
    # The carrier comes now, and not as one more change when it is plugged; there is no address to send from yet.
    assert "LOWER_UP" in flags(sh("ip -o -n acme.w1 link show eth0"))
    assert "inet" not in sh("ip -n acme.w1 addr show eth0")


def flags(line: str) -> list[str]:
    return line.split("<")[1].split(">")[0].split(",")


async def test_a_device_without_guard_is_never_up(stack: Any, sh: Shell) -> None:
    w = stack.workload(1)
    stack.want(w)
    await stack.settle()
    assert await stack.guard.apply({}, [w.device]) == {}
    assert "state DOWN" in sh(f"ip link show {w.device}")


async def test_one_that_fails_does_not_spoil_the_others(stack: Any, sh: Shell) -> None:
    one, two = stack.workload(1), stack.workload(2)
    stack.want(one)
    await stack.settle()
    guards = {w.device: stack.guard_of(w) for w in (one, two)}
    await stack.guard.apply({}, [one.device])
    failures = await stack.guard.apply(guards, ())
    assert {key: failure.reason for key, failure in failures.items()} == {two.device: "DeviceMissing"}
    assert set(await stack.guard.read()) == {one.device}


async def test_a_failed_transaction_changes_nothing(stack: Any) -> None:
    with Netlink(NETFILTER) as netlink:
        error = nftables.change(netlink, "tealnet", add=["lo"], delete=["absent"])
        assert error is not None and error.errno == errno.ENOENT
        assert not nftables.read_chains(netlink, "tealnet")
        assert nftables.change(netlink, "tealnet", add=["lo"], delete=[]) is None
        assert [chain.device for chain in nftables.read_chains(netlink, "tealnet") or []] == ["lo"]


async def test_many_at_once(stack: Any, sh: Shell) -> None:
    pairs = "".join(f"link add tna{n} type veth peer name tnb{n}\n" for n in range(160))
    sh(f"printf '{pairs}' | ip -batch -")
    devices = [f"tn{side}{n}" for side in "ab" for n in range(160)]
    guards = {device: Guard(device) for device in devices}
    assert await stack.guard.apply(guards, ()) == {}
    assert await stack.guard.read() == guards
    assert await stack.guard.apply({}, devices) == {}
    assert await stack.guard.read() == {}
    with Netlink(NETFILTER) as netlink:
        error = nftables.change(netlink, "tealnet", add=(), delete=devices[: nftables.LIMIT])
        assert error is not None and error.errno == errno.ENOENT
