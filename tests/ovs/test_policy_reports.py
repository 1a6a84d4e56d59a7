"""What the controller hears of rules: counters of real flows, and whom a real switch has denied."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog.testing

from agent import tell
from agent.pipeline import Feature
from agent.policy.counters import Counters
from agent.tell import RuleTeller
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.security import Action, Direction, Mode, Ports, Position, Remote, Tier
from tests.ovs import datagrams
from tests.ovs.guarded import Guarded, ends
from tests.ovs.policies import rule, rules
from tests.ovs.sandbox import DEADLINE, Sandbox, as_agent

pytestmark = pytest.mark.ovs

WEB, DB = 301, 302
OUT = rule(1000, Direction.EGRESS)
HTTP = rule(1001, Direction.INGRESS, protocol=17, ports=(Ports(80, 80),), remote=Remote((WEB,), ()))
NOT_81 = rule(1002, Direction.INGRESS, action=Action.DENY, protocol=17, ports=(Ports(81, 81),))
DREAM = rule(1003, Direction.INGRESS, action=Action.DENY, mode=Mode.SHADOW, protocol=17, ports=(Ports(80, 80),))


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    with Sandbox() as ovs:
        host = Guarded(ovs)
        host.plug(2, identity=WEB)
        host.plug(3, identity=DB)
        tiers = (Tier(Position.ABOVE, (DREAM,)), Tier(Position.ABOVE, (NOT_81,)))
        host.put(rules(WEB, OUT), rules(DB, HTTP, OUT, above=tiers))
        yield host


class Heard:
    """Reports as the controller keeps them."""

    def __init__(self) -> None:
        self.counts: dict[tuple[int, int, int], pb.RuleCount] = {}
        self.denials: list[pb.Denial] = []
        self.wholes = 0

    def send(self, name: str, message: pb.FromAgent) -> None:
        report = message.rule_report
        if report.whole:
            self.wholes += 1
            self.counts.clear()
        self.counts |= {(c.identity, c.direction, c.rule): c for c in report.counts}
        self.denials += report.denials

    async def until(self, condition: object) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():  # type: ignore[operator]  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@asynccontextmanager
async def teller(guarded: Guarded, path: Path) -> AsyncIterator[tuple[RuleTeller, Heard]]:
    heard = Heard()
    async with as_agent(guarded.ovs) as driver:
        made = RuleTeller(
            guarded.inputs,
            Counters(path),
            stats=lambda: driver.counts(Feature.SECURITY),
            send=heard.send,
            heard=lambda: True,
        )
        driver.on_packet = made.shown
        running = asyncio.create_task(made.run())
        try:
            yield made, heard
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_counters_and_denials_are_told_while_somebody_asks(guarded: Guarded, tmp_path: Path) -> None:
    await guarded.load()
    ingress, egress = pb.RULE_DIRECTION_INGRESS, pb.RULE_DIRECTION_EGRESS
    async with teller(guarded, tmp_path / "counters") as (tells, heard):
        tells.want(pb.WantRuleReport(seconds=30))
        await heard.until(lambda: heard.wholes)
        assert {(i, d, r) for i, d, r in heard.counts} == {
            (WEB, ingress, 0), (WEB, egress, 0), (WEB, egress, 1000),
            (DB, ingress, 0), (DB, ingress, 1001), (DB, ingress, 1002), (DB, ingress, 1003),
            (DB, egress, 0), (DB, egress, 1000),
        }  # fmt: skip
        assert heard.counts[DB, ingress, 1001].flows == 2
        for _ in range(3):
            await guarded.send((2, datagrams.udp(ends(2, 3), (5000, 80), data=b"question")))
        await guarded.send((3, datagrams.udp(ends(3, 2), (80, 5000), data=b"answer")))
        await guarded.send((2, datagrams.udp(ends(2, 3), (5000, 81))), (2, datagrams.udp(ends(2, 3), (5000, 82))))
        await heard.until(lambda: heard.counts[DB, ingress, 0].packets and heard.counts[DB, ingress, 1001].packets == 4)
        counted = heard.counts[DB, ingress, 1001]
        assert (counted.connections, counted.packets, counted.bytes) == (1, 4, 3 * 50 + 48)
        assert heard.counts[DB, ingress, 1002].connections == heard.counts[DB, ingress, 0].connections == 1
        assert heard.counts[DB, ingress, 1003].shadow_hits == 1
        assert heard.counts[DB, ingress, 1003].packets == 0
        await heard.until(lambda: len(heard.denials) >= 3)
        by_port = {denial.target_port: denial for denial in heard.denials}
        assert {port: (d.rule, d.mode) for port, d in by_port.items()} == {
            80: (1003, pb.RULE_MODE_SHADOW), 81: (1002, pb.RULE_MODE_ENFORCE), 82: (0, pb.RULE_MODE_ENFORCE),
        }  # fmt: skip
        denial = by_port[81]
        assert (denial.port_uid, denial.remote_uid) == (bytes(15) + b"\3", bytes(15) + b"\2")
        assert (denial.identity, denial.remote_identity, denial.direction) == (DB, WEB, ingress)
        assert (denial.protocol, denial.source_port, denial.count) == (17, 5000, 1)
        assert (denial.source, denial.target) == (ends(2, 3)[0].packed, ends(2, 3)[1].packed)


async def test_a_denial_is_logged_and_told_unasked(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tell, "UNASKED_EVERY", 0.05)
    await guarded.load()
    async with teller(guarded, tmp_path / "counters") as (_, heard):
        with structlog.testing.capture_logs() as lines:
            await guarded.send((2, datagrams.udp(ends(2, 3), (5000, 81))))
            await heard.until(lambda: heard.denials)
        (line,) = [line for line in lines if line["event"] == "denied"]
        assert (line["port"], line["remote_port"]) == ("tenants/acme/ports/web-3", "tenants/acme/ports/web-2")
        assert (line["rule"], line["protocol"], line["target_port"]) == ("web/1002", "udp", 81)
        assert [(d.rule, d.target_port) for d in heard.denials] == [(1002, 81)]
        assert not heard.counts


async def test_counters_never_go_back(guarded: Guarded, tmp_path: Path) -> None:
    await guarded.load()
    key = DB, pb.RULE_DIRECTION_INGRESS, 1001
    async with teller(guarded, tmp_path / "counters") as (tells, heard):
        await guarded.send((2, datagrams.udp(ends(2, 3), (5000, 80))))
        tells.want(pb.WantRuleReport(seconds=30))
        await heard.until(lambda: heard.counts and heard.counts[key].packets == 1)
        guarded.ovs.ofctl("del-flows", "br-int")  # written again, they begin at zero
        await guarded.load()
        await heard.until(lambda: not any(packets for packets, _ in tells._counters._seen.values()))
        await guarded.forget()
        await guarded.send((2, datagrams.udp(ends(2, 3), (5001, 80))))
        await heard.until(lambda: heard.counts[key].packets == 2)
        tells._counters.save()
    async with teller(guarded, tmp_path / "counters") as (tells, heard):  # the next process
        tells.want(pb.WantRuleReport(seconds=30))
        await heard.until(lambda: heard.wholes)
        assert heard.counts[key].packets == 2
