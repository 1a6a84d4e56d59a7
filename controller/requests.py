"""Request ids: a create that is sent twice makes one object (T7).

The record of a request lies under `k/i/` for 24 hours, on the leases of events: one per replica and ten minutes, not
one per write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from controller.draft import Draft
from controller.errors import Ambiguous, DeletedSince, invalid
from controller.etcd import StoreError
from controller.etcd.types import KeyValue
from controller.events import Events
from controller.store import Store
from tealnet.store.v1 import store_pb2

_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Replay(Exception):
    """The request was carried out before, at `revision`; `record` says what came of it."""

    def __init__(self, record: store_pb2.RequestRecord, *, revision: int) -> None:
        super().__init__(record.name)
        self.record, self.revision = record, revision

    def gone(self) -> DeletedSince:
        """The answer where its object is no longer there: the caller must know that it was done all the same."""
        return DeletedSince(self.record.name, revision=self.revision)


@dataclass(frozen=True, slots=True)
class Ticket:
    """One request that may be sent again."""

    key: bytes
    fingerprint: bytes
    lease: int

    def answer(self, found: KeyValue) -> Exception:
        """What it means that the request id is there already."""
        record = store_pb2.RequestRecord.FromString(found.value)
        if record.fingerprint != self.fingerprint:
            text = "was used for another request within the last 24 hours; choose another"
            return invalid("request_id", text, reason="REQUEST_ID_REUSED")
        return Replay(record, revision=found.create_revision)  # written by the transaction itself, once

    def enter(self, draft: Draft) -> None:
        """Claim the id in the transaction, for the first object of the draft."""
        written = draft.objects[0]
        record = store_pb2.RequestRecord(fingerprint=self.fingerprint, name=written.name, uid=written.uid)
        draft.claim(self.key, record.SerializeToString(), refuse=self.answer, lease=self.lease)


class Requests:
    """Makes tickets for one replica."""

    def __init__(self, store: Store, events: Events) -> None:
        self.store, self.etcd, self.events = store, store.etcd, events

    async def ticket(self, request: Any, *, tenant: str, request_id: str, part: str = "") -> Ticket | None:
        """A ticket for a request with an id, None for one without. `tenant`: its resource name, "" for global objects.

        `part` tells the parts of one request apart. Raises Invalid, and Replay if it was carried out before.
        """
        if not request_id:
            return None
        check_id(request_id)
        key = self.store.keys.request(await self._scope(tenant), request_id) + part.encode()
        ticket = Ticket(key, fingerprint(request), await self.events.lease())
        found = await self.etcd.range(ticket.key)
        if found.kvs:
            raise ticket.answer(found.kvs[0])
        return ticket

    async def _scope(self, tenant: str) -> str:
        """The uid of a tenant: a name that is used again does not know its predecessor's requests."""
        tenants = self.store.world.tenants.rows
        if tenant and tenant not in tenants:
            await self.store.barrier()  # this replica may be behind the one that created it
        row = tenants.get(tenant)
        return row.uid if row else "-"

    async def explain(self, ticket: Ticket | None, error: Exception) -> Exception:
        """An error of a request, unless the request was carried out meanwhile, by somebody who sent it, too.

        Where the store does not say, the error stays: of one that says that the write is unclear nobody may make one
        that says that nothing was written.
        """
        if ticket is None or isinstance(error, Replay):
            return error
        try:
            found = await self.etcd.range(ticket.key)
        except StoreError:
            return error
        return ticket.answer(found.kvs[0]) if found.kvs else error

    async def catch_up(self) -> None:
        """Wait until the tables have what was done under an id. Raises Ambiguous: what was done is not undone by it."""
        try:
            await self.store.barrier()
        except StoreError as error:
            raise Ambiguous("the write was done before, but the store does not say what came of it") from error


def check_id(request_id: str) -> None:
    """Raises Invalid for what is no request id."""
    if request_id and not _FORM.fullmatch(request_id):
        raise invalid("request_id", "letters, digits, '.', '_' and '-', at most 63; for example a UUID")


def fingerprint(request: Any) -> bytes:
    """Of what is asked, its method included."""
    text = f"{request.DESCRIPTOR.full_name}\0".encode()
    return blake2b(text + request.SerializeToString(deterministic=True), digest_size=16).digest()
