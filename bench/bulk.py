"""`make bench-bulk`: 200 workloads over 2 hosts at once, until each has reached the other host; OVN takes turns."""

from __future__ import annotations

import argparse
import sys

from bench import ovn_packages
from bench.common import BenchError, Neighbours, Report, bounded, say, table
from bench.inside import Inside
from bench.ovn import Cloud
from bench.teal import Teal
from tealnet.client import ApiError
from tealnet.lab import Lab, LabError

SECONDS = 540
LAB = "bench-bulk"


def run(report: Report, *, workloads: int, repetitions: int, with_ovn: bool) -> None:
    """The whole benchmark; the lab is gone at the end."""
    ovn = None
    if with_ovn:
        try:
            ovn = ovn_packages.find()
        except ovn_packages.NoOvn as error:
            report.remark(f"OVN is left out: {error}")
    neighbours = Neighbours()
    try:
        with Lab.up(LAB, hosts=2, note=say) as lab:
            insides = [Inside(host) for host in lab.hosts]
            teal = Teal(lab, insides)
            cloud = Cloud(lab, ovn) if ovn else None
            try:
                _rounds(report, neighbours, teal, cloud, workloads=workloads, repetitions=repetitions)
            finally:
                for part in (teal, cloud, *insides):
                    if part is not None:
                        part.close()
    finally:
        neighbours.close()


def _rounds(
    report: Report, neighbours: Neighbours, teal: Teal, cloud: Cloud | None, *, workloads: int, repetitions: int
) -> None:
    ours: dict[str, list[float]] = {"call": [], "cards": [], "total": []}
    theirs: dict[str, list[float]] = {"intent": [], "ports": [], "cards": [], "total": []}
    for number in range(repetitions):
        neighbours.wait_quiet(seconds=5)
        one = teal.bulk(workloads)
        say(f"ours {number + 1}: call {one.call:.2f} s, cards {one.cards:.2f} s, all reached {one.total:.2f} s")
        for step in ours:
            ours[step].append(getattr(one, step))
        if cloud:
            neighbours.wait_quiet(seconds=5)
            plugs = cloud.make_plugs(workloads)
            other = cloud.bulk(plugs)
            cloud.remove(plugs)
            say(f"OVN {number + 1}: ports {other.ports:.2f} s, cards {other.cards:.2f} s, reached {other.total:.2f} s")
            for step in theirs:
                theirs[step].append(getattr(other, step))
        _figures(report, ours, theirs, workloads=workloads)


def _figures(report: Report, ours: dict[str, list[float]], theirs: dict[str, list[float]], *, workloads: int) -> None:
    for name, rows in (("bulk", ours), ("ovn_bulk", theirs)):
        for step, values in rows.items():
            report.put_stat(name if step == "total" else f"{name}_{step}", values, unit="s")
        if rows["total"]:
            report.put(f"{name}_per_workload_ms", report.figures[f"{name}_p50_s"] * 1000 / workloads, 2)
    report.put_ratio("bulk_vs_ovn_ratio", "bulk_p50_s", "ovn_bulk_p50_s")
    report.raw.update(bulk_s=ours, ovn_s=theirs)


def print_table(report: Report) -> None:
    """Seconds by system."""
    rows = []
    for name, text, steps in (
        ("bulk", "Tealnet", ("call", "cards")),
        ("ovn_bulk", "OVN", ("intent", "cards")),
    ):
        if f"{name}_p50_s" in report.figures:
            cells = [report.figures[f"{name}_{step}_p50_s"] for step in steps]
            totals = [report.figures[f"{name}_{what}_s"] for what in ("min", "p50", "p95")]
            rows.append((text, *(f"{value:.2f}" for value in (*cells, *totals))))
    table("Many workloads at once (s)", ("", "committed", "cards ready", "all reached: min", "median", "p95"), rows)


def main() -> int:
    """Exit code 0, or 1 with the reason."""
    parser = argparse.ArgumentParser(prog="make bench-bulk", description=__doc__)
    parser.add_argument("--workloads", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--no-ovn", action="store_true", help="leave OVN out")
    arguments = parser.parse_args()
    report = Report("bulk", {"workloads": arguments.workloads, "repetitions": arguments.repetitions, "hosts": 2})
    code = 0
    try:
        with bounded(SECONDS):
            run(
                report,
                workloads=arguments.workloads,
                repetitions=arguments.repetitions,
                with_ovn=not arguments.no_ovn,
            )
    except (BenchError, LabError, ApiError) as error:
        say(f"error: {error}")
        code = 1
    if report.figures:
        print_table(report)
        print(f"figures: {report.write()}")
    return code


if __name__ == "__main__":
    sys.exit(main())
