"""What rules have counted and denied, asked of the hosts by way of the replicas that have their sessions.

As with Sync: one key with the question and one answer per replica, and nothing is written while this replica serves all
of the hosts itself. Answers are sums, so their size does not grow with the hosts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import structlog

from controller.questions import Questions, loop_time
from controller.session import Session
from controller.sessions import Sessions
from controller.store import Store
from tealnet.store.v1 import store_pb2

log = structlog.get_logger()

RuleSum = store_pb2.BarrierAnswer.RuleSum
SumKey = tuple[str, int, int]  # uid of the group or tier ("": of none), rule as written (0: none), agent.v1 direction
_MOST = 15_000  # sums in one answer: a value in etcd is at most 1.5 MiB
_FIELDS = ("flows", "packets", "bytes", "connections", "shadow_hits")


@dataclass(slots=True)
class Told:
    """What the hosts have said, and who has not (uids)."""

    sums: dict[SumKey, RuleSum] = field(default_factory=dict)
    denials: list[bytes] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)


class PolicyReports:
    """Asks, and answers the other replicas."""

    def __init__(self, store: Store, sessions: Sessions, questions: Questions) -> None:
        self.store, self.sessions, self.questions = store, sessions, questions
        self.security = sessions.resources.security
        questions.answer(store_pb2.Barrier.QUESTION_RULES, self._respond)
        questions.answer(store_pb2.Barrier.QUESTION_DENIALS, self._respond)

    async def ask(self, row: store_pb2.Barrier, *, timeout: float) -> Told:
        """Ask the hosts that have guarded ports of `row.identities`. Raises StoreError."""
        deadline, hosts, told = time.monotonic() + timeout, self._hosts(row.identities), Told()
        if self._elsewhere(hosts):
            async with self.questions.ask(row, deadline) as asked:
                own = await self._own(row, deadline)
                await asked.answered(lambda: self._elsewhere(hosts))
            answers = [own, *asked.answers]
        else:
            answers = [await self._own(row, deadline)]
        told.silent = hosts - {host for answer in answers for host in answer.answered}
        for answer in answers:
            told.denials.extend(answer.denials)
            for one in answer.rules:
                _add(told.sums, (one.owner_uid, one.rule, one.direction), one)
        return told

    def _hosts(self, identities: Iterable[int]) -> set[str]:
        guards = self.security.guards
        names = (name for number in identities for name in self.security.guards_by_identity.keys(number))
        return {host for name in names for host in guards.rows[name].hosts}

    def _elsewhere(self, hosts: Iterable[str]) -> set[str]:
        sessions = self.store.world.sessions.rows
        return {sessions[host].replica for host in hosts if host in sessions} - {self.questions.replica.id}

    # ---- answering

    async def _respond(self, _: str, row: store_pb2.Barrier, deadline: float) -> store_pb2.BarrierAnswer:
        answer = await self._own(row, deadline)
        if len(answer.rules) > _MOST:  # more than a value of the store holds: as if these hosts were silent
            log.warning("too many rules to tell another replica", rules=len(answer.rules))
            return store_pb2.BarrierAnswer()
        return answer

    async def _own(self, row: store_pb2.Barrier, deadline: float) -> store_pb2.BarrierAnswer:
        """The hosts in session here, as soon as they have all told, or at the deadline."""
        hosts = self._hosts(row.identities)
        asked = [session for host, session in self.sessions.by_host.items() if host in hosts]
        before = {session: session.rules.wholes for session in asked}
        for session in asked:
            session.ask_rules()
        try:
            async with asyncio.timeout_at(loop_time(deadline)):
                while any(self._waits(session, wholes) for session, wholes in before.items()):
                    await self.sessions.progress()
        except TimeoutError:
            pass
        answered = [session for session, wholes in before.items() if session.rules.wholes > wholes]
        answer = store_pb2.BarrierAnswer(answered=sorted(session.host_uid for session in answered))
        if row.question == store_pb2.Barrier.QUESTION_RULES:
            answer.rules.extend(self._sums(answered, frozenset(row.identities)))
        else:
            newest = self.sessions.denials.newest(
                tenant_uid=row.tenant_uid, port_uid=row.port_uid, after=row.after, limit=row.limit
            )
            answer.denials.extend(newest)
        return answer

    def _waits(self, session: Session, wholes: int) -> bool:
        return session.rules.wholes == wholes and self.sessions.by_host.get(session.host_uid) is session

    def _sums(self, sessions: Iterable[Session], identities: Collection[int]) -> Iterable[RuleSum]:
        sums: dict[SumKey, RuleSum] = {}
        origins = {n: dict(body.origins) for n in identities if (body := self.security.bodies.rows.get(n))}
        for session in sessions:
            for (identity, direction, rule), count in session.rules.counts.items():
                origin = origins.get(identity, {}).get(rule)
                if identity not in origins or (rule and origin is None):
                    continue  # another identity's, or a rule that is gone here
                owner = (origin.uid, origin.id) if origin else ("", 0)
                _add(sums, (*owner, direction), count)
        return sums.values()


def _add(sums: dict[SumKey, RuleSum], key: SumKey, more: object) -> None:
    """Add what has the fields of a count."""
    one = sums.get(key)
    if one is None:
        one = sums[key] = RuleSum(owner_uid=key[0], rule=key[1], direction=key[2])
    for name in _FIELDS:
        setattr(one, name, getattr(one, name) + getattr(more, name))
