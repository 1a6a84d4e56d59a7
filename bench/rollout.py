"""`make bench-rollout`: all traffic flipped between two colors, again and again, under constant load; every one judged.

Three hosts, each with one server of a web service in blue, its twin in green, and a client in a shared network. The
clients open connections at a constant rate whatever becomes of them, and hold some open across all flips. A flip is a
SetWeights and a Sync of its revision; from then until the next call no connection may be answered by the other color.

`--kind`, `--family`: connections are TCP, single datagrams or echo requests, each of them new, over IPv4 or IPv6.
Datagrams are remembered for 300 s, 20,000 per port (the agent's ct_zone_limit): no client may send more in one run.
`--megaflows`: so many cached flows on each host that every flip has the switch look through. `--at-once`: each flip is
a rollout whose hosts switch at one instant (apply_at); its skew counts, its time from the call has the lead in it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

from bench.common import BenchError, Neighbours, Report, bounded, ms, say, table
from bench.fill import fill, megaflows
from bench.waits import Waits
from tealnet import kinds
from tealnet.client import ApiError
from tealnet.lab import Lab, LabError, api
from tealnet.lab.flips import Flip, Verdict, flip, initial, judge, loading, quantile
from tealnet.lab.service import BLUE, GREEN, PORT, Service
from tealnet.lab.traffic import Running
from tealnet.lab.wait import wait_for
from tealnet.probe.load import KINDS
from tealnet.v1 import rollout_pb2

LAB = "bench-rollout"
HOSTS = 3
BLOCK = 100  # flips of one run of the load: its records are judged and let go
HELD = 20  # connections of each client that stay open
LEAD = 2.5  # seconds between the call and the instant; in half of it all hosts must have said that they hold it


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for. `rate`: connections a second of all clients; `pause`: seconds between Sync and the next."""

    flips: int
    rate: float
    pause: float
    kind: str
    family: int
    megaflows: int
    filled: int
    at_once: bool


@dataclass
class Found:
    """Over all blocks."""

    blocks: list[Verdict] = field(default_factory=list)
    flips: list[Flip] = field(default_factory=list)
    seconds: float = 0.0
    held: int = 0
    changed: int = 0
    ended: int = 0
    silent: int = 0
    late: int = 0
    told: list[float] = field(default_factory=list)  # ms of skew as hosts tell it, with `at_once`
    cached: list[int] = field(default_factory=list)  # flows on the host that has fewest, before each flip
    numbers: Iterator[int] = field(default_factory=count)
    tasks: Path | None = None
    waits: dict[str, tuple[float, float]] = field(default_factory=dict)  # of the last block, see `Waits`

    def total(self, name: str) -> int:
        """A figure of the verdicts, added up."""
        return sum(getattr(block, name) for block in self.blocks)

    def odd(self) -> list[str]:
        """What is not as it should be, a few of each block."""
        return [line for block in self.blocks for line in block.odd]


def run(report: Report, plan: Plan) -> None:
    """The whole benchmark; the lab is gone at the end."""
    neighbours = Neighbours()
    try:
        with Lab.up(LAB, hosts=HOSTS, note=say) as lab, api.client(lab.context) as client:
            service = Service(lab, client, tenant="shop")
            service.build()
            service.bring_up(GREEN)
            found = Found(tasks=neighbours.group / "tasks" if neighbours.group else None)
            with service.serving(BLUE), service.serving(GREEN), _held(service, found, color=BLUE):
                _block(service, found, plan, flips=min(BLOCK, plan.flips))
                with _held(service, found, color=_color(found)):
                    while len(found.flips) < plan.flips:
                        _block(service, found, plan, flips=min(BLOCK, plan.flips - len(found.flips)))
                        _figures(report, found)
                if plan.megaflows:
                    report.figures["megaflows"] = min(found.cached)
            _figures(report, found)
            report.put("neighbours_cores", neighbours.others())
    finally:
        neighbours.close()


