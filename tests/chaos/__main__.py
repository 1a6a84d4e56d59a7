"""Random histories of operations and faults, judged: `python -m tests.chaos [--minutes M] [--seed sim:N|lab:N]`.

First the simulation, then a lab (root). Seeds are fresh unless given; each that fails is printed with what happened and
how to run it again. Exit code 1 if any did.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Iterator

from tests.chaos.pool import repeatable, verdicts
from tests.chaos.simulation import Verdict

SHARE = 0.4  # of the time, for the simulation


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="chaos")
    parser.add_argument("--minutes", type=float, default=12.0, help="how long; what has begun is ended")
    parser.add_argument("--seed", default="", help="one history again: sim:N or lab:N")
    parser.add_argument("--only", choices=("sim", "lab"), help="only the simulation, or only the lab")
    parser.add_argument("--most", type=int, default=1_000_000, help="histories of the simulation at most")
    given = parser.parse_args()
    repeatable()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was begun is taken down
    fresh = random.SystemRandom().randrange(1, 1_000_000_000)
    began, seconds = time.monotonic(), given.minutes * 60
    where, _, number = given.seed.partition(":")
    if number:
        return _lab(iter([int(number)]), time.monotonic()) if where == "lab" else _again(int(number))
    failed = 0
    if given.only != "lab":
        share = 1.0 if given.only == "sim" else SHARE
        failed += _simulation(fresh, until=began + seconds * share, most=given.most)
    if given.only != "sim":
        failed += _lab(itertools.count(fresh), began + seconds)
    return 1 if failed else 0


def _simulation(first: int, *, until: float, most: int) -> int:
    print(f"simulation: seeds from {first} on", flush=True)
    workers, began = os.cpu_count() or 1, time.monotonic()
    seeds = iter(range(first, first + most))
    found: list[Verdict] = []
    for verdict in verdicts(seeds, workers=workers, more=lambda: time.monotonic() < until):
        found.append(verdict)
        _show(verdict)
    bad = [verdict for verdict in found if verdict.wrong]
    times = sorted(verdict.settled for verdict in found)
    calls, done = sum(v.calls for v in found), sum(v.acknowledged for v in found)
    print(
        f"simulation: seeds {first} to {first + len(found) - 1} in {time.monotonic() - began:.0f} s, "
        f"{len(found)} histories, {calls} calls, {done} acknowledged, "
        f"{sum(v.lasted for v in found) / 3600:.1f} h of virtual time; as it is to be after the last fault: "
        f"p50 {times[len(times) // 2]:.2f}, p99 {times[int(len(times) * 0.99)]:.2f} s (virtual); {len(bad)} failed",
        flush=True,
    )
    return len(bad)


def _again(seed: int) -> int:
    for verdict in verdicts(iter([seed]), workers=1, more=lambda: True):
        _show(verdict)
        if not verdict.wrong:
            print(f"sim:{seed} passed: {verdict.calls} calls, {verdict.acknowledged} acknowledged")
        return 1 if verdict.wrong else 0
    return 1


def _show(verdict: Verdict) -> None:
    if verdict.wrong:
        print("\n".join(verdict.trace))
        print(f"\nFAILED sim:{verdict.seed}, run it again with SEED=sim:{verdict.seed}")
        for line in verdict.wrong:
            print(f"  {line}")
        sys.stdout.flush()


def _lab(seeds: Iterator[int], until: float) -> int:
    from tests.chaos.histories import histories
    from tests.chaos.rig import rig
    from tests.chaos.settling import distribution

    bad, settled = 0, []
    with rig("chaos") as stand:
        for outcome in histories(stand, seeds, until=until):
            settled.append(outcome.settling)
            lost = "/".join(str(ping["lost"]) for ping in outcome.pings)
            sent = "/".join(str(ping["sent"]) for ping in outcome.pings)
            print(
                f"lab:{outcome.seed} {'gentle' if outcome.gentle else 'rough'}: {outcome.calls} calls, "
                f"{outcome.acknowledged} acknowledged, {outcome.faults} faults, "
                f"as it is to be after {outcome.settling.seconds:.1f} s (others took "
                f"{outcome.settling.others:.0%} of the processors), pings lost {lost} of {sent}, connections broken "
                f"{sum(stream['ended'] for stream in outcome.streams)}",
                flush=True,
            )
            if outcome.wrong:
                bad += 1
                print("\n".join(outcome.trace))
                print(f"\nFAILED lab:{outcome.seed}, run it again with SEED=lab:{outcome.seed}")
                for line in outcome.wrong:
                    print(f"  {line}")
                sys.stdout.flush()
            elif outcome.settling.is_late:
                print("\n".join(outcome.trace), flush=True)
    distribution(settled, say=print)
    return bad


if __name__ == "__main__":
    sys.exit(main())
