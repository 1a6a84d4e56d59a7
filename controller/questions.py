"""Asking all replicas: one key with the question, one answer per replica that has something to say, none per host.

What an answer is, is for those to say who register for a kind of question. Questions and answers are deleted by who
asked; what an asker that dies leaves behind goes with its lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import structlog

from controller.etcd import StoreError
from controller.etcd.types import delete, prefix_end, present, put
from controller.replica import Replica
from controller.store import Store
from tealnet.store.v1 import store_pb2

log = structlog.get_logger()

GRACE = 0.5  # seconds that an answer may take after the deadline
Answer = store_pb2.BarrierAnswer
Respond = Callable[[str, store_pb2.Barrier, float], Awaitable[Answer]]
"""Makes this replica's answer: (id of the question, question, deadline on the monotonic clock)."""


@dataclass(slots=True)
class Asked:
    """A question that stands; `answers` are there when `answered` returns."""

    questions: Questions
    id: str
    deadline: float
    answers: list[Answer]

    def silent(self, awaited: set[str]) -> set[str]:
        """Those of some replicas that have not answered."""
        rows = self.questions.store.world.answers.rows
        return {replica for replica in awaited if (self.id, replica) not in rows}

    async def answered(self, awaited: Callable[[], set[str]]) -> None:
        """Wait for the answers of replicas; one that vanishes, or has nothing to say any more, is not waited for."""
        questions = self.questions
        try:
            async with asyncio.timeout_at(loop_time(self.deadline + GRACE)):
                while self.silent(awaited()):
                    await questions.changed.wait()
                await questions.store.barrier()  # what they have written about their hosts
        except TimeoutError:
            log.warning("replicas did not answer", replicas=self.silent(awaited()))


class Questions:
    """Asks, and lets others answer. `run` as long as the process lives."""

    def __init__(self, store: Store, replica: Replica) -> None:
        self.store, self.replica = store, replica
        self.changed = asyncio.Event()  # an answer came, or hosts changed hands; a new one for each time
        self._responders: dict[int, Respond] = {}
        self._seen: set[str] = set()
        self._mine: set[str] = set()
        self._new = asyncio.Event()
        store.subscribe(lambda _, changes: self._follow({change.table for change in changes}))

    def answer(self, kind: store_pb2.Barrier.Question, respond: Respond) -> None:
        """Questions of a kind are answered by `respond`."""
        self._responders[kind] = respond

    @contextlib.asynccontextmanager
    async def ask(self, row: store_pb2.Barrier, deadline: float) -> AsyncIterator[Asked]:
        """Put a question to the other replicas until the end of the block, where their answers are taken in.

        Raises StoreError.
        """
        store, question = self.store, secrets.token_hex(16)
        row.timeout_ms = int(max(0.0, deadline - time.monotonic()) * 1000)
        key = store.keys.barrier(question)
        self._mine.add(question)  # our own part needs no writing
        asked = Asked(self, question, deadline, [])
        try:
            # Whoever gives up while this is on its way leaves no question behind either.
            await store.etcd.txn((), [put(key, row.SerializeToString(), self.replica.lease_id)])
            yield asked
        finally:
            rows = store.world.answers.rows
            asked.answers.extend(answer for (found, _), answer in rows.items() if found == question)
            prefix = key + b"/"
            gone = await store.etcd.txn((), [delete(key), delete(prefix, prefix_end(prefix))])
            await store.passed(gone.revision)
            self._mine.discard(question)

    def stands(self, question: str) -> bool:
        """Whether somebody still asks."""
        return question in self.store.world.barriers.rows

    async def run(self) -> None:
        """Answer the questions of other replicas."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._new.wait()
                self._new.clear()
                rows = self.store.world.barriers.rows
                self._seen &= rows.keys()
                for question in rows.keys() - self._seen - self._mine:
                    self._seen.add(question)
                    respond = self._responders.get(rows[question].question)
                    if not rows[question].mark and respond is not None:
                        group.create_task(self._answer(question, rows[question], respond))

    async def _answer(self, question: str, row: store_pb2.Barrier, respond: Respond) -> None:
        answer = await respond(question, row, time.monotonic() + row.timeout_ms / 1000)
        key = self.store.keys.barrier_answer(question, self.replica.id)
        asked = present(self.store.keys.barrier(question))  # nobody would clear away what comes after the question went
        try:
            await self.store.etcd.txn([asked], [put(key, answer.SerializeToString(), self.replica.lease_id)])
        except StoreError as error:
            log.warning("question not answered", question=question, error=str(error))

    def _follow(self, tables: set[str]) -> None:
        if "barriers" in tables:
            self._new.set()
        if tables & {"answers", "sessions", "ports", "hosts"}:
            self.changed.set()
            self.changed = asyncio.Event()


def loop_time(deadline: float) -> float:
    """A moment of the monotonic clock on the event loop's."""
    return asyncio.get_running_loop().time() + deadline - time.monotonic()
