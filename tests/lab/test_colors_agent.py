"""Weights, cuts, naming, restarts under real traffic: real agents and switches, a controller's end that says when."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tealnet.lab.traffic import Running
from tests.lab.color_rig import BLUE, GREEN, PORT, TWIN, ColorRig, color_rig

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

CLIENTS = ("ops1", "ops2", "ops3")


@pytest.fixture(scope="module")
def rig() -> Iterator[ColorRig]:
    with color_rig("t-colors-agent") as made:
        yield made


@dataclass
class Timeline:
    """Which color new connections must have got, from when until when (µs); what begins in between may get either."""

    certain: list[tuple[int, int, str]] = field(default_factory=list)
    _since: tuple[int, str] | None = None

    def changing(self) -> None:
        """From now on it is open."""
        if self._since is not None:
            self.certain.append((self._since[0], now_us(), self._since[1]))
        self._since = None

    def changed(self, color: str) -> None:
        """The last host has said that it is done."""
        self._since = now_us(), color

    def wrong(self, record: Path) -> list[tuple[int, int, str]]:
        """Requests that began when another color was certain."""
        notes = [line.split() for line in record.read_text().splitlines()]
        found, spans = [], iter(sorted(self.certain))
        span = next(spans, None)
        for at, took, word in sorted((int(at), int(took), word) for at, took, word in notes):
            while span is not None and at > span[1]:
                span = next(spans, None)
            if span is not None and span[0] <= at and word != span[2]:
                found.append((at - span[0], took, word))
        return found


def now_us() -> int:
    return time.time_ns() // 1000


@dataclass
class Traffic:
    """Load from every client, and connections that stay open."""

    loads: dict[str, Running]
    held: dict[str, Running]
    records: dict[str, Path]

    def total(self, key: str) -> int:
        return sum(int(run.result[key]) for run in self.loads.values())


@asynccontextmanager
async def traffic(
    rig: ColorRig, tmp_path: Path, *, rate: float, address: str = TWIN[0], kind: str = "tcp"
) -> AsyncIterator[Traffic]:
    """So many requests a second from each client while the block runs, and twenty open connections of each."""
    records = {name: tmp_path / f"{name}.txt" for name in CLIENTS}
    with ExitStack() as stack:
        held = {
            name: stack.enter_context(
                rig.workload(name).running("hold", address, PORT, "--count", "20", "--interval", "0.2")
            )
            for name in CLIENTS
        }
        loads = {
            name: stack.enter_context(
                rig.workload(name).running(
                    "steady", address, PORT, str(records[name]), "--rate", str(rate), "--kind", kind
                )
            )
            for name in CLIENTS
        }
        made = Traffic(loads, held, records)
        await asyncio.sleep(0.3)  # some traffic before anything changes
        yield made


async def flips(rig: ColorRig, count: int) -> tuple[Timeline, list[float]]:
    """Blue and green in turn; how long each took, in ms."""
    timeline, took = Timeline(), []
    timeline.changed("blue")
    for number in range(count):
        color = (GREEN, BLUE)[number % 2]
        timeline.changing()
        began = time.monotonic()
        await rig.split(100 if color == BLUE else 0, 100 if color == GREEN else 0)
        took.append(1000 * (time.monotonic() - began))
        timeline.changed({BLUE: "blue", GREEN: "green"}[color])
        await asyncio.sleep(0.05)  # connections that begin when it is certain
    timeline.changing()
    return timeline, took


@pytest.mark.parametrize(("address", "kind"), [(TWIN[0], "tcp"), (TWIN[1], "tcp"), (TWIN[0], "udp")])
async def test_flips_under_load(rig: ColorRig, tmp_path: Path, address: str, kind: str) -> None:
    async with rig.running():
        with rig.serving("blue", "green"):
            async with traffic(rig, tmp_path, rate=100, address=address, kind=kind) as seen:
                timeline, took = await flips(rig, 20)
    assert seen.total("failed") == 0, {name: run.result for name, run in seen.loads.items()}
    assert seen.total("requests") > 100
    for name, run in seen.held.items():
        assert (run.result["changed"], run.result["ended"], run.result["silent"]) == (0, 0, 0), (name, run.result)
        assert run.result["words"] == {"blue": 20}
    wrong = {name: timeline.wrong(record) for name, record in seen.records.items()}
    assert not any(wrong.values()), (wrong, took)
    words = Counter(word for run in seen.loads.values() for word in run.result["words"])
    assert set(words) == {"blue", "green"}


@asynccontextmanager
async def calm(rig: ColorRig) -> AsyncIterator[None]:
    """Servers, and a client's connections through which traffic goes."""
    async with rig.running():
        with rig.serving("blue", "green"):
            yield


