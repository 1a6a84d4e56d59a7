"""Setting the underlay bridge up on a machine whose only way out is the card that goes into it, and undoing it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from tealnet.lab import Host, Lab, Parts
from tealnet.lab.host import DATABASE, SCHEMA, python_env, stop
from tealnet.lab.wait import wait_for

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

INTERRUPTION = 3.0  # seconds: what is promised; measured are 0.05
V4, V6 = "192.0.2.1", "2001:db8:0:2::1"
GATEWAY, GATEWAY6 = "192.0.2.2", "2001:db8:0:2::2"
TOOL = [sys.executable, "-P", "-m", "agent.underlay"]
SETUP = ("setup", "--uplink", "eth0", "--datapath", "netdev")
NO_PATH = ""
NOTHING = 3  # exit code of `show`: nothing is set up

ECHO_SERVER = f"""
import socket
with socket.create_server(("{V4}", 7000)) as server:
    print("listening", flush=True)
    peer, _ = server.accept()
    while data := peer.recv(4096):
        peer.sendall(data)
"""
ECHO_CLIENT = f"""
import socket, time
with socket.create_connection(("{V4}", 7000), timeout=5) as peer:
    file = peer.makefile("rw")
    while True:
        print(time.time(), file=file, flush=True)
        print(file.readline(), end="", flush=True)
        time.sleep(0.02)
"""
LISTENER = f"""
import socket
with socket.create_server(("{GATEWAY}", 7001)) as server:
    print("listening", flush=True)
    while True:
        server.accept()[0].close()
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    Lab.remove("test-underlay")  # what a crashed run left
    with Lab.up("test-underlay", hosts=2, parts=Parts.BARE) as lab:
        yield lab


@pytest.fixture
def machine(lab: Lab) -> Host:
    """A machine with Open vSwitch as the package starts it, and its default routes over its only card."""
    host, gateway = lab.hosts
    host.output(["ovsdb-tool", "create", DATABASE, SCHEMA])
    host.start("ovsdb-server")
    host.output(["ovs-vsctl", "--no-wait", "init"])
    host.start("ovs-vswitchd")
    lines = [
        "ip link set mgmt0 down",
        "ip link set eth0 down",
        "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad",  # a second for each test
        "ip link set eth0 addrgenmode eui64",
        "ip link set eth0 up",
        f"ip address replace {V6}/64 dev eth0 nodad",
        "ip address add 192.0.2.101/24 dev eth0 label eth0:1",
        "ip address add 203.0.113.9/32 dev eth0 scope link",
        f"ip route add default via {GATEWAY} proto static metric 7",
        "ip route add 198.51.100.0/24 via 192.0.2.3 mtu lock 1400 table 77",
        "ip route add 198.51.101.0/24 dev eth0 scope link src 192.0.2.101",
        f"ip -6 route add default via {GATEWAY6} metric 512",
        "ip -6 route add 2001:db8:7::/48 via fe80::7 dev eth0",
    ]
    host.output(["sh", "-ec", "\n".join(lines)])
    # A wire carries finished checksums; a veth pair leaves them to the last reader, which is Open vSwitch here.
    gateway.output(["ethtool", "-K", "eth0", "tx", "off"])
    wait_for(lambda: "tentative" not in host.output(["ip", "address"]), seconds=10, what="link-local address")
    return host


@pytest.fixture
def gateway(lab: Lab) -> Host:
    return lab.hosts[1]


def tool(host: Host, *words: str, path: str = NO_PATH) -> subprocess.CompletedProcess[str]:
    return host.run(["env", *environment(path), *TOOL, *words], seconds=60)


def environment(path: str = NO_PATH) -> list[str]:
    first = f"{path}:" if path else ""
    return [*(f"{key}={value}" for key, value in python_env().items()), f"PATH={first}/usr/sbin:/usr/bin:/sbin:/bin"]


