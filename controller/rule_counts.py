"""What hosts in session count: by rule and identity, and the connections that they denied.

Agents tell while they are asked (WantRuleReport), and a few denials also unasked. They tell each denial once, so it is
kept here: a bounded number, of the port as it was called then. Nothing of this is in the store. The first ones of each
while are in the log, too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address

import structlog

from controller.decode_policy import protocol_name
from controller.names import tenant_of
from controller.world import World
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.security import ICMP, ICMPV6
from tealnet.v1 import security_pb2

log = structlog.get_logger()

KEPT = 10_000  # denials of one replica
LINES, WINDOW = 20, 10.0  # of the log: at most so many denials in so many seconds
CountKey = tuple[int, int, int]  # identity, direction, rule
OriginOf = Callable[[int, int], security_pb2.RuleOrigin | None]
"""The rule of an identity by its number."""


@dataclass(slots=True)
class RuleCounts:
    """Of one host in session. `wholes` says how often everything was told."""

    counts: dict[CountKey, pb.RuleCount] = field(default_factory=dict)
    wholes: int = 0

    def take(self, report: pb.RuleReport) -> None:
        """News from the host."""
        if report.whole:
            self.counts.clear()
            self.wholes += 1
        for count in report.counts:
            self.counts[count.identity, count.direction, count.rule] = count


@dataclass(frozen=True, slots=True)
class Denied:
    """A denial as users are told of it; `at` is Unix time in nanoseconds."""

    at: int
    tenant_uid: str
    port_uid: str
    denial: bytes


class Denials:
    """The newest denials of the hosts in session with this replica, and of those that were."""

    def __init__(self, world: World, origin_of: OriginOf, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.world, self.origin_of, self._clock = world, origin_of, clock
        self._ring: deque[Denied] = deque(maxlen=KEPT)
        self._written, self._ends_at = 0, 0.0

    def take(self, host: str, report: pb.RuleReport) -> None:
        """News from a host (resource name). Of ports that nobody knows any more nothing is kept."""
        for denial in report.denials:
            uid = denial.port_uid.hex()
            for name in self.world.ports_by_uid.keys(uid):
                tenant = self.world.tenants.rows.get(tenant_of(name))
                if tenant is not None:
                    shown = self._shown(host, name, denial)
                    self._ring.append(Denied(denial.at, tenant.uid, uid, shown.SerializeToString()))
                    self._write(shown)

    def _write(self, shown: security_pb2.Denial) -> None:
        now = self._clock()
        if now >= self._ends_at:
            self._written, self._ends_at = 0, now + WINDOW
        self._written += 1
        if self._written > LINES:
            return
        numbers = {"source_port": shown.source_port, "target_port": shown.target_port}
        if shown.protocol in ("icmp", "icmpv6"):
            numbers = {"icmp_type": shown.icmp_type, "icmp_code": shown.icmp_code}
        rule = f"{shown.rule.object}: {shown.rule.text}" if shown.HasField("rule") else "none allows it"
        log.info(
            "would be denied" if shown.shadow else "denied",
            host=shown.host,
            port=shown.port,
            direction=security_pb2.RuleDirection.Name(shown.direction).removeprefix("RULE_DIRECTION_"),
            rule=rule,
            protocol=shown.protocol,
            source=shown.source_address,
            target=shown.target_address,
            remote_port=shown.remote_port,
            more=shown.suppressed,
            **numbers,
        )

    def newest(self, *, tenant_uid: str, port_uid: str, after: int, limit: int) -> list[bytes]:
        """The newest ones later than `after` of a tenant ("": all) or port ("": all), oldest first."""
        found: list[Denied] = []
        for denied in reversed(self._ring):
            mine = tenant_uid in ("", denied.tenant_uid) and port_uid in ("", denied.port_uid)
            if mine and denied.at > after:
                found.append(denied)
        newest = sorted(found, key=lambda denied: denied.at)[-limit:]
        return [denied.denial for denied in newest]

    def _shown(self, host: str, port: str, denial: pb.Denial) -> security_pb2.Denial:
        shown = security_pb2.Denial(
            host=host,
            port=port,
            direction=security_pb2.RuleDirection.Name(denial.direction),
            remote_port=self._other(port, denial.remote_uid.hex()),
            protocol=protocol_name(denial.protocol),
            source_address=_address(denial.source),
            target_address=_address(denial.target),
            shadow=denial.mode == pb.RULE_MODE_SHADOW,
            suppressed=max(0, denial.count - 1),
        )
        shown.time.FromNanoseconds(denial.at)  # exactly: who asks for later ones says this
        if denial.protocol in (ICMP, ICMPV6):
            shown.icmp_type, shown.icmp_code = denial.source_port, denial.target_port
        else:
            shown.source_port, shown.target_port = denial.source_port, denial.target_port
        if denial.rule and (origin := self.origin_of(denial.identity, denial.rule)):
            shown.rule.CopyFrom(origin)
        return shown

    def _other(self, port: str, uid: str) -> str:
        """The other end by name, where it is of the same tenant."""
        names: Iterable[str] = self.world.ports_by_uid.keys(uid) if uid else ()
        return next((name for name in names if tenant_of(name) == tenant_of(port)), "")


def _address(raw: bytes) -> str:
    return str(ip_address(raw)) if len(raw) in (4, 16) else ""
