"""One check: the store by this replica, the hosts by the replicas that serve them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import structlog

from controller.audit.trail import current_trail
from controller.check import rows, stored
from controller.check.finding import Finding
from controller.check.hosts import HostCheck
from controller.etcd.types import prefix_end
from controller.questions import Questions
from controller.sessions import Sessions
from controller.store import Store
from tealnet.store.v1 import store_pb2
from tealnet.v1 import admin_pb2

log = structlog.get_logger()

MOST = 1000  # findings that are told
_LOGGED = 100
_AT_ONCE = 64  # transactions under way
_MOST_OF_OTHERS = 2000  # in one replica's answer


class Check:
    """Asks, and answers the other replicas."""

    def __init__(self, store: Store, sessions: Sessions, questions: Questions) -> None:
        self.store, self.sessions, self.questions = store, sessions, questions
        self.hosts = HostCheck(store, sessions)
        questions.answer(store_pb2.Barrier.QUESTION_CHECK, self._respond)

    async def run(self, request: admin_pb2.CheckRequest, *, timeout: float) -> admin_pb2.CheckResponse:
        """Everything, and the repairs if they are asked for. Raises StoreError."""
        response, found = await self._store(repair=request.repair)
        compared: set[str] = set()
        for answer in await self._hosts(request, timeout=timeout):
            found.extend(map(admin_pb2.Finding.FromString, answer.items))
            compared.update(answer.answered)
        world = self.store.world
        response.hosts = len(compared)
        response.silent_hosts.extend(
            sorted(host.name for host in world.hosts.rows.values() if host.uid not in compared and not host.spec.fenced)
        )
        response.findings.extend(found[:MOST])
        response.more = max(0, len(found) - MOST)
        repaired = [one for one in found if one.repaired]
        if repaired:
            revision = await self.store.barrier()  # what was repaired is in the tables when the caller looks
            if trail := current_trail():
                trail.wrote(revision, (one.subject for one in repaired))
            log.warning("repaired", findings=len(repaired))
            for one in repaired[:_LOGGED]:
                log.warning("repaired", kind=one.kind, subject=one.subject, object=one.object, repair=one.repair)
        return response

    # ---- the store

    async def _store(self, *, repair: bool) -> tuple[admin_pb2.CheckResponse, list[admin_pb2.Finding]]:
        store, keys = self.store, self.store.keys
        prefix = keys.watched.removesuffix(b"w/") + b"k/"
        revision, kvs = await store.etcd.scan(prefix, prefix_end(prefix))
        await store.barrier()
        candidates = [*await stored.differences(store, {kv.key: kv for kv in kvs}), *await rows.intents(store)]
        at, orphans = store.revision, rows.orphans(store)
        for key, what in orphans.items():
            left = (await store.etcd.range(key)).kvs
            candidates.extend(rows.orphan(store, kv, what) for kv in left if kv.mod_revision <= at)
        found: list[admin_pb2.Finding] = []
        for start in range(0, len(candidates), _AT_ONCE):
            part = candidates[start : start + _AT_ONCE]
            found += filter(None, await asyncio.gather(*(self._confirm(one, repair=repair) for one in part)))
            if len(found) > MOST and not repair:  # nobody reads more; what is left is counted as it looks
                found += [one.message(repaired=False) for one in candidates[start + _AT_ONCE :]]
                break
        world = store.world
        intents = sum(
            len(table.rows)
            for table in (
                world.tenants, world.hosts, world.routers, world.networks, world.ports, world.splits, world.rollouts,
                world.groups, world.tiers,
            )
        )  # fmt: skip
        return admin_pb2.CheckResponse(revision=revision, intents=intents, keys=len(kvs)), found

    async def _confirm(self, candidate: Finding, *, repair: bool) -> admin_pb2.Finding | None:
        """None: it is not so any more."""
        ops = candidate.ops if repair else ()
        result = await self.store.etcd.txn(candidate.holds, ops)
        return candidate.message(repaired=bool(ops)) if result.succeeded else None

    # ---- hosts

    async def _hosts(self, request: admin_pb2.CheckRequest, *, timeout: float) -> list[store_pb2.BarrierAnswer]:
        deadline = time.monotonic() + timeout
        if not self._elsewhere():
            return [await self._own(request, deadline)]
        row = store_pb2.Barrier(question=store_pb2.Barrier.QUESTION_CHECK, request=request.SerializeToString())
        async with self.questions.ask(row, deadline) as asked:
            own = await self._own(request, deadline)
            await asked.answered(self._elsewhere)
        return [own, *asked.answers]

    def _elsewhere(self) -> set[str]:
        return {row.replica for row in self.store.world.sessions.rows.values()} - {self.questions.replica.id}

    async def _respond(self, _: str, row: store_pb2.Barrier, deadline: float) -> store_pb2.BarrierAnswer:
        return await self._own(admin_pb2.CheckRequest.FromString(row.request), deadline)

    async def _own(self, request: admin_pb2.CheckRequest, deadline: float) -> store_pb2.BarrierAnswer:
        looked = await self.hosts.look(repair=request.repair, deadline=deadline)
        return store_pb2.BarrierAnswer(answered=sorted(looked.compared), items=_encoded(looked.findings))


def _encoded(findings: Iterable[admin_pb2.Finding]) -> list[bytes]:
    return [one.SerializeToString() for one in list(findings)[:_MOST_OF_OTHERS]]