async def test_pinned_connections_survive_a_switch_and_the_loss_of_conntrack_on_either_side(rig: ColorRig) -> None:
    """Weights have moved on, then vswitchd of the client's host dies, and of the server's: only the other knows."""
    async with calm(rig):
        client = rig.workload("ops1")
        with client.running("hold", TWIN[0], PORT, "--count", "20", "--interval", "0.2") as held:
            await rig.split(0, 100)
            with client.running("hold", TWIN[0], PORT, "--count", "5", "--interval", "0.2") as green:
                for host in ("h1", "h2", "h3"):
                    await asyncio.to_thread(rig.lab.kill, host, "ovs-vswitchd")
                    await asyncio.to_thread(rig.lab.start, host, "ovs-vswitchd")
                    await rig.pins("ops1", {BLUE: 20, GREEN: 5})
                    await rig.pins("blue", {BLUE: 20})
                    await rig.pins("green", {GREEN: 5})
    assert (held.result["words"], held.result["changed"], held.result["ended"]) == ({"blue": 20}, 0, 0), held.result
    assert (green.result["words"], green.result["changed"], green.result["ended"]) == ({"green": 5}, 0, 0), green.result
    assert held.result["silent"] == green.result["silent"] == 0


async def test_a_cut_ends_tcp_at_both_ends_within_a_second(rig: ColorRig) -> None:
    async with rig.running():
        with rig.workload("green").running("answer", PORT, "green"), ExitStack() as stack:
            blue = stack.enter_context(rig.workload("blue").running("answer", PORT, "blue"))
            held = [
                stack.enter_context(
                    rig.workload(name).running("hold", address, PORT, "--count", "20", "--interval", "30")
                )
                for name, address in (("ops1", TWIN[0]), ("ops2", TWIN[1]), ("ops3", TWIN[0]))
            ]
            own = stack.enter_context(rig.workload("ops1").running("answer", PORT, "ops1"))
            track = stack.enter_context(
                rig.workload("blue").running("hold", "10.30.0.11", PORT, "--count", "3", "--interval", "0.2")
            )
            began = time.time()
            await rig.split(0, 100, closed=[BLUE])
            done = time.time()
            assert rig.workload("ops1").probe("ask", TWIN[0], PORT)["words"] == {"green": 1}
        for run in held:
            assert (run.result["ended"], run.result["words"]) == (20, {"blue": 20}), run.result
            assert began <= run.result["first_end"] <= run.result["last_end"] <= began + 1.0, (began, done, run.result)
        assert (blue.result["accepted"], blue.result["open"]) == (60, 0), "its ends have noticed, too"
        assert (track.result["ended"], track.result["silent"]) == (0, 0), "what blue has opened itself goes on"
        assert own.result["accepted"] == 3


async def test_a_cut_is_finished_by_the_next_agent(rig: ColorRig) -> None:
    async with rig.running():
        with (
            rig.serving("green"),
            rig.workload("blue").running("answer", PORT, "blue") as blue,
            rig.workload("ops1").running("hold", TWIN[0], PORT, "--count", "20", "--interval", "30") as held,
        ):
            await asyncio.to_thread(rig.lab.kill, "h1", "agent")
            rig.want({BLUE: 0, GREEN: 100}, closed=[BLUE])
            await rig.apply("h2", "h3")
            await asyncio.to_thread(rig.lab.start, "h1", "agent")
            await rig.apply("h1")
            assert rig.workload("ops1").probe("ask", TWIN[0], PORT)["words"] == {"green": 1}
        assert held.result["ended"] == 20 and blue.result["open"] == 0


async def test_udp_leaves_a_closed_color_too(rig: ColorRig) -> None:
    async with calm(rig):
        with rig.workload("ops1").running("talk", TWIN[0], PORT, "--interval", "0.02") as talk:
            await asyncio.sleep(0.2)
            await rig.split(0, 100)
            await asyncio.sleep(0.2)
            await rig.split(0, 100, closed=[BLUE])
            await asyncio.sleep(0.5)
        words = [word for word, _ in talk.result["runs"]]
        assert words == ["blue", "green"], talk.result
