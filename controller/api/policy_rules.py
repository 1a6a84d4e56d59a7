"""PolicyService.ListRules and ListDenials: the rules in force, and what the hosts say about them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from controller import names
from controller.caller import current_caller
from controller.errors import NotFound, PermissionDenied, invalid
from controller.fields import Violations
from controller.hosts import timestamp
from controller.intents.placement import selected
from controller.intents.tenant import check_time
from controller.members import identities_of_group
from controller.policy_reports import PolicyReports, RuleSum, SumKey
from controller.rule_origins import Origins, Owner
from controller.store import Store
from tealnet.core.rows.security import Position
from tealnet.store.v1 import store_pb2
from tealnet.v1 import common_pb2, security_pb2

_TIMEOUT, _LONGEST = 5.0, 60.0  # seconds
_PAGE, _LONGEST_PAGE = 100, 1000
_DIRECTIONS = (security_pb2.RULE_DIRECTION_INGRESS, security_pb2.RULE_DIRECTION_EGRESS)


@dataclass(frozen=True, slots=True)
class Subject:
    """What a list is about: groups and tiers in their order, and the identities whose ports count.

    `whole`: everything that binds those, so that what no rule decides is of interest, too.
    """

    owners: tuple[Owner, ...]
    identities: frozenset[int]
    whole: bool


@dataclass(slots=True)
class Use:
    """Where a rule is in force: how many ports, and the uids of their hosts."""

    ports: int = 0
    hosts: set[str] = field(default_factory=set)


class RuleLists:
    """The two methods; they raise ApiError."""

    def __init__(self, store: Store, origins: Origins, reports: PolicyReports) -> None:
        self.store, self.world, self.origins, self.reports = store, store.world, origins, reports
        self.security = origins.security

    async def rules(self, request: security_pb2.ListRulesRequest) -> security_pb2.ListRulesResponse:
        """Raises ApiError, StoreError."""
        timeout = _timeout(request)
        subject = self._subject(request.parent)
        response = security_pb2.ListRulesResponse(info=self._info())
        sums: dict[SumKey, RuleSum] = {}
        if request.counters:
            row = store_pb2.Barrier(question=store_pb2.Barrier.QUESTION_RULES, identities=sorted(subject.identities))
            told = await self.reports.ask(row, timeout=timeout)
            sums = told.sums
            response.silent_hosts.extend(self._hosts(told.silent))
        uses = self._uses(subject.identities)
        for owner in subject.owners:
            for origin in self.origins.rules_of(owner):
                use = uses.get((owner.uid, origin.id), Use())
                report = security_pb2.RuleReport(origin=origin, ports=use.ports, hosts=len(use.hosts))
                response.rules.append(_counted(report, sums.get((owner.uid, origin.id, origin.direction))))
        if subject.whole and request.counters:
            for direction in _DIRECTIONS:
                if counted := sums.get(("", 0, direction)):
                    text = "whatever no rule decides: denied (let pass where all groups of the port are in SHADOW mode)"
                    origin = security_pb2.RuleOrigin(direction=direction, text=text)
                    response.rules.append(_counted(security_pb2.RuleReport(origin=origin), counted))
        return response

    async def denials(self, request: security_pb2.ListDenialsRequest) -> security_pb2.ListDenialsResponse:
        """Raises ApiError, StoreError."""
        timeout = _timeout(request)
        if request.page_size < 0:
            raise invalid("page_size", f"not negative; 0 means {_PAGE}")
        if names.kind_of(request.parent) in ("group", "tier"):
            raise invalid("parent", f"{request.parent[:200]!r} is not a tenant or a port")
        wrong = Violations()
        check_time(request.after, "after", wrong)
        wrong.finish()
        subject = self._subject(request.parent)
        limit = min(request.page_size or _PAGE, _LONGEST_PAGE)
        tenant = self.world.tenants.rows.get(names.tenant_of(request.parent or current_caller().tenant))
        port = self.world.ports.rows.get(request.parent)
        row = store_pb2.Barrier(
            question=store_pb2.Barrier.QUESTION_DENIALS,
            identities=sorted(subject.identities),
            tenant_uid=tenant.uid if tenant else "",
            port_uid=port.uid if port else "",
            after=request.after.ToNanoseconds() if request.HasField("after") else 0,
            limit=limit,
        )
        told = await self.reports.ask(row, timeout=timeout)
        found = [security_pb2.Denial.FromString(raw) for raw in told.denials]
        found.sort(key=lambda denial: denial.time.ToNanoseconds())
        return security_pb2.ListDenialsResponse(
            denials=found[-limit:], silent_hosts=self._hosts(told.silent), info=self._info()
        )

    # ---- what it is about

    def _subject(self, parent: str) -> Subject:
        """Raises NotFound for what is not there or not the caller's."""
        own, world = current_caller().tenant, self.world
        parent, kind = parent or own, names.kind_of(parent or own)
        if parent and kind not in ("tenant", "port", "group", "tier"):
            raise invalid("parent", f"{parent[:200]!r} is not a tenant, port, security group or policy tier")
        if not parent:
            if not current_caller().is_admin:
                raise PermissionDenied("rules of all tenants are for admins")
            owners = [*world.tiers.rows.values(), *world.groups.rows.values()]
            return Subject(self._ordered(owners), frozenset(self.security.bodies.rows), True)
        rows: Any = getattr(world, f"{kind}s").rows
        row = rows.get(parent)
        tenant = names.tenant_of(parent)
        if row is None or (own and tenant not in ("", own)):
            raise NotFound(parent, field="parent")
        match kind:
            case "tenant":
                owners = [world.groups.rows[name] for name in world.groups_by_tenant.keys(parent)]
                return Subject(self._ordered([*owners, *self._tiers(parent)]), self._of_tenant(parent), True)
            case "port":
                names_of = row.spec.groups or (names.default_group(tenant),)
                owners = [world.groups.rows[name] for name in names_of if name in world.groups.rows]
                if not self.security.guards.rows.get(parent):
                    return Subject((), frozenset(), False)
                return Subject(self._ordered([*owners, *self._tiers(tenant)]), frozenset({row.spec.identity}), True)
            case "group":
                identities = frozenset(identities_of_group(world, row))
                return Subject((row,), identities & self.security.bodies.rows.keys(), False)
            case _:
                return self._tier(row, own)

    def _tier(self, row: Any, own: str) -> Subject:
        if own and row not in self._tiers(own):
            raise NotFound(row.name, field="parent")
        tenants = [own] if own else [t.name for t in self.world.tenants.rows.values()]
        bound = (name for name in tenants if row in self._tiers(name))
        return Subject((row,), frozenset(n for name in bound for n in self._of_tenant(name)), False)

    def _tiers(self, tenant: str) -> list[Any]:
        row = self.world.tenants.rows.get(tenant)
        labels = row.labels if row else ()
        return [tier for tier in self.world.tiers.rows.values() if row and selected(tier.spec.selector, labels)]

    def _of_tenant(self, tenant: str) -> frozenset[int]:
        guards = self.security.guards
        return frozenset(guards.rows[name].identity for name in self.security.guards_by_tenant.keys(tenant))

    def _ordered(self, owners: Iterable[Any]) -> tuple[Owner, ...]:
        """As they are asked."""

        def place(owner: Any) -> tuple[int, int, str]:
            position = getattr(owner.spec, "position", Position.GROUPS)
            return list(Position).index(position), getattr(owner.spec, "priority", 0), owner.name

        return tuple(sorted(owners, key=place))

    def _uses(self, identities: Iterable[int]) -> dict[tuple[str, int], Use]:
        uses: dict[tuple[str, int], Use] = {}
        guards = self.security.guards
        for number in identities:
            body = self.security.bodies.rows.get(number)
            held = [guards.rows[name] for name in self.security.guards_by_identity.keys(number)]
            hosts = {host for guard in held for host in guard.hosts}
            for _, origin in body.origins if body else ():
                use = uses.setdefault((origin.uid, origin.id), Use())
                use.ports += len(held)
                use.hosts |= hosts
        return uses

    def _hosts(self, uids: Iterable[str]) -> list[str]:
        return sorted(next(iter(self.world.hosts_by_uid.keys(uid)), uid) for uid in uids)

    def _info(self) -> common_pb2.ReadInfo:
        info = common_pb2.ReadInfo(revision=self.store.revision)
        if since := self.store.stale_since:
            info.stale_since.CopyFrom(timestamp(since))
        return info


def _counted(report: security_pb2.RuleReport, counted: RuleSum | None) -> security_pb2.RuleReport:
    if counted:
        report.flows, report.packets, report.bytes = counted.flows, counted.packets, counted.bytes
        report.connections, report.shadow_hits = counted.connections, counted.shadow_hits
    return report


def _timeout(request: Any) -> float:
    """Seconds. Raises Invalid."""
    duration = request.timeout
    seconds = duration.seconds + duration.nanos / 1e9 if request.HasField("timeout") else _TIMEOUT
    if not 0 <= seconds <= _LONGEST:
        raise invalid("timeout", f"between 0 and {_LONGEST:.0f} seconds")
    return float(seconds)
