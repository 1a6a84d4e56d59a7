"""Has a revision reached the data plane? The one function behind SystemService.Sync, `--wait` and rollout steps.

Asked by a barrier: one key with the question, one answer per replica that serves hosts of the scope, none per host.
While this replica serves all of them itself nothing is written. Never lies: hosts without a session are named, and a
replica that vanishes leaves its hosts disconnected until another one has them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from controller.admission import LOST
from controller.questions import Questions, loop_time
from controller.report import Report
from controller.sessions import Sessions
from controller.store import Store
from tealnet.store.v1 import store_pb2

_DIGITS = 10  # of the largest number there is, 2^32 - 1
MOST = 100  # hosts behind and failures that an answer names
_AGAIN = 0.05  # seconds between two rounds
_GRACE = 0.5  # seconds that an answer may take after the timeout
Domains = frozenset[int] | None  # None: all hosts
Subjects = frozenset[str]
"""What failures are about: weights/<network uid>, vni/<number> (its segment and endpoints); none: all failures."""


@dataclass(slots=True)
class Outcome:
    """The answer, by host uid. `behind` has the revision each host has reached."""

    revision: int
    is_reached: bool = True  # the store has this revision
    hosts: set[str] = field(default_factory=set)
    synced: set[str] = field(default_factory=set)
    behind: dict[str, int] = field(default_factory=dict)
    failed: list[store_pb2.BarrierAnswer.Failed] = field(default_factory=list)
    disconnected: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    slowest: str = ""
    took: float = 0.0

    @property
    def complete(self) -> bool:
        """It is committed, all hosts in scope have it, none failed, none is without a session."""
        return self.is_reached and self.synced == self.hosts and not self.failed


@dataclass(frozen=True, slots=True)
class _Question:
    """`deadline` is of this process's monotonic clock."""

    revision: int
    domains: Domains
    about: Subjects
    deadline: float