def state(host: Host) -> dict[str, Any]:
    """Links, addresses and routes, as ip(8) tells them."""
    words = {
        "link": ["-details", "link", "show", "dev", "eth0"],
        "address": ["address", "show", "dev", "eth0"],
        "routes": ["-4", "route", "show", "table", "all"],
        "routes6": ["-6", "route", "show", "table", "all"],
        "rest": ["-4", "address", "show", "up"],
    }
    found = {name: json.loads(host.output(["ip", "-json", *argv]) or "[]") for name, argv in words.items()}
    found["features"] = host.output(["ethtool", "-k", "eth0"])
    found["nft"] = host.output(["nft", "list", "ruleset"])
    found["bridges"] = host.output(["ovs-vsctl", "list-br"])
    return found


def fault(host: Host, program: str, pattern: str, then: str) -> str:
    """A directory for PATH in which `program` does `then` once, when its arguments match; returns its path."""
    real = host.output(["sh", "-c", f"command -v {program}"]).strip()
    once = f"if mkdir /run/fault/done 2>/dev/null; then {then}; fi"
    script = f'#!/bin/sh\ncase "$*" in {pattern}) {once};; esac\nexec {real} "$@"\n'
    host.run(["sh", "-ec", f"mkdir -p /run/fault; cat >/run/fault/{program}; chmod 755 /run/fault/*"], given=script)
    return "/run/fault"


def longest_gap(output: str) -> float:
    """Of `ping -D`: seconds between two answers, at most."""
    times = [float(found) for found in re.findall(r"^\[([0-9.]+)\] \d+ bytes from", output, re.M)]
    assert len(times) > 10, output
    return max(later - earlier for earlier, later in pairwise(times))


def has_ended(host: Host, name: str) -> bool:
    return host.record()["processes"][name]["exit"] is not None


def is_pending(host: Host) -> bool:
    return "pending" in tool(host, "show").stdout


def test_up_and_undone_under_traffic(machine: Host, gateway: Host) -> None:
    before = state(machine)
    server = machine.popen([sys.executable, "-c", ECHO_SERVER])
    assert server.stdout and server.stdout.readline()
    client = gateway.popen([sys.executable, "-c", ECHO_CLIENT])
    pings = [gateway.popen(["ping", "-n", "-D", "-i", "0.02", address]) for address in (V4, V6)]
    try:
        for _ in range(2):
            done = tool(machine, *SETUP, "--vtep", V4)
            assert done.returncode == 0, done.stderr
            assert tool(machine, "show").returncode == 0
        addresses = machine.output(["ip", "address", "show", "dev", "br-underlay"])
        assert all(f"{one}/" in addresses for one in (V4, V6, "192.0.2.101", "203.0.113.9"))
        assert "br-underlay" in machine.output(["ip", "route", "get", GATEWAY6])
        assert " inet" not in machine.output(["ip", "address", "show", "dev", "eth0"])
        # The kernel's own stack is out of it: who asks gets one answer.
        answers = gateway.run(["arping", "-I", "eth0", "-c", "3", "-w", "4", V4]).stdout
        assert "Received 3 response" in answers, answers
        done = tool(machine, "undo")
        assert done.returncode == 0, done.stderr
        assert state(machine) == before
    finally:
        heard = [stop(one, signal.SIGINT) for one in pings]
        echoed = stop(client).splitlines()
        stop(server)
    assert max(map(longest_gap, heard)) < INTERRUPTION
    times = [float(line) for line in echoed if re.fullmatch(r"[0-9.]+", line)]
    assert len(times) == len(echoed) > 20, echoed[-5:]
    assert max(later - earlier for earlier, later in pairwise(times)) < INTERRUPTION
    assert tool(machine, "undo").stdout == "nothing is set up\n"


@pytest.mark.parametrize(
    ("program", "pattern"),
    [
        ("ovs-vsctl", "*add-br*"),
        ("ip", "link*addrgenmode*"),
        ("ovs-vsctl", "*add-port*"),
        ("ip", "-4*-batch*"),
        ("ip", "-6*-batch*"),
        ("nft", "*-f*"),
    ],
)
def test_killed_on_the_way_and_undone(machine: Host, program: str, pattern: str) -> None:
    before = state(machine)
    path = fault(machine, program, pattern, "kill -9 $PPID")
    assert tool(machine, *SETUP, path=path).returncode == -signal.SIGKILL
    assert is_pending(machine)
    done = tool(machine, "undo")
    assert done.returncode == 0, done.stderr
    assert state(machine) == before


