"""`make bench-dataplane`: TCP, small packets and round trips through our flows and through a minimal set-up by hand.

By hand means: a bridge on the same vswitchds with one flow per known MAC and a VXLAN port, static neighbours, nothing
else. All take turns of a second or two; ratios are those of medians, turned so that 1 is "as good" and more is better.
Processor time says more than speed where the machine has other things to do.
Also counted: flows per remote address, and what a host gets to know of a tenant without ports there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from bench import plug
from bench.common import BenchError, Neighbours, Report, bounded, say, table
from bench.floor import BRIDGE, VNI, bridge_words
from bench.inside import Inside
from bench.ovsdb import Switch
from bench.plug import Plug
from bench.streams import KINDS, End, Times, serving
from bench.teal import GUARDED, NETWORK, PARENT, TENANT, Teal
from tealnet import kinds
from tealnet.client import ApiError
from tealnet.lab import Host, Lab, LabError
from tealnet.v1 import network_pb2, port_pb2, tenant_pb2


@dataclass(frozen=True, slots=True)
class Measure:
    """A row of the table and the name of its ratio."""

    text: str
    ratio: str
    less_is_better: bool = False


SECONDS = 590
LAB = "bench-dataplane"
MTU = 1430  # what our networks have
MEASURES = {
    "tcp_gbps": Measure("TCP Gb/s", "tcp"),
    "tcp_cpu_s_per_gb": Measure("vswitchd s per GB of TCP", "tcp_cpu", less_is_better=True),
    "udp_pps": Measure("UDP packets/s", "udp"),
    "udp_cpu_us_per_packet": Measure("vswitchd µs per UDP packet", "udp_cpu", less_is_better=True),
    "rtt_us": Measure("ping µs", "rtt", less_is_better=True),
    "rr_per_s": Measure("TCP RR/s", "rr"),
}
REMOTE_ADDRESSES = 50
# Ours as what it is compared with, without conntrack; and with rules, for which each packet passes it once or twice.
PREFIXES = {"tealnet": "", "guarded": "guarded_"}

Ends = tuple[End, End, End]  # client on h1, server on h1, server on h2


def by_hand(hosts: Sequence[Host], insides: Sequence[Inside]) -> Ends:
    """Workloads and two flows per host on a bridge of their own."""
    plugs = [Plug(insides[n], f"pl-{k}", f"10.96.0.{k + 1}", mtu=MTU) for k, n in enumerate((0, 0, 1))]
    for number, host in enumerate(hosts):
        tunnel = "options:remote_ip=flow options:key=flow"
        host.output(["ovs-vsctl", "--timeout=60", *bridge_words(host, tunnel=tunnel, fail_mode="secure")])
        mine = [one for one in plugs if one.inside is insides[number]]
        insides[number].do(partial(plug.make, mine))
        switch = Switch(host, BRIDGE)
        switch.add([(one.device, "") for one in mine])
        switch.caught_up()
        switch.db.close()
        other = hosts[1 - number]
        far = f"set_field:{VNI}->tun_id,set_field:{other.vtep}->tun_dst,output:vx"
        flows = [f"dl_dst={one.mac},actions={f'output:{one.device}' if one in mine else far}" for one in plugs]
        for flow in flows:
            host.output(["ovs-ofctl", "add-flow", BRIDGE, flow])
    ends = [End(hosts[0 if one.inside is insides[0] else 1], one.name, one.address, one.mac) for one in plugs]
    for end in ends:
        for other_end in ends:
            if other_end is not end:
                words = f"ip neigh replace {other_end.address} lladdr {other_end.mac} dev eth0 nud permanent"
                end.run(words.split(), seconds=10)
    return ends[0], ends[1], ends[2]


def ours(teal: Teal, network: str) -> Ends:
    """Three ports through the API."""
    ends = []
    prefix = network.rpartition("/")[2]
    for ident, number in ((f"{prefix}-client", 0), (f"{prefix}-near", 0), (f"{prefix}-far", 1)):
        port = teal.create(ident, number, network)
        ends.append(End(teal.hosts[number], f"{TENANT}.{ident}", port.addresses[0], port.mac))
    teal.synced()
    return ends[0], ends[1], ends[2]


def count_flows(report: Report, teal: Teal) -> None:
    """What one more remote address costs, and a tenant without ports here."""
    before = teal.flows(0)
    request = port_pb2.BatchCreatePortsRequest(parent=PARENT)
    for number in range(REMOTE_ADDRESSES):
        port = port_pb2.Port(network=f"{PARENT}/networks/net", host="hosts/h2")
        request.requests.add(parent=PARENT, port_id=f"r-{number}", port=port)
    teal.client.call(teal.client.ports.BatchCreatePorts, request)
    teal.synced()
    report.put("flows_per_remote_address", (teal.flows(0) - before) / REMOTE_ADDRESSES, 2)
    before = teal.flows(0)
    teal.client.create(kinds.TENANT, ident="elsewhere", body=tenant_pb2.Tenant())
    body = network_pb2.Network(cidrs=["10.97.0.0/16"])
    teal.client.create(kinds.NETWORK, parent="tenants/elsewhere", ident="net", body=body)
    for number in range(5):
        port = port_pb2.Port(network="tenants/elsewhere/networks/net", host="hosts/h2")
        teal.client.create(kinds.PORT, parent="tenants/elsewhere", ident=f"p-{number}", body=port)
    teal.synced()
    report.put("flows_of_a_tenant_without_ports_here", teal.flows(0) - before, 0)
    teal.remove([f"{PARENT}/ports/r-{number}" for number in range(REMOTE_ADDRESSES)])
    teal.client.delete("tenants/elsewhere", force=True)
    teal.synced()


def run(report: Report, *, rounds: int, times: Times) -> None:
    """The whole benchmark; the lab is gone at the end."""
    neighbours = Neighbours()
    try:
        with Lab.up(LAB, hosts=2, note=say) as lab:
            insides = [Inside(host) for host in lab.hosts]
            teal = Teal(lab, insides)
            try:
                count_flows(report, teal)
                cases = {
                    "tealnet": ours(teal, NETWORK),
                    "guarded": ours(teal, GUARDED),
                    "plain": by_hand(lab.hosts, insides),
                }
                with ExitStack() as servers:
                    for _, near, far in cases.values():
                        servers.enter_context(serving(near))
                        servers.enter_context(serving(far))
                    _rounds(report, neighbours, cases, rounds=rounds, times=times)
            finally:
                teal.close()
                for inside in insides:
                    inside.close()
    finally:
        neighbours.close()


def _rounds(report: Report, neighbours: Neighbours, cases: dict[str, Ends], *, rounds: int, times: Times) -> None:
    """Short measurements in turns: what disturbs one case most likely disturbs the next one, too."""
    rows: dict[tuple[str, str], dict[str, list[float]]] = {}
    for number in range(rounds):
        neighbours.wait_quiet(seconds=5)
        for where in ("remote", "local"):
            for kind in KINDS:
                # Who goes first changes from round to round.
                for case in sorted(cases, reverse=bool(number % 2)):
                    client, near, far = cases[case]
                    for name, value in kind(client, far if where == "remote" else near, times).items():
                        rows.setdefault((case, where), {}).setdefault(name, []).append(value)
            for case in cases:
                last = {name: values[-1] for name, values in rows[case, where].items()}
                say(f"round {number + 1} {case} {where}:", *(f"{name} {value:.4g}" for name, value in last.items()))
        _figures(report, rows)


def _figures(report: Report, rows: dict[tuple[str, str], dict[str, list[float]]]) -> None:
    for (case, where), found in rows.items():
        for name in MEASURES:
            report.put(f"{case}_{where}_{name}", statistics.median(found[name]))
    for where in ("remote", "local"):
        for name, measure in MEASURES.items():
            for case, prefix in PREFIXES.items():
                above, below = f"{case}_{where}_{name}", f"plain_{where}_{name}"
                if measure.less_is_better:
                    above, below = below, above
                report.put_ratio(f"{prefix}{where}_{measure.ratio}_ratio", above, below)
    report.raw["rounds"] = {f"{case} {where}": found for (case, where), found in rows.items()}


def print_table(report: Report) -> None:
    """Medians side by side."""
    rows = []
    for where in ("remote", "local"):
        for name, measure in MEASURES.items():
            if (through_us := report.figures.get(f"tealnet_{where}_{name}")) is not None:
                cells = [through_us, *(report.figures[f"{case}_{where}_{name}"] for case in ("guarded", "plain"))]
                ratios = [report.figures[f"{prefix}{where}_{measure.ratio}_ratio"] for prefix in PREFIXES.values()]
                numbers = (*(f"{cell:.4g}" for cell in cells), *(f"{ratio:.3f}" for ratio in ratios))
                rows.append((f"{where}: {measure.text}", *numbers))
    head = ("", "Tealnet", "with rules", "by hand", "ratio", "with rules")
    table("Through our flows and through two flows by hand (medians)", head, rows)
    for name in ("flows_per_remote_address", "flows_of_a_tenant_without_ports_here"):
        if name in report.figures:
            print(f"{name.replace('_', ' ')}: {report.figures[name]:g}")


def main() -> int:
    """Exit code 0, or 1 with the reason."""
    parser = argparse.ArgumentParser(prog="make bench-dataplane", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tcp", type=int, default=2, help="seconds of TCP")
    parser.add_argument("--udp", type=int, default=2, help="seconds of UDP")
    arguments = parser.parse_args()
    report = Report("dataplane", {**vars(arguments), "mtu_bytes": MTU, "udp_payload_bytes": 18})
    code = 0
    try:
        with bounded(SECONDS):
            run(report, rounds=arguments.rounds, times=Times(tcp=arguments.tcp, udp=arguments.udp))
    except (BenchError, LabError, ApiError) as error:
        say(f"error: {error}")
        code = 1
    if report.figures:
        print_table(report)
        print(f"figures: {report.write()}")
    return code


if __name__ == "__main__":
    sys.exit(main())
