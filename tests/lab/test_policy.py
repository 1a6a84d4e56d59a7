"""Policies against real packets: every ordered pair of workloads × protocol × port, and an oracle of its own.

40 random policies on 12 workloads of 2 tenants with equal addresses, 3 hosts, both IP versions. Packets count where
they arrive as well as where their answer does.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tealnet import kinds
from tealnet.lab.traffic import Running
from tealnet.lab.wait import wait_for
from tealnet.v1 import port_pb2, security_pb2, tenant_pb2
from tests.lab.oracle import (
    GROUPS,
    TCP,
    TENANTS,
    UDP,
    End,
    Group,
    Policy,
    Rule,
    Try,
    ends,
    fields_of,
    other_group,
    passes,
    policies,
)
from tests.lab.stand import READY, SOON, Stand, standing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(280)]

PORTS = {"w1": ("web", "h1"), "w2": ("web", "h2"), "w3": ("web", "h3"),
         "d1": ("db", "h1"), "d2": ("db", "h2"), "d3": ("db", "h3")}  # fmt: skip
NAMES = [f"{tenant}/{port}" for tenant in TENANTS for port in PORTS]
FIRST_OTHER = 143  # IP protocol numbers that nobody uses (IANA): another one for each policy
PATIENCE = 3.0  # seconds for an answer that must come
Answers = dict[Try, str]


@dataclass(repr=False)
class Truth:
    """The lab with a process in each workload, and one policy at a time."""

    stand: Stand
    ends: dict[str, End] = field(default_factory=dict)
    running: dict[str, Running] = field(default_factory=dict)
    rounds: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    other: int = FIRST_OTHER
    policy: Policy | None = None

    # ---- policies

    def apply(self, policy: Policy) -> None:
        """Make it so, on all hosts."""
        client = self.stand.client
        for tenant in TENANTS:
            for number, group in enumerate(policy.groups[tenant]):
                self.put_group(tenant, number, group)
        for name, numbers in policy.members.items():
            tenant, own = name.split("/")
            groups = [f"tenants/{tenant}/securityGroups/g{number}" for number in numbers]
            client.update(
                port_pb2.Port(name=f"tenants/{tenant}/ports/{own}", security_groups=groups), mask=["security_groups"]
            )
        for tier in list(client.list_all(kinds.TIER)):
            client.delete(tier.name)
        for number, tier in enumerate(policy.tiers):
            made = security_pb2.PolicyTier(
                position=f"POSITION_{tier.position}",
                priority=tier.priority,
                tenant_selector={"name": tier.tenant} if tier.tenant else {},
                mode=_mode(tier.is_shadow),
            )
            self._rules(made, tier.rules, "")
            client.create(kinds.TIER, ident=f"t{number}", body=made)
        self.stand.sync()
        self.policy = policy

    def put_group(self, tenant: str, number: int, group: Group) -> None:
        """Change one group."""
        name = f"tenants/{tenant}/securityGroups/g{number}"
        body = security_pb2.SecurityGroup(name=name, mode=_mode(group.is_shadow))
        self._rules(body, group.rules, tenant)
        self.stand.client.update(body, mask=["ingress", "egress", "mode"])

    def _rules(self, body: Any, rules: Sequence[Rule], tenant: str) -> None:
        for rule in rules:
            getattr(body, rule.direction).add(**fields_of(rule, tenant=tenant, other=self.other))

    # ---- packets

    def tries(self) -> list[Try]:
        """Every ordered pair of a tenant × version × protocol × port."""
        what = [("icmp", 0), *(("tcp", port) for port in TCP), *(("udp", port) for port in UDP)]
        found = []
        for a, b in itertools.permutations(self.ends.values(), 2):
            if a.tenant != b.tenant:
                continue
            # Without ports both directions of a pair are one connection: one of them with each protocol number.
            others = [("other", 0)] if (a.name < b.name) == (self.other % 2 == 0) else []
            found += [Try(a, b, version, *one) for version in (4, 6) for one in (*what, *others)]
        return found

    def check(self) -> None:
        """All at once; what is answered, what has arrived and what the oracle says are the same."""
        assert self.policy is not None
        wanted = {one for one in self.tries() if passes(self.policy, one)}
        answered, arrived = self.measure(wanted)
        assert not _wrong(wanted, set(answered)), f"answered: {_wrong(wanted, set(answered))}\n{self.policy}"
        for one, name in answered.items():  # never the workload of the other tenant with this address
            assert one.protocol == "icmp" or name == one.target.name, f"{one} was answered by {name}"
        expected = _arrivals(wanted)
        assert arrived == expected, f"came in: {arrived - expected}, did not: {expected - arrived}\n{self.policy}"

    def measure(self, wanted: set[Try]) -> tuple[Answers, set[tuple[str, str, str, int]]]:
        """Who answers whom; and (target, protocol, source, port) of what has arrived."""
        number = next(self.rounds)
        asked: dict[str, list[Try]] = {name: [] for name in NAMES}
        for one in self.tries():
            asked[one.source.name].append(one)
        for name, tries in asked.items():
            targets = [self._target(one) for one in tries]
            expect = [index for index, one in enumerate(tries) if one in wanted]
            self._say(name, {"ask": targets, "expect": expect, "wait": PATIENCE, "number": number})
        answers: Answers = {}
        for name, tries in asked.items():
            for index, who in self._hear(name)["answers"].items():
                answers[tries[int(index)]] = who
        arrived = set()
        for name in NAMES:
            self._say(name, {"arrived": True})
            for protocol, source, port in self._hear(name)["arrived"]:
                if protocol in ("tcp", "udp", self.other):  # not what an earlier policy has let through, and came late
                    arrived.add((name, "other" if protocol == self.other else protocol, source, port))
        return answers, arrived

    def _target(self, one: Try) -> list[object]:
        protocol = self.other if one.protocol == "other" else one.protocol
        return [protocol, one.target.address(one.version), one.port]

    def renumber(self) -> None:
        """Another protocol number: connections of the one before would let its packets pass."""
        self.other += 1
        for name in NAMES:
            self._say(name, {"listen": self.other})
        for name in NAMES:
            self._hear(name)

    def _say(self, name: str, command: dict[str, object]) -> None:
        stdin = self.running[name].process.stdin
        assert stdin is not None
        stdin.write(json.dumps(command).encode() + b"\n")

    def _hear(self, name: str) -> dict[str, Any]:
        stdout = self.running[name].process.stdout
        assert stdout is not None
        answer: dict[str, Any] = json.loads(stdout.readline())
        return answer


def _mode(is_shadow: bool) -> str:
    return f"POLICY_MODE_{'SHADOW' if is_shadow else 'ENFORCE'}"


def _wrong(wanted: set[Try], found: set[Try]) -> str:
    lines = [f"not, but must: {_words(one)}" for one in sorted(wanted - found, key=_words)[:8]]
    lines += [f"must not: {_words(one)}" for one in sorted(found - wanted, key=_words)[:8]]
    return f"{len(wanted - found)} missing, {len(found - wanted)} too many\n  " + "\n  ".join(lines) if lines else ""


def _words(one: Try) -> str:
    return f"{one.source.name} → {one.target.name} v{one.version} {one.protocol} {one.port}"


def _arrivals(wanted: set[Try]) -> set[tuple[str, str, str, int]]:
    """What the workloads themselves notice: no echo requests, and not by IP version."""
    return {(t.target.name, t.protocol, t.source.name, t.port) for t in wanted if t.protocol != "icmp"}


@pytest.fixture(scope="module")
def truth() -> Iterator[Truth]:
    with standing("t-policy", hosts=3) as stand, ExitStack() as stack:
        made = Truth(stand)
        for tenant in TENANTS:
            stand.client.create(kinds.TENANT, ident=tenant, body=tenant_pb2.Tenant(labels={"name": tenant}))
            stand.router(f"{tenant}/main")
            stand.network(f"{tenant}/web", "10.1.0.0/24", "fd01::/64", router="main")
            stand.network(f"{tenant}/db", "10.2.0.0/24", "fd02::/64", router="main")
            for number in range(GROUPS):
                body = security_pb2.SecurityGroup()
                stand.client.create(kinds.GROUP, parent=f"tenants/{tenant}", ident=f"g{number}", body=body)
            for number, (port, (network, host)) in enumerate(PORTS.items(), 10):
                at = {"web": 1, "db": 2}[network]
                # Some of both halves of the network, so that prefixes within it mean something.
                last = number if number % 2 else 128 + number
                stand.port(f"{tenant}/{port}", network, host, addresses=[f"10.{at}.0.{last}", f"fd0{at}::{last}"])
        stand.sync()
        for name in NAMES:
            workload = stand.workload(name)
            made.ends[name] = End(name, workload.v4, workload.v6)
            words = ["--tcp", *map(str, TCP), "--udp", *map(str, UDP)]
            made.running[name] = stack.enter_context(workload.running("table", name, *words))
        yield made


def test_the_default_group_lets_its_members_talk(truth: Truth) -> None:
    truth.renumber()
    answered, _ = truth.measure(set(truth.tries()))
    assert not _wrong(set(truth.tries()), set(answered))


@seed(20261126)
@settings(
    max_examples=40, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(policy=policies(NAMES))
def test_random_policies(truth: Truth, policy: Policy) -> None:
    truth.renumber()
    truth.apply(policy)
    truth.check()
    _said_before(truth, policy)


def _said_before(truth: Truth, policy: Policy) -> None:
    """`teal policy test` says what happens: asked about a sample, another one for each policy."""
    tries = truth.tries()
    for one in tries[truth.other % 29 :: 29]:
        protocol = {"icmp": {4: "icmp", 6: "icmpv6"}[one.version], "other": str(truth.other)}.get(
            one.protocol, one.protocol
        )
        ends = [f"tenants/{end.name.replace('/', '/ports/')}" for end in (one.source, one.target)]
        request = security_pb2.TestPolicyRequest(source=ends[0], target=ends[1], protocol=protocol, port=one.port)
        answer = truth.stand.client.test_policy(request)
        (path,) = [p for p in answer.paths if (":" in p.source_address) == (one.version == 6)]
        assert path.allowed == passes(policy, one), f"{_words(one)}: {path}"


def test_restarts_change_no_verdict(truth: Truth) -> None:
    if truth.policy is None:
        pytest.fail("no policy was applied")
    lab = truth.stand.lab
    for host in ("h1", "h2", "h3"):
        truth.stand.restart_agent(host)
    truth.stand.sync()
    truth.renumber()
    truth.apply(truth.policy)  # with another protocol number
    truth.check()
    lab.kill("controller", "controller")
    lab.start("controller", "controller")
    for host in ("h1", "h2", "h3"):
        truth.stand.host_becomes(host, READY)
    truth.check()


@seed(20261127)
@settings(
    max_examples=5, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(policy=policies(NAMES), other=other_group())
def test_no_packet_passes_that_neither_policy_lets_through(truth: Truth, policy: Policy, other: Group) -> None:
    """A group of every port goes back and forth while packets flow; hosts do not change at the same instant."""
    everybody = {name: tuple(sorted({*numbers, 0})) for name, numbers in policy.members.items()}
    before = replace(policy, members=everybody)
    after = replace(before, groups={t: (other, *groups[1:]) for t, groups in before.groups.items()})
    truth.renumber()
    truth.apply(before)
    stop = threading.Event()

    def churn() -> None:
        for group_of in itertools.cycle((after, before)):
            for tenant in TENANTS:
                truth.put_group(tenant, 0, group_of.groups[tenant][0])
            if group_of is before and stop.is_set():
                return

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        tries = truth.tries()
        both = {one for one in tries if passes(before, one) and passes(after, one)}
        # At each end the old rules or the new ones: a host may be a moment ahead of another.
        either = {one for one in tries if all(a or b for a, b in zip(ends(before, one), ends(after, one), strict=True))}
        for _ in range(3):
            answered, arrived = truth.measure(both)
            assert not _wrong(set(answered) | both, set(answered)), "let through by both, and lost"
            assert not _wrong(either, set(answered) | either), "let through by neither"
            assert arrived <= _arrivals(either), arrived - _arrivals(either)
    finally:
        stop.set()
        thread.join()
    truth.stand.sync()
    truth.renumber()
    truth.apply(before)
    truth.check()


def test_rules_count_what_they_let_in_and_denials_are_told(truth: Truth) -> None:
    web = Group((Rule("ingress", "tcp", ("80",), ""), Rule("egress", "any", (), "")), is_shadow=False)
    nothing = Group((), is_shadow=False)
    policy = Policy(
        groups=dict.fromkeys(TENANTS, (web, *[nothing] * (GROUPS - 1))), members=dict.fromkeys(NAMES, (0,)), tiers=()
    )
    truth.renumber()
    truth.apply(policy)
    client = truth.stand.client

    def counted() -> dict[str, Any]:
        answer = client.rules("tenants/acme", counters=True)
        assert not answer.silent_hosts
        return {rule.origin.text: rule for rule in answer.rules if rule.connections or rule.ports}

    before = counted()
    truth.check()
    let_in = sum(t.protocol == "tcp" and t.port == 80 and t.source.tenant == "acme" for t in truth.tries())
    name = "tcp 80 from anyone"
    # Switches count what their caches have let pass when they look through them.
    expected = before[name].connections + let_in
    wait_for(lambda: counted()[name].connections >= expected, seconds=SOON, what=f"{expected} connections")
    rule = counted()[name]
    assert (rule.ports, rule.hosts, rule.connections) == (6, 3, expected)
    assert rule.flows >= 3 and rule.packets > before[name].packets

    def denied() -> list[Any]:
        request = security_pb2.ListDenialsRequest(parent="tenants/acme", page_size=1000)
        return list(client.denials(request).denials)

    wait_for(
        lambda: any(d.protocol == "tcp" and d.target_port == 8081 and d.remote_port for d in denied()),
        seconds=SOON,
        what="a denial of tcp 8081",
    )
    denials = denied()
    assert all(d.port.startswith("tenants/acme/") and not d.HasField("rule") for d in denials[-20:])
