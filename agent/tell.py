"""Tells the controller what rules have counted, while it asks, and whom they have denied: a few also unasked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog

from agent.drivers.base import DeviceUnavailable
from agent.inputs import Inputs
from agent.openflow.errors import ProtocolError
from agent.policy.counters import DIRECTIONS, Counters, Stats
from agent.policy.denial_log import DenialLog
from agent.policy.denials import Denials, Denied, parse
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.parse import Address
from tealnet.core.rows.security import Mode

log = structlog.get_logger()

ASKED_EVERY, UNASKED_EVERY = 1.0, 10.0  # seconds between looks at the counters
LONGEST = 60.0  # seconds
UNASKED = 10  # denials that one look tells without being asked
WAITING = 8  # reports that may wait to be sent; with the next one the first is lost
MODES = {Mode.ENFORCE: pb.RULE_MODE_ENFORCE, Mode.SHADOW: pb.RULE_MODE_SHADOW}


class RuleTeller:
    """`shown` hears the packets that the switch shows; `want` what the controller asks for.

    `heard()`: somebody hears what is sent.
    """

    def __init__(
        self,
        inputs: Inputs,
        counters: Counters,
        *,
        stats: Callable[[], Awaitable[Stats]],
        send: Callable[[str, pb.FromAgent], None],
        heard: Callable[[], bool] = lambda: False,
    ) -> None:
        self.denials = Denials()
        self._log = DenialLog(inputs)
        self._inputs, self._counters, self._stats, self._send, self._heard = inputs, counters, stats, send, heard
        self._until = 0.0
        self._whole = False
        self._number = 0
        self._wake = asyncio.Event()

    def want(self, wanted: pb.WantRuleReport | None) -> None:
        """Asked for reports, for a while; None: there is no session."""
        seconds = min(wanted.seconds, LONGEST) if wanted is not None else 0
        self._until = asyncio.get_running_loop().time() + seconds
        self._whole = wanted is not None and seconds > 0
        self._wake.set()

    def shown(self, body: bytes) -> None:
        """A packet that was denied."""
        denied = parse(body)
        if denied is not None:
            self.denials.add(denied, now=time.time_ns())
            self._log.add(denied)

    async def run(self) -> None:
        """Look again and again, for ever."""
        self._counters.load()
        saved = 0.0
        loop = asyncio.get_running_loop()
        while True:
            asked = self._until > loop.time()
            try:
                async with asyncio.timeout(ASKED_EVERY if asked and not self._whole else UNASKED_EVERY):
                    if not self._whole:
                        await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            self._log.flush()
            try:
                await self._look()
            except (DeviceUnavailable, ProtocolError):
                await asyncio.sleep(ASKED_EVERY)  # the switch comes back, and so do we
                continue
            if loop.time() - saved >= UNASKED_EVERY:
                saved = loop.time()
                try:
                    await asyncio.to_thread(self._counters.save)
                except OSError as error:
                    log.warning("counters of rules are not saved", error=str(error))

    async def _look(self) -> None:
        self._counters.update(dict(self._inputs.rules.rows), await self._stats())
        if self._until <= asyncio.get_running_loop().time():
            self._whole = False
            if self._heard():
                self._tell(pb.RuleReport(), most=UNASKED)
            return
        whole = self._whole or self._counters.gone()
        self._whole = False
        self._tell(pb.RuleReport(whole=whole, counts=self._counters.all() if whole else self._counters.changed()))

    def _tell(self, report: pb.RuleReport, most: int | None = None) -> None:
        """Send a report with what was denied, at most so many: the others stay for who asks."""
        ports = {ofport: uid for uid, ofport in self._inputs.issued.rows.items()}
        denied = [(each, count, at) for each, count, at in self.denials.take(most) if each.ofport in ports]
        ends = self._ends() if denied else {}
        for each, count, at in sorted(denied, key=lambda item: item[2]):
            report.denials.append(_denial(each, count, at, uid=ports[each.ofport], ends=ends))
        report.denials_lost, self.denials.lost = self.denials.lost, 0
        if report.whole or report.counts or report.denials or report.denials_lost:
            self._number = (self._number + 1) % WAITING  # each has what the others have not
            self._send(f"rule-report-{self._number}", pb.FromAgent(rule_report=report))

    def _ends(self) -> Mapping[tuple[int, bytes], str]:
        """Endpoints by domain and address."""
        out: dict[tuple[int, bytes], str] = {}
        for uid, endpoint in self._inputs.endpoints.rows.items():
            segment = self._inputs.segments.rows.get(endpoint.vni)
            addresses: tuple[Address, ...] = endpoint.addresses if segment is not None else ()
            out.update({(segment.domain, address.packed): uid for address in addresses if segment is not None})
        return out


def _denial(denied: Denied, count: int, at: int, *, uid: str, ends: Mapping[tuple[int, bytes], str]) -> pb.Denial:
    packet = denied.packet
    mine = {owner for owner in (ends.get((denied.domain, a)) for a in (packet.source, packet.target)) if owner}
    remote = next(iter(mine - {uid}), "")
    return pb.Denial(
        at=at,
        count=count,
        port_uid=bytes.fromhex(uid),
        identity=denied.identity,
        direction=DIRECTIONS[denied.direction],
        rule=denied.rule,
        mode=MODES[denied.mode],
        remote_uid=bytes.fromhex(remote),
        remote_identity=denied.remote_identity,
        protocol=packet.protocol,
        source=packet.source,
        target=packet.target,
        source_port=packet.ports[0],
        target_port=packet.ports[1],
        color=denied.color,
    )
