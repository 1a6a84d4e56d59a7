"""Denied connections in the agent's log: a few lines in a while, however many there are.

What the log leaves out is counted; `teal policy log` asks for more (agent/tell.py). Ports of other hosts are told by
their addresses only: a host does not know their names, the controller's log does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import structlog

from agent.inputs import Inputs
from agent.policy.denials import Denied
from tealnet.core.rows.security import ICMP, ICMPV6, SCTP, TCP, UDP, Mode
from tealnet.core.rows.stream import LocalPort

log = structlog.get_logger()

LINES, WINDOW = 10, 10.0  # at most so many in so many seconds
PROTOCOLS = {ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPV6: "icmpv6", SCTP: "sctp"}


class DenialLog:
    """`add` each denial that the switch shows."""

    def __init__(self, inputs: Inputs, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._inputs, self._clock = inputs, clock
        self._ends_at = 0.0
        self._written: set[Denied] = set()  # in this window
        self._left_out = 0

    def add(self, denied: Denied) -> None:
        """Write it, or count it."""
        self.flush()
        if denied in self._written or len(self._written) >= LINES:
            self._left_out += 1
            return
        self._written.add(denied)
        words = self._words(denied)
        if words:
            log.info("denied" if denied.mode is Mode.ENFORCE else "would be denied", **words)

    def flush(self) -> None:
        """Say how many were left out when the window has passed."""
        now = self._clock()
        if now < self._ends_at:
            return
        if self._left_out:
            log.info("more packets were denied", count=self._left_out)
        self._written.clear()
        self._left_out, self._ends_at = 0, now + WINDOW

    def _words(self, denied: Denied) -> dict[str, object]:
        """Nothing if the port has gone."""
        packet = denied.packet
        numbers = {number: uid for uid, number in self._inputs.issued.rows.items()}
        port = self._inputs.localports.rows.get(numbers.get(denied.ofport, ""))
        if port is None:
            return {}
        names = ("icmp_type", "icmp_code") if packet.protocol in (ICMP, ICMPV6) else ("source_port", "target_port")
        remote = next((_name(other) for other in self._others(denied) if other.uid != port.uid), "")
        return {
            "port": _name(port),
            "direction": denied.direction.value,
            "rule": self._rule(denied) or "none allows it",
            "protocol": PROTOCOLS.get(packet.protocol, packet.protocol),
            "source": str(ip_address(packet.source)),
            "target": str(ip_address(packet.target)),
            **dict(zip(names, packet.ports, strict=True)),
            **({"remote_port": remote} if remote else {}),
        }

    def _rule(self, denied: Denied) -> str:
        rules = self._inputs.rules.rows.get(denied.identity)
        found = (rule.name for tier in rules.tiers for rule in tier.rules if rule.id == denied.rule) if rules else ()
        return next(iter(found), "")

    def _others(self, denied: Denied) -> Iterator[LocalPort]:
        """Local ports in the routing domain with one of the addresses."""
        wanted = {ip_address(denied.packet.source), ip_address(denied.packet.target)}
        for port in self._inputs.localports.rows.values():
            segment = self._inputs.segments.rows.get(port.vni)
            if segment is not None and segment.domain == denied.domain and not wanted.isdisjoint(port.addresses):
                yield port


def _name(port: LocalPort) -> str:
    return f"tenants/{port.tenant}/ports/{port.name}"
