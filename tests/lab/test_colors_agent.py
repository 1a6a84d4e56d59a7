"""Weights, cuts, naming, restarts under real traffic: real agents and switches, a controller's end that says when."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.lab.traffic import Running
from tests.fakes.controller import uid
from tests.lab.color_rig import BLUE, GREEN, PORT, TWIN, VNI, WEB, WEB_KEY, ColorRig, beside, color_rig
from tests.lab.stand import LINKS
from tests.samples import LONG, samples

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
    async with AsyncExitStack() as stack:

        async def start(word: str, name: str, *rest: str) -> Running:
            return await stack.enter_async_context(beside(rig.workload(name).running(word, address, PORT, *rest)))

        pace = ("--rate", str(rate), "--kind", kind)
        held = {name: await start("hold", name, "--count", "20", "--interval", "0.2") for name in CLIENTS}
        loads = {name: await start("steady", name, str(records[name]), *pace) for name in CLIENTS}
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
    load = traffic(rig, tmp_path, rate=100, address=address, kind=kind)
    async with rig.running(), beside(rig.serving("blue", "green")), load as seen:
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
    async with rig.running(), beside(rig.serving("blue", "green")):
        yield


@pytest.mark.long
@pytest.mark.timeout(360 if LONG else 240)
async def test_pinned_connections_survive_a_switch_and_the_loss_of_conntrack_on_either_side(rig: ColorRig) -> None:
    """Weights have moved on, then vswitchd of the client's host dies, and of the servers': nobody knows the color.

    Agents are restarted as well, and weights moved once more. In `make test-long` a minute lies between two deaths.
    """
    async with calm(rig):
        client = rig.workload("ops1")
        async with beside(client.running("hold", TWIN[0], PORT, "--count", "20", "--interval", "0.2")) as held:
            await rig.split(0, 100)
            async with beside(client.running("hold", TWIN[0], PORT, "--count", "5", "--interval", "0.2")) as green:
                for host in ("h1", "h2", "h3"):
                    await asyncio.to_thread(rig.lab.kill, host, "ovs-vswitchd")
                    await asyncio.to_thread(rig.lab.start, host, "ovs-vswitchd")
                    await rig.pins("ops1", {BLUE: 20, GREEN: 5})
                    await rig.pins("blue", {BLUE: 20})
                    await rig.pins("green", {GREEN: 5})
                    await asyncio.sleep(samples(0, many=60))
                for host in ("h1", "h2", "h3"):
                    await asyncio.to_thread(rig.lab.kill, host, "agent")
                    await asyncio.to_thread(rig.lab.start, host, "agent")
                await rig.split(50, 50)
                await rig.pins("ops1", {BLUE: 20, GREEN: 5})
    assert (held.result["words"], held.result["changed"], held.result["ended"]) == ({"blue": 20}, 0, 0), held.result
    assert (green.result["words"], green.result["changed"], green.result["ended"]) == ({"green": 5}, 0, 0), green.result
    assert held.result["silent"] == green.result["silent"] == 0


async def test_a_cut_ends_tcp_at_both_ends_within_a_second(rig: ColorRig) -> None:
    async with rig.running(), AsyncExitStack() as stack:

        async def start(name: str, word: str, *rest: str) -> Running:
            return await stack.enter_async_context(beside(rig.workload(name).running(word, *rest)))

        await start("green", "answer", PORT, "green")
        blue, own = await start("blue", "answer", PORT, "blue"), await start("ops1", "answer", PORT, "ops1")
        quiet = ("--count", "20", "--interval", "30")
        clients = (("ops1", TWIN[0]), ("ops2", TWIN[1]), ("ops3", TWIN[0]))
        held = [await start(name, "hold", address, PORT, *quiet) for name, address in clients]
        track = await start("blue", "hold", "10.30.0.11", PORT, "--count", "3", "--interval", "0.2")
        began = time.time()
        await rig.split(0, 100, closed=[BLUE])
        asked = await asyncio.to_thread(rig.workload("ops1").probe, "ask", TWIN[0], PORT)
        assert asked["words"] == {"green": 1}
    for run in held:
        assert (run.result["ended"], run.result["words"]) == (20, {"blue": 20}), run.result
        assert began <= run.result["first_end"] <= run.result["last_end"] <= began + 1.0, (began, run.result)
    assert (blue.result["accepted"], blue.result["open"]) == (60, 0), "its ends have noticed, too"
    assert (track.result["ended"], track.result["silent"]) == (0, 0), "what blue has opened itself goes on"
    assert own.result["accepted"] == 3


async def test_a_cut_is_finished_by_the_next_agent(rig: ColorRig) -> None:
    async with rig.running(), AsyncExitStack() as stack:

        async def start(name: str, word: str, *rest: str) -> Running:
            return await stack.enter_async_context(beside(rig.workload(name).running(word, *rest)))

        await start("green", "answer", PORT, "green")
        blue = await start("blue", "answer", PORT, "blue")
        held = await start("ops1", "hold", TWIN[0], PORT, "--count", "20", "--interval", "30")
        await asyncio.to_thread(rig.lab.kill, "h1", "agent")
        rig.want({BLUE: 0, GREEN: 100}, closed=[BLUE])
        await rig.apply("h2", "h3")
        await asyncio.to_thread(rig.lab.start, "h1", "agent")
        await rig.apply("h1")
        asked = await asyncio.to_thread(rig.workload("ops1").probe, "ask", TWIN[0], PORT)
        assert asked["words"] == {"green": 1}
    assert held.result["ended"] == 20 and blue.result["open"] == 0


async def test_udp_leaves_a_closed_color_too(rig: ColorRig) -> None:
    async with calm(rig):
        async with beside(rig.workload("ops1").running("talk", TWIN[0], PORT, "--interval", "0.02")) as talk:
            await asyncio.sleep(0.2)  # some answers each
            await rig.split(0, 100)
            await asyncio.sleep(0.2)
            await rig.split(0, 100, closed=[BLUE])
            await asyncio.sleep(0.5)
        words = [word for word, _ in talk.result["runs"]]
        assert words == ["blue", "green"], talk.result


# -- colors come and go under traffic


async def test_naming_the_base_and_taking_the_name_away_lose_nothing(rig: ColorRig, tmp_path: Path) -> None:
    """Hosts hear of it one after the other, in every order, while connections are open and others are opened."""
    orders = [("h1", "h2", "h3"), ("h3", "h2", "h1"), ("h2", "h3", "h1")]
    async with rig.running():
        rig.want({}, colors=())
        failures = await rig.apply()
        assert not any(failures.values())
        async with beside(rig.serving("blue")), traffic(rig, tmp_path, rate=50) as seen, pinging(rig) as pings:
            for order in orders:
                for colors in ((BLUE,), (BLUE, GREEN), (BLUE,), ()):
                    for host in order:
                        rig.want({BLUE: 100}, colors=colors, hosts=[host])
                        failures = await rig.apply(host)
                        assert not failures[host], failures
                        await asyncio.sleep(0.1)
    assert seen.total("failed") == 0, {name: run.result for name, run in seen.loads.items()}
    for name, run in seen.held.items():
        assert (run.result["changed"], run.result["ended"], run.result["silent"]) == (0, 0, 0), (name, run.result)
    for name, run in pings.items():
        assert run.result["lost"] <= LINKS, (name, run.result)
        assert rig.pinned(name) == {}, "without colors nobody is tracked"


@asynccontextmanager
async def pinging(rig: ColorRig) -> AsyncIterator[dict[str, Running]]:
    """Every client pings the blue server."""
    async with AsyncExitStack() as stack:
        running = {name: rig.workload(name).running("ping", TWIN[0], "--interval", "0.02") for name in CLIENTS}
        yield {name: await stack.enter_async_context(beside(run)) for name, run in running.items()}


# -- instants, counts and questions


async def test_all_hosts_switch_at_one_instant(rig: ColorRig, tmp_path: Path) -> None:
    async with calm(rig), traffic(rig, tmp_path, rate=100) as seen:
        for host in rig.guests:
            rig.server.observe(host, pb.Observe(number=1, interval_ms=200, networks=[bytes.fromhex(uid(WEB))]))
        skews = []
        for number in range(3):
            color = (GREEN, BLUE)[number % 2]
            instant = time.time_ns() + 1_000_000_000
            rig.want({color: 100}, apply_at=instant)
            failures = await rig.apply()
            assert failures == {host: {WEB_KEY: "Armed"} for host in rig.guests}
            armed = [await rig.observed(host, lambda net: net.armed_epoch == rig.epoch) for host in rig.guests]
            assert all(report.clock.uncertainty_ns for report in armed)
            await rig.server.until(lambda: not any(g.ack and g.ack.failures for g in rig.guests.values()), "switched")
            applied = [await rig.observed(host, lambda net: net.epoch == rig.epoch) for host in rig.guests]
            times = [report.networks[0].committed_at for report in applied]
            assert min(times) >= instant and not any(report.networks[0].late for report in applied)
            assert all(report.networks[0].applied_at >= report.networks[0].committed_at for report in applied)
            skews.append((max(times) - min(times)) / 1e6)
    assert seen.total("failed") == 0
    assert sorted(skews)[1] < 20, skews  # ms; one may meet a busy machine


async def test_connections_are_counted_by_color_and_questions_asked_from_inside_it(rig: ColorRig) -> None:
    ask = rig.workload("ops1").probe
    async with rig.running():
        probes = [
            pb.Probe(id=1, kind=pb.Probe.KIND_TCP, vni=VNI[GREEN], port=int(PORT), interval_ms=200, timeout_ms=10_000),
            pb.Probe(id=2, kind=pb.Probe.KIND_ICMP, vni=VNI[GREEN], interval_ms=200, timeout_ms=10_000),
        ]
        # What is left of tests before would end some time in this one.
        await asyncio.to_thread(rig.host("h1").output, ["ovs-appctl", "dpctl/flush-conntrack"])
        wanted = pb.Observe(number=1, interval_ms=200, networks=[bytes.fromhex(uid(WEB))], probes=probes)
        for host in rig.guests:
            rig.server.observe(host, wanted)
        first = await rig.observed("h1", lambda net: not any(color.connections for color in net.colors))
        assert [probe.targets for probe in first.probes] == [0, 0], "nobody green is on h1"
        blue, green = (_color(first.networks[0], color) for color in (BLUE, GREEN))
        hold = rig.workload("ops1").running("hold", TWIN[0], PORT, "--count", "7")
        async with beside(rig.serving("blue")), beside(hold):
            await asyncio.to_thread(ask, "ask", TWIN[0], PORT, "--count", "5")
            report = await rig.observed(
                "h1", lambda net: (_color(net, BLUE).opened - blue.opened, _color(net, BLUE).connections) == (12, 7)
            )
            assert _color(report.networks[0], BLUE).failed == blue.failed
            await rig.split(0, 100)
            refused = (await asyncio.to_thread(ask, "ask", TWIN[0], PORT, "--count", "4"))["words"]
            assert "green" not in refused and sum(refused.values()) == 4
            report = await rig.observed("h1", lambda net: _color(net, GREEN).failed == green.failed + 4)
            assert _color(report.networks[0], GREEN).opened == green.opened + 4
            assert _color(report.networks[0], BLUE).failed == blue.failed
        report = await rig.observed(
            "h3", lambda net: True, lambda probe: probe.tries > 0 and probe.failing == probe.id % 2
        )
        assert report.probes[0].text == "10.11.0.5: connection refused" and report.probes[1].failed == 0
        async with beside(rig.serving("green")):
            await rig.observed("h3", lambda net: True, lambda probe: probe.failing == 0)


def _color(network: pb.NetworkObserved, color: int) -> pb.ColorObserved:
    return next(seen for seen in network.colors if seen.color == color)
