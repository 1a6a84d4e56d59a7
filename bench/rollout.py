"""`make bench-rollout`: all traffic flipped between two colors, again and again, under constant load; every one judged.

Three hosts, each with one server of a web service in blue, its twin in green, and a client in a shared network. The
clients open connections at a constant rate whatever becomes of them, and hold some open across all flips. A flip is a
SetWeights and a Sync of its revision; from then until the next call no connection may be answered by the other color.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from bench.common import BenchError, Neighbours, Report, bounded, ms, say, table
from tealnet.client import ApiError
from tealnet.lab import Lab, LabError, api
from tealnet.lab.flips import Flip, Verdict, flip, initial, judge, loading, quantile
from tealnet.lab.service import BLUE, GREEN, PORT, Service
from tealnet.lab.traffic import Running

LAB = "bench-rollout"
HOSTS = 3
BLOCK = 100  # flips of one run of the load: its records are judged and let go
HELD = 20  # connections of each client that stay open


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

    def total(self, name: str) -> int:
        """A figure of the verdicts, added up."""
        return sum(getattr(block, name) for block in self.blocks)

    def odd(self) -> list[str]:
        """What is not as it should be, a few of each block."""
        return [line for block in self.blocks for line in block.odd]


def run(report: Report, *, flips: int, rate: float, pause: float) -> None:
    """The whole benchmark; the lab is gone at the end."""
    neighbours = Neighbours()
    try:
        with Lab.up(LAB, hosts=HOSTS, note=say) as lab, api.client(lab.context) as client:
            service = Service(lab, client, tenant="shop")
            service.build()
            service.bring_up(GREEN)
            found = Found()
            with service.serving(BLUE), service.serving(GREEN), _held(service, found, color=BLUE):
                first = min(BLOCK, flips)
                _block(service, found, flips=first, rate=rate, pause=pause)
                with _held(service, found, color=_color(found)):
                    while len(found.flips) < flips:
                        left = min(BLOCK, flips - len(found.flips))
                        _block(service, found, flips=left, rate=rate, pause=pause)
                        _figures(report, found)
            _figures(report, found)
            report.put("neighbours_cores", neighbours.others())
    finally:
        neighbours.close()


def _color(found: Found) -> str:
    (color,) = found.flips[-1].colors if found.flips else (BLUE,)
    return color


def _block(service: Service, found: Found, *, flips: int, rate: float, pause: float) -> None:
    """So many flips under load."""
    changes = [initial(_color(found))]
    with loading(service.clients(), service.addresses, port=PORT, rate=rate) as load:
        began = time.monotonic()
        time.sleep(pause)
        for _ in range(flips):
            (color,) = changes[-1].colors
            changes.append(flip(service.client, {service.web: {GREEN if color == BLUE else BLUE: 1}}))
            time.sleep(pause)  # the time in which requests are held against this flip
        found.seconds += time.monotonic() - began
    found.flips += changes[1:]
    verdict = judge(load.answers, changes)
    found.blocks.append(verdict)
    say(f"{len(found.flips)} flips: {verdict}")


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
    report.put("requests_per_s", found.total("requests") / found.seconds, 0)
    times = {
        "call": [(one.returned - one.called) / 1e6 for one in found.flips],
        "sync": [(one.synced - one.returned) / 1e6 for one in found.flips],
        "agents": [one.took for one in found.flips],
        "apply": [value for block in found.blocks for value in block.apply],
        "skew": [value for block in found.blocks for value in block.skew],
    }
    for name, values in times.items():
        for share in (50, 99):
            report.put(f"{name}_p{share}_ms", quantile(values, share / 100), 2)
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
    }
    rows = [(text, ms(figures[f"{name}_p50_ms"]), ms(figures[f"{name}_p99_ms"])) for name, text in meaning.items()]
    table("Time (ms)", ("", "p50", "p99"), rows)


def main() -> int:
    """Exit code 0, or 1 with the reason, also if anything that must be 0 is not."""
    parser = argparse.ArgumentParser(prog="make bench-rollout", description=__doc__)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=1050.0, help="connections a second, of all clients")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between Sync and the next flip")
    arguments = parser.parse_args()
    parameters = {"rate_per_s": arguments.rate, "pause_s": arguments.pause, "hosts": HOSTS, "held_per_client": HELD}
    report = Report("rollout", {"flips": arguments.flips, **parameters})
    code = 0
    try:
        with bounded(120 + arguments.flips * 2):
            run(report, flips=arguments.flips, rate=arguments.rate, pause=arguments.pause)
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