def _color(found: Found) -> str:
    (color,) = found.flips[-1].colors if found.flips else (BLUE,)
    return color


def _block(service: Service, found: Found, plan: Plan, *, flips: int) -> None:
    """So many flips under load."""
    changes = [initial(_color(found))]
    addresses = service.addresses if plan.family == 4 else service.addresses6
    with loading(service.clients(), addresses, port=PORT, rate=plan.rate, kind=plan.kind) as load:
        began, waits = time.monotonic(), Waits(found.tasks) if found.tasks else None
        time.sleep(plan.pause)
        for _ in range(flips):
            (color,) = changes[-1].colors
            other = GREEN if color == BLUE else BLUE
            if plan.megaflows:  # each flip ends those that look at colors
                fill(service, plan.megaflows, hosts=plan.filled)
                time.sleep(plan.pause)
                found.cached.append(min(megaflows(host) for host in service.lab.hosts[: plan.filled]))
            if plan.at_once:
                changes.append(_roll(service, found, other))
            else:
                changes.append(flip(service.client, {service.web: {other: 1}}))
            time.sleep(plan.pause)  # the time in which requests are held against this flip
        found.seconds += time.monotonic() - began
        if waits is not None:
            found.waits = waits.cores()
    found.flips += changes[1:]
    found.late += load.late
    verdict = judge(load.answers, changes)
    found.blocks.append(verdict)
    say(f"{len(found.flips)} flips: {verdict}")


def _told(service: Service, name: str) -> bool:
    """Whether all hosts have said when they switched."""
    return len(service.client.get(name).status.steps[0].hosts) == HOSTS


def _roll(service: Service, found: Found, color: str) -> Flip:
    """A flip as a rollout of one step, at one instant. Raises LabError if it does not go that way."""
    client, ident = service.client, f"flip-{next(found.numbers)}"
    name = f"{service.parent}/rollouts/{ident}"
    plan = rollout_pb2.Rollout(networks=[service.web], target=color)
    plan.steps.add(weights={color: 1})
    plan.apply_at.lead.FromNanoseconds(int(LEAD * 1e9))
    called = time.monotonic_ns()
    client.create(kinds.ROLLOUT, parent=service.parent, ident=ident, body=plan)
    returned = time.monotonic_ns()
    over = (rollout_pb2.Rollout.STATE_SUCCEEDED, rollout_pb2.Rollout.STATE_ROLLED_BACK)
    wait_for(lambda: client.get(name).state in over, seconds=30, what=name, every=0.1)
    service.synced()
    synced = time.monotonic_ns()
    wait_for(
        lambda: len(client.get(name).status.steps[0].hosts) == HOSTS, seconds=10, what="times of all hosts", every=0.1
    )
    done = client.get(name)
    if done.state != rollout_pb2.Rollout.STATE_SUCCEEDED or any(one.reason == "NotArmed" for one in done.history):
        raise LabError(f"not switched at one instant: {' '.join(str(done).split())}")
    found.told.append(done.status.steps[0].skew.ToNanoseconds() / 1e6)
    client.delete(name)
    return Flip(called, returned, synced, frozenset({color}))


@contextmanager
def _held(service: Service, found: Found, *, color: str) -> Iterator[None]:
    """Connections that stay open meanwhile, to a color that has all weight now."""
    running: list[Running] = []
    with ExitStack() as stack:
        for client in service.clients():
            words = (service.addresses[0], str(PORT), "--count", str(HELD), "--interval", "0.2")
            running.append(stack.enter_context(client.running("hold", *words)))
        yield
    for one in running:
        found.held += HELD
        found.changed += one.result["changed"] + HELD - one.result["words"].get(color, 0)
        found.ended += one.result["ended"]
        found.silent += one.result["silent"]