def test_killed_on_the_way_and_set_up_again(machine: Host, gateway: Host) -> None:
    path = fault(machine, "ip", "-6*-batch*", "kill -9 $PPID")
    assert tool(machine, *SETUP, path=path).returncode == -signal.SIGKILL
    done = tool(machine, *SETUP)
    assert done.returncode == 0, done.stderr
    assert gateway.run(["ping", "-c1", "-W2", V4]).returncode == 0


def test_killed_on_the_way_and_put_back_by_itself(machine: Host, gateway: Host) -> None:
    before = state(machine)
    path = fault(machine, "ip", "-6*-batch*", "kill -9 $PPID")
    assert tool(machine, *SETUP, "--seconds", "2", path=path).returncode == -signal.SIGKILL
    assert state(machine) != before
    wait_for(lambda: tool(machine, "show").returncode == NOTHING, seconds=20, what="the watchdog", every=0.1)
    assert state(machine) == before
    assert gateway.run(["ping", "-c1", "-W2", V4]).returncode == 0


BREAK = "ip neigh replace {0} lladdr 02:00:00:00:00:99 nud permanent dev br-underlay".format


@pytest.mark.parametrize("check", [(), ("--check", f"{GATEWAY}:7001")], ids=["gateways", "tcp"])
def test_no_answer_and_put_back_by_itself(machine: Host, gateway: Host, check: tuple[str, ...]) -> None:
    before = state(machine)
    path = fault(machine, "nft", "*-f*", BREAK(GATEWAY))
    listener = gateway.popen([sys.executable, "-c", LISTENER])
    try:
        assert listener.stdout and listener.stdout.readline()
        done = tool(machine, *SETUP, "--seconds", "4", *check, path=path)
    finally:
        stop(listener)
    assert done.returncode == 1
    assert f"no answer from {GATEWAY}" in done.stderr, done.stderr
    assert state(machine) == before


def test_confirmed_stays_else_put_back(machine: Host) -> None:
    before = state(machine)
    assert tool(machine, *SETUP, "--confirm", "--seconds", "3").returncode == 0
    assert is_pending(machine)
    wait_for(lambda: tool(machine, "show").returncode == NOTHING, seconds=20, what="the watchdog", every=0.1)
    assert state(machine) == before
    assert tool(machine, "confirm").returncode == 1
    assert tool(machine, *SETUP, "--confirm", "--seconds", "20").returncode == 0
    assert tool(machine, "confirm").returncode == 0
    assert tool(machine, "show").returncode == 0


def add_vlan(host: Host) -> None:
    if host.run(["ip", "link", "add", "link", "eth0", "name", "eth0.7", "type", "vlan", "id", "7"]).returncode:
        pytest.skip("this kernel has no VLANs")


def lease(host: Host) -> None:
    host.output(["ip", "address", "change", f"{V4}/24", "dev", "eth0", "valid_lft", "900", "preferred_lft", "900"])


def add_bridge(host: Host) -> None:
    host.output(["ovs-vsctl", "add-br", "br-underlay", "--", "set", "Bridge", "br-underlay", "datapath_type=netdev"])


def name_in_rule(host: Host) -> None:
    host.output(["ip", "rule", "add", "iif", "eth0", "table", "77"])


def nothing(host: Host) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "words", "why"),
    [
        (add_vlan, (), "eth0.7 (vlan) is stacked"),
        (lease, (), "leased by DHCP"),
        (add_bridge, (), "bridge br-underlay that was not made for eth0"),
        (name_in_rule, (), "ip-rule"),
        (nothing, ("--vtep", "192.0.2.77"), "does not have the address 192.0.2.77"),
        (nothing, ("--check", "192.0.2.77"), "no answer, even now, from 192.0.2.77"),
        (nothing, ("--uplink", "eth7"), "no device eth7"),
        (nothing, ("--uplink", "mgmt0"), "is down or has no address"),
    ],
)
def test_refused(machine: Host, prepare: Callable[[Host], None], words: tuple[str, ...], why: str) -> None:
    prepare(machine)
    before = state(machine)
    done = tool(machine, *SETUP, *words)
    assert (done.returncode, why in done.stderr) == (1, True), done.stderr
    after = state(machine)
    if prepare is lease:  # its time runs
        del before["address"], after["address"], before["rest"], after["rest"]
    assert after == before
    assert tool(machine, "show").returncode == NOTHING


