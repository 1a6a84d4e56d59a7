"""`make bench-attach`: from the API call to the first ping of a workload on the other host, at 10 and at 500 ports.

Ours, the hand-written floor (on the same two vswitchds) and OVN (on two more hosts of the same lab) take turns, so
that whatever else the machine does meets all of them alike. Afterwards, where each millisecond of ours goes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from bench import ovn_packages
from bench.common import BenchError, Neighbours, Report, bounded, ms, say, table
from bench.floor import Floor
from bench.inside import Inside
from bench.ovn import Cloud
from bench.plug import Way
from bench.teal import GUARDED, Teal
from bench.trace import LAYERS, Trace, moments
from tealnet.client import ApiError
from tealnet.lab import Lab, LabError

SECONDS = 600
LAB = "bench-attach"
SYSTEMS = {
    "attach": "Tealnet",
    "attach_guarded": "Tealnet, guarded by rules (the default)",
    "floor": "by hand, no control plane",
    "floor_lean": "by hand, lean",
    "ovn": "OVN",
    "ovn_lean": "OVN, lean plug-in",
}


OURS = ("attach", "attach_guarded")


@dataclass
class Attach:
    """The benchmark under way."""

    report: Report
    neighbours: Neighbours
    teal: Teal
    floor: Floor
    cloud: Cloud | None
    patience: float  # seconds that a repetition waits for quiet neighbours

    def case(self, ports: int, repetitions: int) -> None:
        """All systems with so many existing ports, one after the other, again and again."""
        say(f"{ports} ports: ours after {self.teal.fill(ports):.1f} s")
        if self.cloud:
            say(f"{ports} ports: OVN after {self.cloud.fill(ports):.1f} s")
        rows: dict[str, list[float]] = {name: [] for name in SYSTEMS}
        raw: dict[str, list[dict[str, float]]] = {name: [] for name in SYSTEMS}
        others = []
        self._turn()  # warms up
        for number in range(repetitions):
            others.append(self.neighbours.wait_quiet(seconds=self.patience))
            for name, steps in self._turn(number).items():
                rows[name].append(steps["total"])
                raw[name].append({step: round(at, 2) for step, at in steps.items()})
        self._figures(ports, rows)
        self.report.raw[f"steps_{ports}_ms"] = raw
        self.report.put(f"others_{ports}_cores", statistics.median(others))

    def _turn(self, number: int = 0) -> dict[str, dict[str, float]]:
        """Each system once: ms from the start at which each step was done.

        Another one begins each time: who comes after a pause, or after one of its own kind, has it harder or easier.
        """
        systems: dict[str, Callable[[], dict[str, float]]] = {
            "attach": lambda: self.teal.attach().steps(),
            "floor": lambda: asdict(self.floor.attach(Way.USUAL)),
            "attach_guarded": lambda: self.teal.attach(GUARDED).steps(),
            "floor_lean": lambda: asdict(self.floor.attach(Way.LEAN)),
        }
        if (cloud := self.cloud) is not None:
            systems["ovn"] = lambda: asdict(cloud.attach(Way.USUAL))
            systems["ovn_lean"] = lambda: asdict(cloud.attach(Way.LEAN))
        names = ["attach", "floor", "ovn", "attach_guarded", "floor_lean", "ovn_lean"]
        names = [name for name in names if name in systems]
        first = number % len(names)
        return {name: systems[name]() for name in (*names[first:], *names[:first])}

    def _figures(self, ports: int, rows: dict[str, list[float]]) -> None:
        for name, values in rows.items():
            self.report.put_stat(f"{name}_{ports}", values, unit="ms")
            if name not in OURS:
                for ours in OURS:
                    ratio, below = f"{ours}_{ports}_vs_{name}_ratio", f"{name}_{ports}_p50_ms"
                    self.report.put_ratio(ratio, f"{ours}_{ports}_p50_ms", below)

    def breakdown(self, ports: int, repetitions: int) -> None:
        """Where each millisecond goes, with agents that note the moments."""
        rows: list[dict[str, float]] = []
        with self.teal.debugging():
            trace = Trace(self.teal.hosts[0].disk("/var/log/tealnet") / "agent.log")
            self.teal.attach()
            for _ in range(repetitions):
                self.neighbours.wait_quiet(seconds=self.patience)
                trace.events()
                one = self.teal.attach()
                found = moments(trace.events(), started=one.started, ended=one.started + one.total / 1000)
                rows.append({**found, "call": one.call, "card": one.card, "arp": one.arp, "ping": one.total})
        steps = sorted({step for row in rows for step in row})
        medians = {step: statistics.median(row[step] for row in rows if step in row) for step in steps}
        for step, value in medians.items():
            self.report.put(f"step_{ports}_{step}_ms", value, 2)
        _print_breakdown(ports, medians)


def _print_breakdown(ports: int, medians: dict[str, float]) -> None:
    named = [
        ("commit: CreatePort has returned", "call", ""),
        ("stream: the unit has arrived", "received", ""),
        ("unit is on disk and derived", "taken", ""),
        *((f"layer {layer}", f"{layer}_end", layer) for layer in LAYERS),
        ("the workload's card has its address", "card", ""),
        ("ARP answered", "arp", ""),
        ("first ping answered", "ping", ""),
    ]
    lines = []
    for text, at, layer in sorted((line for line in named if line[1] in medians), key=lambda line: medians[line[1]]):
        cells = [medians.get(f"{layer}_{what}") for what in ("begin", "busy", "read")]
        lines.append((text, ms(medians[at]), *("" if value is None else ms(value) for value in cells)))
    table(f"Where the time goes at {ports} ports (medians, ms)", ("", "done at", "begun at", "busy", "reading"), lines)


def run(report: Report, *, counts: list[int], repetitions: int, with_ovn: bool, patience: float) -> None:
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
            floor = Floor(lab.hosts, insides)
            cloud = Cloud(lab, ovn) if ovn else None
            bench = Attach(report, neighbours, teal, floor, cloud, patience)
            try:
                for count in counts:
                    bench.case(count, repetitions)
                    bench.breakdown(count, min(repetitions, 10))
            finally:
                for part in (teal, floor, cloud, *insides):
                    if part is not None:
                        part.close()
    finally:
        neighbours.close()


def print_table(report: Report, counts: list[int]) -> None:
    """Times by system."""
    figures = report.figures
    rows = []
    for count in counts:
        for name, text in SYSTEMS.items():
            values = [figures.get(f"{name}_{count}_{what}_ms") for what in ("min", "p50", "p95")]
            if values[1] is not None:
                ratio = figures[f"attach_{count}_p50_ms"] / values[1]
                rows.append((f"{count} ports: {text}", *(ms(v) for v in values if v is not None), f"{ratio:.2f}"))
    table("From the call to the first ping (ms)", ("", "min", "median", "p95", "Tealnet ÷"), rows)


def main() -> int:
    """Exit code 0, or 1 with the reason."""
    parser = argparse.ArgumentParser(prog="make bench-attach", description=__doc__)
    parser.add_argument("--ports", default="10,500", help="numbers of existing ports")
    parser.add_argument("--repetitions", type=int, default=25)
    parser.add_argument("--patience", type=float, default=3.0, help="seconds to wait for quiet neighbours, each time")
    parser.add_argument("--no-ovn", action="store_true", help="leave OVN out")
    arguments = parser.parse_args()
    counts = [int(word) for word in arguments.ports.split(",")]
    report = Report("attach", {"ports": counts, "repetitions": arguments.repetitions})
    code = 0
    try:
        with bounded(SECONDS):
            run(
                report,
                counts=counts,
                repetitions=arguments.repetitions,
                with_ovn=not arguments.no_ovn,
                patience=arguments.patience,
            )
    except (BenchError, LabError, ApiError) as error:
        say(f"error: {error}")
        code = 1
    if report.figures:
        print_table(report, counts)
        print(f"figures: {report.write()}")
    return code


if __name__ == "__main__":
    sys.exit(main())
