"""What rules cost packets: connections per second and the throughput of an open one; policy on, off, and OVN's.

On and off are two networks of one tenant, on the same hosts; OVN has two further hosts of the same lab and rules that
are allow-related. They take turns, with the same MTU, and with as many ports on each host: vswitchd asks all ports in
each round of its main loop, and always in one order, so who is asked soon after whom decides how long an answer waits.
Hence each round has other servers.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import plug
from bench.common import BenchError, Neighbours, Report, say
from bench.connections import FIRST
from bench.inside import Inside
from bench.ovn import Cloud
from bench.ovn_packages import Ovn
from bench.ovn_policy import guard
from bench.streams import End, Times, ready, rr, serving, tcp
from bench.teal import PARENT, TENANT, Teal
from tealnet import kinds
from tealnet.lab import Host, Lab
from tealnet.lab.host import stop
from tealnet.lab.wait import wait_for
from tealnet.v1 import network_pb2, port_pb2

_PROGRAM = [sys.executable, "-I", "-S", str(Path(__file__).with_name("connections.py"))]
_PORT = "7002"
MEASURES = {"connections_per_s": "connections/s", "tcp_gbps": "TCP Gb/s", "rr_per_s": "TCP RR/s"}
_SERVERS = 3  # on each host


@dataclass(slots=True)
class Ends:
    """A client on the first host, servers there and on the second one."""

    client: End
    near: Sequence[End]
    far: Sequence[End]
    source: int = FIRST  # its next port, of any target

    @property
    def servers(self) -> Sequence[End]:
        """All of them."""
        return [*self.near, *self.far]


def connections(ends: Ends, target: End, seconds: float) -> dict[str, float]:
    """connections_per_s, one after the other."""
    words = [*_PROGRAM, "client", target.address, _PORT, str(seconds), str(ends.source)]
    rate, following = ends.client.run(words, seconds=seconds + 20).split()
    ends.source = int(following)
    return {"connections_per_s": float(rate)}


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
    """Ports in a network of their own; the default group lets its members talk."""
    word = network_pb2.Network.Policy.Name(policy).removeprefix("POLICY_").lower()
    cidr = f"10.{96 if word == 'off' else 95}.0.0/24"
    body = network_pb2.Network(cidrs=[cidr], policy=policy, mtu=plug.MTU)
    teal.client.create(kinds.NETWORK, parent=PARENT, ident=word, body=body)

    def end(own: str, number: int) -> End:
        ident = f"{word}-{own}"
        asked = port_pb2.Port(network=f"{PARENT}/networks/{word}", host=f"hosts/{teal.hosts[number].name}")
        port = teal.client.create(kinds.PORT, parent=PARENT, ident=ident, body=asked)
        return End(teal.hosts[number], f"{TENANT}.{ident}", port.addresses[0], port.mac)

    near, far = ([end(f"{own}-{n}", host) for n in range(_SERVERS)] for host, own in enumerate(("near", "far")))
    ends = Ends(end("client", 0), near, far)
    teal.synced()
    return ends


def _theirs(cloud: Cloud, *, ports: int) -> Ends:
    """OVN's, in a group that denies what it does not allow; with others each of its hosts has so many ports."""
    plugs = cloud.make_plugs(2 * (_SERVERS + 1))  # they alternate between the hosts
    cloud.bulk(plugs)
    guard(cloud.central, [one.name for one in plugs], allow=["outport==@pg0 && ip4.src==$pg0_ip4"])
    cloud.bulk(cloud.make_plugs(max(0, 2 * (ports - _ports(cloud.hosts[0])))))
    cloud.settle()
    here, there = (
        [End(host, one.name, one.address, one.mac) for one in plugs[number::2]]
        for number, host in enumerate(cloud.hosts[:2])
    )
    return Ends(here[0], here[1:], there[1:])


def _ports(host: Host) -> int:
    """Of the integration bridge."""
    return len(host.output(["ovs-vsctl", "list-ports", "br-int"]).split())


def run(report: Report, lab: Lab, ovn: Ovn | None, *, neighbours: Neighbours, rounds: int, seconds: int) -> None:
    """All of it on a lab of two hosts."""
    insides = [Inside(host) for host in lab.hosts]
    teal = Teal(lab, insides)
    cases = {"on": _ours(teal, network_pb2.Network.POLICY_ENFORCE), "off": _ours(teal, network_pb2.Network.POLICY_OFF)}
    cloud = Cloud(lab, ovn) if ovn else None
    if cloud is not None:
        cases["ovn"] = _theirs(cloud, ports=max(map(_ports, teal.hosts)))
    try:
        with ExitStack() as servers:
            for end in (end for ends in cases.values() for end in ends.servers):
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
                ends = cases[case]
                client, target = ends.client, (ends.far if where == "remote" else ends.near)[number % _SERVERS]
                try:
                    found = connections(ends, target, seconds) | tcp(client, target, times) | rr(client, target, times)
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
