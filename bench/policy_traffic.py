"""What rules cost packets: connections per second and the throughput of an open one; policy on, off, and OVN's.

On and off are two networks of one tenant, on the same hosts; OVN has two further hosts of the same lab and rules that
are allow-related. They take turns.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bench.common import BenchError, Neighbours, Report, say
from bench.inside import Inside
from bench.ovn import Cloud
from bench.ovn_packages import Ovn
from bench.ovn_policy import guard
from bench.streams import End, Times, ready, rr, serving, tcp
from bench.teal import PARENT, TENANT, Teal
from tealnet import kinds
from tealnet.lab import Lab
from tealnet.lab.host import stop
from tealnet.lab.wait import wait_for
from tealnet.v1 import network_pb2, port_pb2

_PROGRAM = [sys.executable, "-I", "-S", str(Path(__file__).with_name("connections.py"))]
_PORT = "7002"
MEASURES = {"connections_per_s": "connections/s", "tcp_gbps": "TCP Gb/s", "rr_per_s": "TCP RR/s"}
Ends = tuple[End, End, End]  # client on the first host, server there, server on the second host


def connections(source: End, target: End, seconds: float) -> dict[str, float]:
    """connections_per_s, one after the other."""
    answer = source.run([*_PROGRAM, "client", target.address, _PORT, str(seconds)], seconds=seconds + 20)
    return {"connections_per_s": float(answer)}


@contextmanager
def _taking(target: End) -> Iterator[None]:
    with tempfile.TemporaryFile() as said:
        words = [*_PROGRAM, "server", target.address, _PORT]
        server = target.host.popen(words, netns=target.netns, out=said)
        try:
            wait_for(partial(ready, said), seconds=10, what=f"a server in {target.netns}")
            yield
        finally:
            stop(server)


def _ours(teal: Teal, policy: network_pb2.Network.Policy) -> Ends:
    """Three ports in a network of their own; the default group lets its members talk."""
    word = network_pb2.Network.Policy.Name(policy).removeprefix("POLICY_").lower()
    cidr = f"10.{96 if word == 'off' else 95}.0.0/24"
    body = network_pb2.Network(cidrs=[cidr], policy=policy)
    teal.client.create(kinds.NETWORK, parent=PARENT, ident=word, body=body)
    ends = []
    for own, number in (("client", 0), ("near", 0), ("far", 1)):
        ident = f"{word}-{own}"
        asked = port_pb2.Port(network=f"{PARENT}/networks/{word}", host=f"hosts/{teal.hosts[number].name}")
        port = teal.client.create(kinds.PORT, parent=PARENT, ident=ident, body=asked)
        ends.append(End(teal.hosts[number], f"{TENANT}.{ident}", port.addresses[0], port.mac))
    teal.synced()
    return ends[0], ends[1], ends[2]


def _theirs(cloud: Cloud) -> Ends:
    """Three of OVN's, in a group that denies what it does not allow."""
    plugs = cloud.make_plugs(4)  # they alternate between the hosts
    cloud.bulk(plugs)
    guard(cloud.central, [plug.name for plug in plugs], allow=["outport==@pg0 && ip4.src==$pg0_ip4"])
    cloud.settle()
    hosts = (cloud.hosts[0], cloud.hosts[1])
    client, far, near = (End(hosts[n % 2], plugs[n].name, plugs[n].address, plugs[n].mac) for n in (0, 1, 2))
    return client, near, far


def run(report: Report, lab: Lab, ovn: Ovn | None, *, neighbours: Neighbours, rounds: int, seconds: int) -> None:
    """All of it on a lab of two hosts."""
    insides = [Inside(host) for host in lab.hosts]
    teal = Teal(lab, insides)
    cases = {"on": _ours(teal, network_pb2.Network.POLICY_ENFORCE), "off": _ours(teal, network_pb2.Network.POLICY_OFF)}
    cloud = Cloud(lab, ovn) if ovn else None
    if cloud is not None:
        cases["ovn"] = _theirs(cloud)
    try:
        with ExitStack() as servers:
            for _, near, far in cases.values():
                for end in (near, far):
                    servers.enter_context(serving(end))
                    servers.enter_context(_taking(end))
            _rounds(report, neighbours, cases, rounds=rounds, seconds=seconds)
    finally:
        for part in (teal, cloud, *insides):
            if part is not None:
                part.close()


def _rounds(report: Report, neighbours: Neighbours, cases: Mapping[str, Ends], *, rounds: int, seconds: int) -> None:
    rows: dict[str, dict[str, list[float]]] = {}
    times = Times(tcp=seconds, rr=1.0)
    for number in range(rounds):
        neighbours.wait_quiet(seconds=5)
        for where in ("remote", "local"):
            for case in sorted(cases, reverse=bool(number % 2)):
                client, near, far = cases[case]
                target = far if where == "remote" else near
                try:
                    found = (
                        connections(client, target, seconds) | tcp(client, target, times) | rr(client, target, times)
                    )
                except BenchError as error:
                    raise BenchError(f"{case}, {where}: {error}") from None
                for name in MEASURES:
                    rows.setdefault(f"{case}_{where}", {}).setdefault(name, []).append(found[name])
                say(f"round {number + 1} {case} {where}:", *(f"{name} {found[name]:.4g}" for name in MEASURES))
        _figures(report, rows)


def _figures(report: Report, rows: Mapping[str, Mapping[str, list[float]]]) -> None:
    """Ratios are policy on ÷ the other one: 1 is as good, more is better."""
    for case, found in rows.items():
        for name, values in found.items():
            report.put(f"policy_{case}_{name}", statistics.median(values))
    for where in ("remote", "local"):
        for name in MEASURES:
            kind = name.partition("_")[0]
            mine = f"policy_on_{where}_{name}"
            report.put_ratio(f"policy_{where}_{kind}_ratio", mine, f"policy_off_{where}_{name}")
            report.put_ratio(f"policy_{where}_{kind}_vs_ovn_ratio", mine, f"policy_ovn_{where}_{name}")
    report.raw["traffic"] = rows