class Sync:
    """Asks, and answers the other replicas."""

    def __init__(self, store: Store, sessions: Sessions, questions: Questions) -> None:
        self.store, self.sessions, self.questions = store, sessions, questions
        questions.answer(store_pb2.Barrier.QUESTION_UNSPECIFIED, self._respond)

    # ---- asking

    async def ask(self, *, revision: int, domains: Domains, timeout: float, about: Subjects = frozenset()) -> Outcome:
        """Wait until every host of the scope has `revision` (0: all that is committed now), at most `timeout` seconds.

        Only failures `about` these things are told. Raises StoreError when the question can't be asked.
        """
        start = time.monotonic()
        deadline = start + timeout
        if not revision or revision > self.store.revision:
            now = await self.store.barrier()
            revision = revision or now
        with contextlib.suppress(TimeoutError):  # a revision of the future: everybody is behind it
            async with asyncio.timeout_at(loop_time(deadline)):
                await self.store.passed(revision)
        while True:
            outcome = await self._round(_Question(revision, domains, about, deadline))
            # A host whose session is just changing hands has not been asked yet.
            unasked = (outcome.disconnected | outcome.lost) & self.store.world.sessions.rows.keys()
            if not unasked or time.monotonic() >= deadline:
                outcome.took = time.monotonic() - start
                return outcome
            await asyncio.sleep(_AGAIN)

    async def _round(self, asked: _Question) -> Outcome:
        """Ask everybody once."""
        outcome = Outcome(asked.revision, is_reached=asked.revision <= self.store.revision)
        if self._elsewhere(asked.domains):
            await self._ask_others(outcome, asked)
        else:
            self._merge(outcome, await self._own(asked))
        self._finish(outcome, self.hosts_in(asked.domains))
        return outcome

    async def _ask_others(self, outcome: Outcome, asked: _Question) -> None:
        """Put the question, and collect the answers of the replicas that serve hosts of the scope."""
        domains = asked.domains
        row = store_pb2.Barrier(
            revision=asked.revision,
            domains=sorted(domains or ()),
            scoped=domains is not None,
            about=sorted(asked.about),
        )
        async with self.questions.ask(row, asked.deadline) as others:
            own = await self._own(asked)
            await others.answered(lambda: self._elsewhere(domains))
        for answer in (own, *others.answers):
            self._merge(outcome, answer)

    def _elsewhere(self, domains: Domains) -> set[str]:
        """Other replicas that serve hosts of the scope."""
        sessions = self.store.world.sessions.rows
        found = {sessions[host].replica for host in self.hosts_in(domains) if host in sessions}
        return found - {self.questions.replica.id}

    def _merge(self, outcome: Outcome, answer: store_pb2.BarrierAnswer) -> None:
        outcome.synced.update(answer.synced)
        outcome.behind.update((b.host_uid, b.revision) for b in answer.behind)
        outcome.failed.extend(answer.failed[: MOST - len(outcome.failed)])
        outcome.slowest = answer.slowest or outcome.slowest

    def _finish(self, outcome: Outcome, hosts: set[str]) -> None:
        """Sort those nobody has spoken for into disconnected and lost."""
        world = self.store.world
        outcome.hosts = hosts
        outcome.synced &= hosts
        for host in hosts - outcome.synced - outcome.behind.keys():
            row = world.host_status.rows.get(host)
            (outcome.lost if row and row.state == LOST else outcome.disconnected).add(host)
        outcome.behind = {
            host: at for host, at in outcome.behind.items() if host in hosts and host not in outcome.synced
        }

    # ---- scope

    def hosts_in(self, domains: Domains) -> set[str]:
        """Hosts with a port in the domains, and those that still have to let one go; without fenced ones.

        All hosts: also those that have no port, if they were ever seen.
        """
        world, scopes = self.store.world, self.sessions.resources.of_hosts
        rows = world.tombstones.rows
        if domains is None:
            seen = {uid for uid, row in world.host_status.rows.items() if row.instance_uid}
            found = seen | set(scopes.domains_of_host.rows) | set(world.sessions.rows)
            waiting: set[tuple[str, str, str]] = set(rows)
        else:
            found = {host for domain in domains for host in scopes.hosts_of_domain.rows.get(domain, ())}
            networks = {uid for domain in domains for uid in self._networks_in(domain)}
            gone = (key for domain in domains for key in world.tombstones_by_domain.keys(domain))
            waiting = {key for uid in networks for key in world.tombstones_by_network.keys(uid)}
            waiting |= {key for key in gone if not world.networks_by_uid.keys(rows[key].network_uid)}
        found |= {rows[key].host_uid for key in waiting if not rows[key].acked and not rows[key].address}
        return {uid for uid in found if self._counts(uid)}

    def _networks_in(self, domain: int) -> Iterable[str]:
        world = self.store.world
        for vni in self.sessions.resources.of_hosts.vnis_by_domain.keys(domain):
            for name in world.networks_by_vni.keys(vni):
                yield world.networks.rows[name].uid

    def _counts(self, host_uid: str) -> bool:
        """The host exists and is not fenced."""
        world = self.store.world
        return any(not world.hosts.rows[name].spec.fenced for name in world.hosts_by_uid.keys(host_uid))

    # ---- answering

    async def _respond(self, question: str, row: store_pb2.Barrier, deadline: float) -> store_pb2.BarrierAnswer:
        domains = frozenset(row.domains) if row.scoped else None
        return await self._own(_Question(row.revision, domains, frozenset(row.about), deadline), question)

    async def _own(self, asked: _Question, question: str = "") -> store_pb2.BarrierAnswer:
        """Wait for the sessions of this replica in scope, until the deadline or until nobody asks any more."""
        answer, domains = store_pb2.BarrierAnswer(), asked.domains
        try:
            async with asyncio.timeout_at(loop_time(asked.deadline)):
                while behind := self._behind(asked.revision, domains):
                    if question and not self.questions.stands(question):
                        break
                    answer.slowest = next(iter(behind))
                    await self.sessions.progress()
        except TimeoutError:
            pass
        await self._written(domains)
        behind = self._behind(asked.revision, domains)
        hosts = self.hosts_in(domains) & self.sessions.by_host.keys()
        answer.synced.extend(sorted(hosts - behind.keys()))
        answer.behind.extend(
            store_pb2.BarrierAnswer.Behind(host_uid=host, revision=at) for host, at in list(behind.items())[:MOST]
        )
        answer.failed.extend(list(self._failures(hosts, asked))[:MOST])
        return answer

    async def _written(self, domains: Domains) -> None:
        """Let what the hosts have said reach the tables: who asks next for a port's state is to see it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE):
                while waiting := [report for report in self._reports(domains) if not report.is_written]:
                    for report in waiting:
                        report.hurry()
                    await self.sessions.progress()

    def _reports(self, domains: Domains) -> list[Report]:
        sessions = self.sessions.by_host
        return [sessions[host].report for host in self.hosts_in(domains) & sessions.keys()]

    def _behind(self, revision: int, domains: Domains) -> dict[str, int]:
        sessions = self.sessions.by_host
        hosts = self.hosts_in(domains) & sessions.keys()
        return {host: sessions[host].synced for host in hosts if sessions[host].synced < revision}

    def _failures(self, hosts: Iterable[str], asked: _Question) -> Iterable[store_pb2.BarrierAnswer.Failed]:
        for host in hosts:
            for key, failure in self.sessions.by_host[host].report.failures.items():
                if asked.about and self._subject(key) not in asked.about:
                    continue
                if asked.domains is None or self._concerns(key, host, asked.domains):
                    yield store_pb2.BarrierAnswer.Failed(
                        host_uid=host, key=key, reason=failure.reason, text=failure.text
                    )

    def _concerns(self, key: str, host: str, domains: frozenset[int]) -> bool:
        """Whether a resource of a host is about one of some domains; rules: those of the host's ports they guard."""
        kind, _, ident = key.partition("/")
        if kind != "rules" or not ident.isdecimal():
            return self.domain_of(key) in domains
        scopes, world = self.sessions.resources.of_hosts, self.store.world
        found = (scopes.holdings.rows.get(name) for name in world.ports_by_identity.keys(int(ident)))
        return any(h and host in h.hosts and scopes.domain_of_vni.rows.get(h.vni) in domains for h in found)

    def _subject(self, key: str) -> str:
        """What a resource is about, as in Subjects; "" if it is about nothing of that kind."""
        kind, _, ident = key.partition("/")
        if kind == "weights":
            return key
        if kind == "segment":
            return f"vni/{ident}"
        if kind == "endpoint":
            holdings = self.sessions.resources.of_hosts.holdings.rows
            for name in self.store.world.ports_by_uid.keys(ident):
                if name in holdings:
                    return f"vni/{holdings[name].vni}"
        return ""

    def domain_of(self, key: str) -> int:
        """The domain that a resource is about; 0 if it is about none."""
        scopes, world = self.sessions.resources.of_hosts, self.store.world
        kind, _, ident = key.partition("/")
        if kind == "segment":
            return scopes.domain_of_vni.rows.get(number_in(ident), 0)
        if kind == "route":
            return number_in(ident.partition("/")[0])
        if kind == "weights":
            names = world.networks_by_uid.keys(ident)
            return scopes.domain_of_network.rows.get(names[0], 0) if names else 0
        for name in world.ports_by_uid.keys(ident):
            if holding := scopes.holdings.rows.get(name):
                return scopes.domain_of_vni.rows.get(holding.vni, 0)
        for place in world.tombstones_by_port.keys(ident):  # of a port that could not be removed
            row = world.tombstones.rows[place]
            for name in world.networks_by_uid.keys(row.network_uid):
                return scopes.domain_of_network.rows.get(name, 0)
            return row.domain
        return 0


def number_in(text: str) -> int:
    """The number in a key that a host has said, which may be anything; 0 if it is none."""
    return int(text) if text.isdecimal() and len(text) <= _DIGITS else 0
