"""PolicyService.TestPolicy: would a connection be let through, and which rule says so?"""

from __future__ import annotations

from typing import Any, NamedTuple

from controller import names
from controller.api import filters
from controller.api.policy_rules import RuleLists
from controller.caller import current_caller
from controller.decode_policy import protocol_name, protocol_number
from controller.errors import Invalid, NotFound
from controller.fields import Violations
from controller.policy_path import Path, Paths, Probe, Side
from controller.policy_reports import PolicyReports
from controller.rows import Intent, PortSpec
from controller.rule_origins import Origins
from controller.scopes import Scopes
from controller.store import Store
from controller.verdict import Say
from tealnet.core.rows.security import ICMP, ICMPV6, TCP, WITH_PORTS
from tealnet.v1 import security_pb2, security_pb2_grpc

_SAYS = {
    Say.ALLOWED: security_pb2.SideVerdict.OUTCOME_ALLOWED,
    Say.DENIED: security_pb2.SideVerdict.OUTCOME_DENIED,
    Say.SHADOW: security_pb2.SideVerdict.OUTCOME_SHADOW,
}


class Parts(NamedTuple):
    """What the service speaks for."""

    store: Store
    scopes: Scopes
    origins: Origins
    reports: PolicyReports


class PolicyService(security_pb2_grpc.PolicyServiceServicer):
    """The methods; raise ApiError."""

    def __init__(self, parts: Parts) -> None:
        self.store, self.world, self.origins = parts.store, parts.store.world, parts.origins
        self.paths = Paths(self.world, parts.scopes, parts.origins.security)
        self.lists = RuleLists(parts.store, parts.origins, parts.reports)

    async def TestPolicy(
        self, request: security_pb2.TestPolicyRequest, context: Any
    ) -> security_pb2.TestPolicyResponse:
        """From the rules as hosts are sent them, at the revision that the answer names."""
        protocol, icmp = self._checked(request)
        info = await filters.fresh(self.store, request.read)
        probe = Probe(
            source=self._port(request.source, "source"),
            target=self._port(request.target, "target"),
            protocol=protocol,
            port=request.port,
            icmp=icmp,
            color=request.color,
        )
        shown = [self._path(path) for path in self.paths.paths(probe)]
        return security_pb2.TestPolicyResponse(allowed=all(path.allowed for path in shown), paths=shown, info=info)

    async def ListRules(self, request: security_pb2.ListRulesRequest, context: Any) -> security_pb2.ListRulesResponse:
        """Each rule with what it costs and has counted."""
        return await self.lists.rules(request)

    async def ListDenials(
        self, request: security_pb2.ListDenialsRequest, context: Any
    ) -> security_pb2.ListDenialsResponse:
        """The newest."""
        return await self.lists.denials(request)

    def _checked(self, request: security_pb2.TestPolicyRequest) -> tuple[int, tuple[int, int] | None]:
        """Protocol, and ICMP type and code. Raises Invalid."""
        found = Violations()
        for field in ("source", "target"):
            if names.kind_of(getattr(request, field)) != "port":
                text = f"{getattr(request, field)[:200]!r} is not a name like tenants/TENANT/ports/PORT"
                found.add(field, text)
        try:
            number = protocol_number(request.protocol) if request.protocol else TCP
        except ValueError as error:
            found.add("protocol", str(error))
            raise Invalid(found.found) from None
        if number is None:
            found.add("protocol", "any is no protocol of a connection: say which")
        if number in WITH_PORTS and not 1 <= request.port <= 65535:
            found.add("port", f"{request.port} is not within 1…65535: {protocol_name(number)} has ports")
        elif number not in WITH_PORTS and request.port:
            found.add("port", f"{protocol_name(number)} has no ports; leave it out")
        icmp = (request.icmp_type, request.icmp_code) if request.HasField("icmp_type") else None
        if (icmp or request.HasField("icmp_code")) and number not in (ICMP, ICMPV6):
            found.add("icmp_type", "is for icmp or icmpv6")
        elif max(request.icmp_type, request.icmp_code) > 255:
            found.add("icmp_type", "type and code are within 0…255")
        found.finish()
        assert number is not None
        return number, icmp

    def _port(self, name: str, field: str) -> Intent[PortSpec]:
        own = current_caller().tenant
        row = self.world.ports.rows.get(name)
        if row is None or own not in ("", names.tenant_of(name)):
            raise NotFound(name, field=field)
        return row

    # ---- in words

    def _path(self, path: Path) -> security_pb2.PathVerdict:
        shown = security_pb2.PathVerdict(
            source_address=str(path.source or ""), target_address=str(path.target or ""), reason=path.reason
        )
        if path.reason or path.egress is None or path.ingress is None:
            shown.text = path.text
            return shown
        shown.egress.CopyFrom(self._side(path.egress))
        shown.ingress.CopyFrom(self._side(path.ingress))
        denied = [
            f"{word}: {self._why(side, verdict)}"
            for word, side, verdict in (
                ("leaving the source", shown.egress, path.egress.verdict),
                ("at the target", shown.ingress, path.ingress.verdict),
            )
            if side.outcome == security_pb2.SideVerdict.OUTCOME_DENIED
        ]
        shown.allowed = not denied
        shown.text = "; ".join(denied) or "both ends let it through"
        return shown

    def _why(self, side: security_pb2.SideVerdict, verdict: Any) -> str:
        if verdict.text:
            return str(verdict.text)
        if side.HasField("rule"):
            return f"{side.rule.object} denies it: {side.rule.text}"
        return "no rule allows it"

    def _side(self, side: Side) -> security_pb2.SideVerdict:
        shown = security_pb2.SideVerdict(identity=side.identity)
        if side.verdict is None:
            shown.outcome = security_pb2.SideVerdict.OUTCOME_OFF
            return shown
        shown.outcome = _SAYS[side.verdict.say]
        if side.verdict.rule and (origin := self.origins.of_identity(side.identity, side.verdict.rule.id)):
            shown.rule.CopyFrom(origin)
        if side.verdict.shadow and (origin := self.origins.of_identity(side.identity, side.verdict.shadow.id)):
            shown.shadow.append(origin)
        return shown