def _figures(report: Report, found: Found) -> None:
    report.figures["flips"] = len(found.flips)
    for name in ("requests", "failed", "reset", "slow"):
        report.figures[name] = found.total(name)
    report.figures["wrong_color"] = found.total("wrong")
    report.figures["judged"] = found.total("judged")
    for name in ("held", "changed", "ended", "silent"):
        key = {"held": "held_connections", "changed": "color_changed"}.get(name, f"held_{name}")
        report.figures[key] = getattr(found, name)
    report.figures["load_late"] = found.late
    report.put("requests_per_s", found.total("requests") / found.seconds, 0)
    times = {
        "call": [(one.returned - one.called) / 1e6 for one in found.flips],
        "sync": [(one.synced - one.returned) / 1e6 for one in found.flips],
        "agents": [one.took for one in found.flips],
        "apply": [value for block in found.blocks for value in block.apply],
        "skew": [value for block in found.blocks for value in block.skew],
        "told_skew": found.told,
    }
    times = {name: values for name, values in times.items() if values}
    for name, values in times.items():
        for share in (50, 99):
            report.put(f"{name}_p{share}_ms", quantile(values, share / 100), 2)
    for name, (running, waiting) in found.waits.items():
        report.put(f"{name}_cores", running)
        report.put(f"{name}_wait_cores", waiting)
    report.raw.update({f"{name}_ms": [round(value, 2) for value in values] for name, values in times.items()})
    report.raw["odd"] = found.odd()


def print_table(report: Report) -> None:
    """What became of the connections, and how long flips took."""
    figures = report.figures
    names = ("flips", "requests", "requests_per_s", "judged", "failed", "reset", "wrong_color", "slow")
    rest = ("held_connections", "color_changed", "held_ended", "held_silent")
    table("Flips under load", ("", "count"), [(name, figures[name]) for name in (*names, *rest)])
    meaning = {
        "call": "the call returns",
        "sync": "then Sync returns",
        "agents": "Sync, as the controller tells it",
        "apply": "call → the last client's first new color",
        "skew": "first → last client's first new color",
        "told_skew": "the same by hosts' clocks, as rollouts record it",
    }
    rows = [
        (text, ms(figures[f"{name}_p50_ms"]), ms(figures[f"{name}_p99_ms"]))
        for name, text in meaning.items()
        if f"{name}_p50_ms" in figures
    ]
    table("Time (ms)", ("", "p50", "p99"), rows)
    programs = [name.removesuffix("_wait_cores") for name in figures if name.endswith("_wait_cores")]
    rows = [(name, f"{figures[f'{name}_cores']:.2f}", f"{figures[f'{name}_wait_cores']:.2f}") for name in programs]
    table("Processors (threads at a time)", ("", "running", "waiting for one"), rows)


def main() -> int:
    """Exit code 0, or 1 with the reason, also if anything that must be 0 is not."""
    parser = argparse.ArgumentParser(prog="make bench-rollout", description=__doc__)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=1050.0, help="connections a second, of all clients")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between Sync and the next flip")
    parser.add_argument("--kind", choices=KINDS, default="tcp")
    parser.add_argument("--family", type=int, choices=(4, 6), default=4)
    parser.add_argument("--megaflows", type=int, default=0, help="cached flows on each host, beside those of the load")
    parser.add_argument("--filled", type=int, default=HOSTS, help="on so many hosts only, the others have few")
    parser.add_argument("--at-once", action="store_true", help="hosts switch at one instant")
    plan = Plan(**vars(parser.parse_args()))
    report = Report("rollout", {**asdict(plan), "hosts": HOSTS, "held_per_client": HELD})
    code = 0
    try:
        with bounded(180 + plan.flips * (5 if plan.at_once else 2)):
            run(report, plan)
    except (BenchError, LabError, ApiError) as error:
        say(f"error: {error}")
        code = 1
    if report.figures:
        print_table(report)
        print(f"figures: {report.write()}")
    bad = [name for name in ("failed", "reset", "wrong_color", "color_changed") if report.figures.get(name)]
    if bad:
        say(f"error: not 0: {', '.join(bad)}; raw.odd in the figures says where")
        code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
