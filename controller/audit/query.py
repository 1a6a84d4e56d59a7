"""ListAudit: the logs of all replicas, merged by time. One question, one answer per replica."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.timestamp_pb2 import Timestamp

from controller.audit.log import AuditLog, Entry
from controller.questions import Questions
from controller.store import Store
from tealnet.store.v1 import store_pb2
from tealnet.v1 import admin_pb2

DEFAULT, MOST = 100, 1000
_MOST_BYTES = 1 << 20  # of an answer: a value in etcd is at most 1.5 MiB


class AuditQuery:
    """Asks, and answers the other replicas."""

    def __init__(self, store: Store, questions: Questions, audit: AuditLog) -> None:
        self.store, self.questions, self.audit = store, questions, audit
        questions.answer(store_pb2.Barrier.QUESTION_AUDIT, self._respond)

    async def ask(self, request: admin_pb2.ListAuditRequest, *, timeout: float) -> admin_pb2.ListAuditResponse:
        """The newest entries of all replicas. Raises StoreError."""
        response, deadline = admin_pb2.ListAuditResponse(), time.monotonic() + timeout
        own = asyncio.create_task(asyncio.to_thread(self._own, request))
        encoded: list[bytes] = []
        try:
            if self._others():
                row = store_pb2.Barrier(question=store_pb2.Barrier.QUESTION_AUDIT, request=request.SerializeToString())
                async with self.questions.ask(row, deadline) as asked:
                    await asked.answered(self._others)
                    response.silent_replicas.extend(sorted(asked.silent(self._others())))
                encoded = [item for answer in asked.answers for item in answer.items]
        finally:
            encoded += await own
        entries = [admin_pb2.AuditEntry.FromString(item) for item in encoded]
        entries.sort(key=lambda entry: (entry.time.seconds, entry.time.nanos))
        response.entries.extend(entries[-(request.page_size or DEFAULT) :])
        return response

    def _others(self) -> set[str]:
        return set(self.store.world.replicas.rows) - {self.questions.replica.id}

    async def _respond(self, _: str, row: store_pb2.Barrier, deadline: float) -> store_pb2.BarrierAnswer:
        request = admin_pb2.ListAuditRequest.FromString(row.request)
        items = await asyncio.to_thread(self._own, request)
        return store_pb2.BarrierAnswer(items=items)

    def _own(self, request: admin_pb2.ListAuditRequest) -> list[bytes]:
        """This replica's newest entries, encoded; in a thread of its own."""
        since = _iso(request.after) if request.HasField("after") else ""
        found = self.audit.newest(matcher(request), limit=request.page_size or DEFAULT, since=since)
        items, size = list[bytes](), 0
        for item in reversed([item for entry in found if (item := _encoded(entry))]):
            size += len(item)
            if size > _MOST_BYTES:
                break
            items.append(item)
        return items[::-1]


def matcher(request: admin_pb2.ListAuditRequest) -> Callable[[Entry], bool]:
    """Whether an entry is asked for."""
    before = _iso(request.before) if request.HasField("before") else ""

    def matches(entry: Entry) -> bool:
        if before and str(entry.get("time", "")) >= before:
            return False
        if request.who and not _within(str(entry.get("who", "")), request.who):
            return False
        return not request.name or any(_within(name, request.name) for name in _names(entry))

    return matches


def _names(entry: Entry) -> Iterable[str]:
    yield str(entry.get("name", ""))
    objects = entry.get("objects", ())
    yield from (str(name) for name in objects) if isinstance(objects, list) else ()


def _within(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}/")


def _encoded(entry: Entry) -> bytes:
    """As a message; empty for what is none."""
    try:
        return ParseDict(entry, admin_pb2.AuditEntry(), ignore_unknown_fields=True).SerializeToString()
    except ParseError:
        return b""


def _iso(moment: Timestamp) -> str:
    return iso(moment.ToDatetime(UTC))


def iso(moment: datetime) -> str:
    """As it stands in the file: always microseconds, so that texts are in the order of time."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
