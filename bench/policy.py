"""`make bench-policy`: what a group of 1,000 members costs ten hosts, and what rules cost packets; OVN the same way.

    add_member     one more member: its port gets the group
    replace_all    1,000 ports leave the group, 1,000 others join: two calls
    new_rule       one more rule that names the group, on a port of each host

Each is from the call until the last host has applied it. `--real` of the hosts have agents and Open vSwitch, the rest
is simulated: a machine with two processors has none left for ten. With `--real 10` all are real, and what is measured
is how long ten hosts wait for each other's processors. Then connections per second and throughput through two hosts,
with policy, without, and with OVN's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle

from bench import ovn_packages, policy_traffic
from bench.common import BenchError, Neighbours, Number, Report, bounded, say, table
from bench.ovn_packages import Ovn
from bench.ovn_policy import Scale
from bench.policy_plane import Change, Cost, Plane
from tealnet.client import ApiError
from tealnet.lab import Lab, LabError, Parts

SECONDS = 595
LAB = "bench-policy"
KINDS = {
    "add_member": "one member more",
    "replace_all": "all members replaced",
    "new_rule": "one rule more",
}


def ours(report: Report, arguments: argparse.Namespace, neighbours: Neighbours) -> None:
    """Ten hosts, of which some are real."""
    real = min(arguments.real, arguments.hosts)
    simulated = arguments.hosts - real
    report.put("hosts_real", real, 0)
    report.put("hosts_simulated", simulated, 0)
    if simulated:
        report.remark(
            f"{real} of {arguments.hosts} hosts have agents and Open vSwitch; {simulated} are simulated: they take "
            f"what they are sent and acknowledge it at once"
        )
    with Lab.up(LAB, hosts=real, note=say) as lab:
        plane = Plane(lab, members=arguments.members, simulated=simulated)
        try:
            plane.rule()
            plane.synced()
            # The same ports on the same hosts: once one of them is in the group, then all are.
            plane.join()
            plane.synced()
            before, rules_before = max(map(len, plane.flows())), plane.rule_flows()
            plane.fill()
            after, rules_after = max(map(len, plane.flows())), plane.rule_flows()
            report.put("flows_per_host_with_one_member", before, 0)
            report.put("flows_per_host_with_all_members", after, 0)
            report.put("rule_flows_per_member", (rules_after - rules_before) / (arguments.members - 1), 4)
            say(f"flows of a host: {before} with one member, {after} with all; of rules {rules_before}, {rules_after}")
            plane.spare(arguments.members)
            for kind, change, times in (
                ("add_member", plane.join, arguments.repetitions),
                ("new_rule", plane.rule, arguments.repetitions),
                ("replace_all", plane.replace, arguments.replacements),
            ):
                found = []
                for _ in range(times):
                    neighbours.wait_quiet(seconds=2)
                    found.append(one := plane.measure(change))
                    say(f"{kind}: call {one.call:.1f} ms, last host {one.total:.1f} ms, CPU {one.cpu:.1f} ms/host")
                _figures(report, kind, found, plane.cost(change))
        finally:
            plane.close()


def _figures(report: Report, kind: str, changes: Sequence[Change], cost: Cost) -> None:
    report.put_stat(f"{kind}_call", [one.call for one in changes], unit="ms")
    report.put_stat(f"{kind}_last_host", [one.total for one in changes], unit="ms")
    report.put_stat(f"{kind}_cpu_of_host", [one.cpu for one in changes], unit="ms")
    report.put(f"{kind}_flows_touched_per_host", cost.flows, 0)
    report.put(f"{kind}_bytes_per_host", cost.sent, 0)
    report.raw[f"{kind}_ms"] = [one.total for one in changes]


def theirs(report: Report, ovn: Ovn, arguments: argparse.Namespace, neighbours: Neighbours) -> None:
    """As many hosts with ovn-controllers, all real, alone on the machine as ours were."""
    with Lab.up(LAB, hosts=0, parts=Parts.SWITCH, note=say) as lab:
        scale = Scale(lab, ovn, hosts=arguments.hosts, members=arguments.members)
        try:
            scale.rule()
            scale.set_addresses(0, 1)
            report.put("ovn_flows_per_host_with_one_member", scale.flows(), 0)
            scale.set_addresses(0, arguments.members)
            report.put("ovn_flows_per_host_with_all_members", scale.flows(), 0)
            added = iter(range(arguments.members, 2 * arguments.members))
            firsts = cycle((arguments.members, 0))  # one half of the ports, then the other
            for kind, change, times in (
                ("add_member", lambda: scale.add_address(next(added)), arguments.repetitions),
                ("new_rule", scale.rule, arguments.replacements),
                ("replace_all", lambda: scale.set_addresses(next(firsts), arguments.members), arguments.replacements),
            ):
                values = []
                for _ in range(times):
                    neighbours.wait_quiet(seconds=2)
                    values.append(scale.measure(change))
                    say(f"OVN {kind}: last host {values[-1]:.1f} ms")
                report.put_stat(f"ovn_{kind}_last_host", values, unit="ms")
                report.raw[f"ovn_{kind}_ms"] = values
        finally:
            scale.close()


def run(report: Report, arguments: argparse.Namespace) -> None:
    """The whole benchmark; no lab is left at the end."""
    ovn = None
    if not arguments.no_ovn:
        try:
            ovn = replace(ovn_packages.find(), as_packaged=arguments.ovn_as_packaged)
        except ovn_packages.NoOvn as error:
            report.remark(f"OVN is left out: {error}")
    neighbours = Neighbours()
    try:
        if not arguments.no_plane:
            ours(report, arguments, neighbours)
            if ovn is not None:
                theirs(report, ovn, arguments, neighbours)
            for kind in KINDS:
                report.put_ratio(f"{kind}_vs_ovn_ratio", f"{kind}_last_host_p50_ms", f"ovn_{kind}_last_host_p50_ms")
        if not arguments.no_traffic:
            with Lab.up(LAB, hosts=2, note=say) as lab:
                how = {"neighbours": neighbours, "rounds": arguments.rounds, "seconds": arguments.seconds}
                policy_traffic.run(report, lab, ovn, **how)
    finally:
        report.put("others_cores", neighbours.others(1.0), 2)
        neighbours.close()


def print_table(report: Report) -> None:
    """Both tables."""
    figures = report.figures

    def cell(name: str, digits: int = 1) -> str:
        return f"{figures[name]:.{digits}f}" if name in figures else "–"

    rows = [
        (
            text,
            cell(f"{kind}_last_host_p50_ms"),
            cell(f"{kind}_last_host_p95_ms"),
            cell(f"{kind}_flows_touched_per_host", 0),
            cell(f"{kind}_bytes_per_host", 0),
            cell(f"ovn_{kind}_last_host_p50_ms"),
        )
        for kind, text in KINDS.items()
    ]
    table("Until the last host has it (ms)", ("", "median", "95 %", "flows/host", "bytes/host", "OVN"), rows)
    counts: list[tuple[str, Number | str, Number | str]] = [
        (f"flows per host with {word}", cell(f"flows_per_host_with_{name}", 0),
         cell(f"ovn_flows_per_host_with_{name}", 0))
        for word, name in (("one member", "one_member"), ("all members", "all_members"))
    ]  # fmt: skip
    table("What a host holds", ("", "Tealnet", "OVN"), counts)
    traffic = []
    for where in ("remote", "local"):
        for name, text in policy_traffic.MEASURES.items():
            kind = name.partition("_")[0]
            values = [cell(f"policy_{case}_{where}_{name}", 2) for case in ("on", "off", "ovn")]
            ratios = [cell(f"policy_{where}_{kind}_{ratio}", 2) for ratio in ("ratio", "vs_ovn_ratio")]
            traffic.append((f"{where}: {text}", *values, *ratios))
    table("What rules cost packets (medians)", ("", "on", "off", "OVN", "on ÷ off", "on ÷ OVN"), traffic)


def main() -> int:
    """Exit code 0, or 1 with the reason."""
    parser = argparse.ArgumentParser(prog="make bench-policy", description=__doc__)
    parser.add_argument("--hosts", type=int, default=10)
    parser.add_argument("--real", type=int, default=2, help="of the hosts have agents and Open vSwitch")
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=20, help="of what is one member or one rule")
    parser.add_argument("--replacements", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5, help="of traffic")
    parser.add_argument("--seconds", type=int, default=2, help="of each kind of traffic")
    parser.add_argument("--no-ovn", action="store_true", help="leave OVN out")
    parser.add_argument(
        "--ovn-as-packaged",
        action="store_true",
        help="OVN's vswitchd without deploy/ovs-vswitchd.conf, as Debian starts it",
    )
    parser.add_argument("--no-plane", action="store_true", help="traffic only")
    parser.add_argument("--no-traffic", action="store_true", help="members and rules only")
    arguments = parser.parse_args()
    report = Report("policy", vars(arguments))
    code = 0
    try:
        with bounded(SECONDS):
            run(report, arguments)
    except (BenchError, LabError, ApiError) as error:
        say(f"error: {error}")
        code = 1
    if report.figures:
        print_table(report)
        print(f"figures: {report.write()}")
    return code


if __name__ == "__main__":
    sys.exit(main())
