"""How new connections are shared out: thousands of real ones, counted in conntrack, against what was asked."""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

import pytest

from agent.drivers.unixctl import unixctl, unixctl_each
from agent.pipeline import ROUTER_MAC, Flag, key_of
from tealnet.core.rows.colors import SLOTS, Affinity, slots
from tests.ovs import packets
from tests.ovs.colors import BLUE, BLUE7, DOMAIN, GREEN, OPS1, WEB, WEB_UID, ZONE, ColorWire, weights
from tests.ovs.sandbox import DEADLINE, Sandbox
from tests.samples import samples

pytestmark = [pytest.mark.ovs, pytest.mark.long]

CONNECTIONS = samples(10_000, many=40_000)
QUEUE = 80  # packets that a dummy port holds (100); it reads one at a time
SEED = 4711  # of the source ports


@pytest.fixture(scope="module")
def wire() -> Iterator[ColorWire]:
    with Sandbox(dummy="") as ovs:
        yield ColorWire(ovs, local=["ops1"])


@pytest.fixture
def a(wire: ColorWire) -> ColorWire:
    wire.reset()
    return wire


def opened(wire: ColorWire, ports: Sequence[int]) -> Counter[int]:
    """One datagram from each of these source ports of ops1 to web7; which colors they got."""
    source, target = OPS1.addresses[0], BLUE7.addresses[0]
    frames = [packets.frame(OPS1.mac, ROUTER_MAC, packets.udp(source, target, (port, 80))).hex() for port in ports]

    async def send() -> None:
        control = wire.ovs.vswitchd_ctl()
        before = await received(control)
        for at in range(0, len(frames), QUEUE):
            part = [("ops1", frame) for frame in frames[at : at + QUEUE]]
            await unixctl_each(control, "netdev-dummy/receive", part)
            async with asyncio.timeout(DEADLINE):
                while await received(control) < before + at + len(part):
                    pass

    asyncio.run(send())
    return Counter(wire.marks(ZONE["ops1"]))


async def received(control: str) -> int:
    """How many packets the datapath has dealt with."""
    found = re.search(r"packets received: (\d+)", await unixctl(control, "dpif-netdev/pmd-stats-show"))
    assert found
    return int(found[1])


def is_likely(count: int, total: int, share: float) -> bool:
    """A binomial test with p ≥ 10⁻⁶, by the normal distribution."""
    return abs(count - total * share) <= 4.9 * math.sqrt(total * share * (1 - share))


@pytest.mark.parametrize("percent", [1, 10, 50, 5, 25][: samples(3, many=5)])
def test_canary_weights(a: ColorWire, percent: int) -> None:
    a.split(WEB, 100 - percent, percent)
    ports = random.Random(SEED + percent).sample(range(1, 65536), CONNECTIONS)
    marks = opened(a, ports)
    assert set(marks) == {BLUE, GREEN} and marks.total() == CONNECTIONS
    (_, share) = slots([100 - percent, percent])
    assert is_likely(marks[GREEN], CONNECTIONS, share / SLOTS), marks
    assert abs(marks[GREEN] / CONNECTIONS - percent / 100) <= 0.01
    # A change of weights moves none of them, whether they are silent or go on.
    a.split(WEB, 0, 100)
    assert opened(a, ports[:500]) == marks


def test_few_cached_flows_whatever_the_number_of_connections(a: ColorWire) -> None:
    """The time that a switch takes is that of looking through them."""

    def cached(blue: int, green: int) -> int:
        a.split(WEB, blue, green)
        a.forget()
        a.ovs.appctl("dpctl/del-flows")
        assert opened(a, range(1, 2001)).total() == 2000
        return len(a.ovs.appctl("dpctl/dump-flows").splitlines())

    assert cached(100, 0) < 20
    assert cached(50, 50) < 20 + 2 * 16
    assert cached(95, 5) < 20 + 2 * SLOTS


@pytest.mark.parametrize("affinity", Affinity)
def test_while_a_network_is_uncached_no_two_connections_share_a_cached_flow(a: ColorWire, affinity: Affinity) -> None:
    """What makes several networks change color at one instant (agent/uncached.py)."""
    a.inputs.weights.put(WEB_UID, weights(WEB, 100, 0, affinity=affinity))
    for before, at_least, at_most in ((weights(WEB, 0, 100), 300, 320), (None, 1, 20)):
        a.inputs.uncached.put(WEB_UID, before)
        a.load()
        a.forget()
        a.ovs.appctl("dpctl/del-flows")
        assert opened(a, range(1, 301)) == {BLUE: 300}
        assert at_least <= len(a.ovs.appctl("dpctl/dump-flows").splitlines()) <= at_most


def test_a_source_keeps_its_color(a: ColorWire) -> None:
    a.inputs.weights.put(WEB_UID, weights(WEB, 50, 50, affinity=Affinity.SOURCE))
    a.load()
    assert len(opened(a, range(1, 201))) == 1


@pytest.mark.parametrize("family", [4, 6])
def test_sources_are_shared_out_by_slots(a: ColorWire, family: int) -> None:
    """The choice by source address alone, from COLOR on as `ofproto/trace` sees it, for a thousand addresses."""
    a.inputs.weights.put(WEB_UID, weights(WEB, 90, 10, affinity=Affinity.SOURCE))
    a.load()
    target = BLUE7.addresses[family == 6]
    kind, field = ("udp", "nw_src") if family == 4 else ("udp6", "ipv6_src")
    base = int(ip_address("10.30.0.0" if family == 4 else "fd30::"))
    key = ",".join(f"reg{n}={key_of(target) >> 96 - 32 * n & 0xFFFFFFFF:#x}" for n in range(4))
    state = f"in_port=10,{kind},{key},reg13={int(Flag.NEW_FROM):#x},metadata={DOMAIN:#x}"
    flows = [f"{state},{field}={ip_address(base + number * 7)}" for number in range(1000)]
    control = a.ovs.vswitchd_ctl()
    arguments = [("br-int", flow, "resubmit(,35)") for flow in flows]
    traces = asyncio.run(unixctl_each(control, "ofproto/trace-packet-out", arguments))
    to = [f"set_field:{color << 32:#x}/0xff00000000->metadata" for color in (BLUE, GREEN)]
    found = [sum(words in str(trace) for trace in traces) for words in to]
    assert sum(found) == 1000, traces[0]
    (_, share) = slots([90, 10])
    assert is_likely(found[1], 1000, share / SLOTS), found
