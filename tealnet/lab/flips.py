"""Changes of weights under constant load: who answered which connection, and was that right?

All times are monotonic ns of the one machine that a lab is on: those of clients, and those of calls of the API.
"""

from __future__ import annotations

import base64
import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from tealnet.client import Client
from tealnet.lab.errors import LabError
from tealnet.lab.traffic import Running, Workload
from tealnet.probe.load import RECORD

SLOW = 900_000_000  # ns: a first packet that was lost is sent again after one second


class Answer(NamedTuple):
    """One connection: when it was opened, when it was answered or failed, and the word; failures in parentheses."""

    opened: int
    answered: int
    word: str


@dataclass(frozen=True, slots=True)
class Flip:
    """One change: its call and when that returned, when Sync returned, and the colors with weight from then on.

    `took`: ms that Sync took for the slowest host, as the controller tells it from what agents say.
    """

    called: int
    returned: int
    synced: int
    colors: frozenset[str]
    took: float = 0.0


@dataclass
class Load:
    """Constant load from several workloads.

    After the end: `answers` by workload's name, in order of opening; of all workloads together how many connections
    were opened `late`, because the load itself did not get the processor, and the seconds of it that it used.
    """

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    late: int = 0
    cpu: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of all connections.

    `wrong`: answered by a color that had weight at no instant of the connection's life (a change counts from its call
    until Sync has returned); `judged` are those that no change fell into. `slow`: first packets that were lost, most
    likely. `apply` and `skew` in ms, one for each change that gave weight to a color without: from the call to the last
    client's first answer of that color, and from the first client's to the last's.
    """

    requests: int
    judged: int
    failed: int
    reset: int
    wrong: int
    slow: int
    apply: tuple[float, ...]
    skew: tuple[float, ...]
    odd: tuple[str, ...]  # the first few that are not as they should be, for a person

    def __str__(self) -> str:
        figures = f"{self.requests} requests, {self.failed} failed, {self.reset} reset, {self.wrong} of a wrong color"
        return "; ".join((figures, *self.odd))


def initial(*colors: str) -> Flip:
    """What was before the first change."""
    return Flip(0, 0, 0, frozenset(colors))


def flip(client: Client, weights: Mapping[str, Mapping[str, int]], *, seconds: float = 10.0) -> Flip:
    """Change weights by network through the API and wait for Sync; raises LabError if that is not complete."""
    called = time.monotonic_ns()
    answer = client.set_weights(weights)
    returned = time.monotonic_ns()
    synced = client.sync(answer.revision, timeout=seconds)
    done = time.monotonic_ns()
    if not synced.complete:
        raise LabError(f"not complete: {' '.join(str(synced).split())}")
    colors = {color for network in weights.values() for color, weight in network.items() if weight}
    return Flip(called, returned, done, frozenset(colors), synced.took.ToNanoseconds() / 1e6)


@contextmanager
def loading(
    clients: Sequence[Workload], addresses: Sequence[str], *, port: int, rate: float, kind: str = "tcp"
) -> Iterator[Load]:
    """New connections from all clients meanwhile, `rate` a second in all, to all addresses in turn.

    `kind`: see `tealnet.probe.load`; what has no ports is told apart by its id.
    """
    load = Load()
    running: dict[str, Running] = {}
    with ExitStack() as stack:
        for client in clients:
            words = ("load", str(port), *addresses, "--rate", str(rate / len(clients)), "--kind", kind)
            running[client.name] = stack.enter_context(client.running(*words))
        yield load
    for name, one in running.items():
        load.late += one.result["late"]
        load.cpu += one.result["cpu"]
        words_of: list[str] = one.result["words"]
        found = RECORD.iter_unpack(base64.b64decode(one.result["records"]))
        load.answers[name] = sorted(
            Answer(opened, opened + took * 1000, words_of[word]) for opened, took, word in found
        )


def judge(answers: Mapping[str, Sequence[Answer]], flips: Sequence[Flip]) -> Verdict:
    """Was each connection answered, and by a color that had weight meanwhile? The first flip is `initial`."""
    called, synced = [one.called for one in flips], [one.synced for one in flips]
    requests = judged = failed = reset = wrong = slow = 0
    odd: list[str] = []
    for name, each in answers.items():
        for one in each:
            requests += 1
            slow += one.answered - one.opened > SLOW
            # From the last change that was all over before it began to the last one that began before it ended.
            first, last = bisect_right(synced, one.opened) - 1, bisect_right(called, one.answered)
            judged += last - first == 1
            if one.word.startswith("("):
                failed += 1
                reset += one.word == "(ECONNRESET)"
            elif all(one.word not in change.colors for change in flips[first:last]):
                wrong += 1
            else:
                continue
            if len(odd) < 10:
                after = (one.opened - synced[first]) / 1e6
                odd.append(f"{name}: {one.word}, opened {after:.1f} ms after Sync of change {first} returned")
    spans = [found for number in range(1, len(flips)) if (found := _span(answers, flips, number))]
    return Verdict(
        requests=requests,
        judged=judged,
        failed=failed,
        reset=reset,
        wrong=wrong,
        slow=slow,
        apply=tuple(last for _, last in spans),
        skew=tuple(last - first for first, last in spans),
        odd=tuple(odd),
    )


def _span(answers: Mapping[str, Sequence[Answer]], flips: Sequence[Flip], number: int) -> tuple[float, float] | None:
    """ms from the call of a change to the first client's and to the last client's first answer of a new color."""
    change = flips[number]
    new = change.colors - flips[number - 1].colors
    firsts = [found for each in answers.values() if (found := _first(each, change.called, new))]
    if not new or len(firsts) < len(answers):
        return None
    return (min(firsts) - change.called) / 1e6, (max(firsts) - change.called) / 1e6


def _first(answers: Sequence[Answer], since: int, colors: Collection[str]) -> int:
    """When the first of these colors answered a connection that was opened since then; 0: none did."""
    best = 0
    for number in range(bisect_left(answers, since, key=lambda one: one.opened), len(answers)):
        one = answers[number]
        if best and one.opened > best:
            break
        if one.word in colors and (not best or one.answered < best):
            best = one.answered
    return best


def quantile(values: Collection[float], share: float) -> float:
    """The least value that this share of all does not exceed; nan of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