def test_nothing_to_do_where_the_kernel_encapsulates(machine: Host) -> None:
    before = state(machine)
    done = tool(machine, "setup", "--uplink", "eth0", "--datapath", "system")
    assert (done.returncode, "nothing to do" in done.stdout) == (0, True)
    assert state(machine) == before


def test_a_device_made_anew_gets_everything_back(machine: Host, gateway: Host) -> None:
    before = state(machine)
    assert tool(machine, *SETUP).returncode == 0
    keeper = machine.popen(["env", *environment(), *TOOL, "keep"])
    ping = gateway.popen(["ping", "-n", "-D", "-i", "0.02", V4])
    try:
        machine.output(["ovs-appctl", "-t", "ovs-vswitchd", "exit", "--cleanup"])
        wait_for(lambda: has_ended(machine, "ovs-vswitchd"), seconds=10, what="end of vswitchd")
        assert V4 not in machine.output(["ip", "address"])
        machine.start("ovs-vswitchd")
        wait_for(lambda: tool(machine, "show").returncode == 0, seconds=20, what="the underlay", every=0.1)
        assert gateway.run(["ping", "-c1", "-W2", V4]).returncode == 0
    finally:
        stop(ping, signal.SIGINT)
        stop(keeper, signal.SIGTERM)
    assert tool(machine, "undo").returncode == 0
    assert state(machine) == before


def test_after_a_reboot_it_is_applied_again(machine: Host, gateway: Host) -> None:
    before = state(machine)
    assert tool(machine, *SETUP).returncode == 0
    # What a reboot leaves: the bridge in the database, the card as the machine's network configuration makes it.
    record = machine.output(["cat", "/var/lib/tealnet/underlay.json"])
    assert tool(machine, "undo").returncode == 0
    machine.run(["sh", "-c", "cat >/var/lib/tealnet/underlay.json"], given=record)
    bridge = "add-br br-underlay -- set Bridge br-underlay datapath_type=netdev external_ids:tealnet-underlay=eth0"
    machine.output(["ovs-vsctl", *bridge.split(), "--", "add-port", "br-underlay", "eth0"])
    done = tool(machine, "apply")
    assert done.returncode == 0, done.stderr
    assert tool(machine, "show").returncode == 0
    assert gateway.run(["ping", "-c1", "-W2", V4]).returncode == 0
    assert tool(machine, "undo").returncode == 0
    assert state(machine) == before


def test_a_card_with_a_new_address_is_left_alone_after_a_reboot(machine: Host) -> None:
    assert tool(machine, *SETUP).returncode == 0
    record = machine.output(["cat", "/var/lib/tealnet/underlay.json"])
    assert tool(machine, "undo").returncode == 0
    machine.run(["sh", "-c", "cat >/var/lib/tealnet/underlay.json"], given=record)
    machine.output(["ip", "address", "add", "192.0.2.50/24", "dev", "eth0"])
    before = state(machine)
    done = tool(machine, "apply")
    assert (done.returncode, "192.0.2.50" in done.stderr) == (1, True)
    assert state(machine) == before


def test_undone_without_open_vswitch(machine: Host, gateway: Host) -> None:
    before = state(machine)
    assert tool(machine, *SETUP).returncode == 0
    machine.kill("ovs-vswitchd")
    machine.kill("ovsdb-server")
    done = tool(machine, "undo")
    assert (done.returncode, "database" in done.stderr) == (1, True), done.stderr
    assert gateway.run(["ping", "-c1", "-W2", V4]).returncode == 0
    machine.start("ovsdb-server")
    machine.start("ovs-vswitchd")
    done = tool(machine, "undo")
    assert done.returncode == 0, done.stderr
    assert state(machine) == before
