"""BatchCreatePorts and BatchUpdatePorts (A25): all items are checked and allocated first, then committed in order, as
many at once as fit.

A transaction is atomic, a batch is not, unless it was asked for and fits: so each item has its own result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from controller import names
from controller.api.reads import Parts
from controller.api.standard import Standard, copy_of, row_of
from controller.caller import Caller, current_caller
from controller.commit import Atomicity, Item, foremost
from controller.draft import Chosen, Draft
from controller.errors import ApiError, Invalid, Violation, invalid
from controller.etcd.types import KeyValue
from controller.requests import Replay, Ticket, check_id
from controller.rows import Intent
from tealnet.v1 import common_pb2, port_pb2

MOST = 1000
Request = port_pb2.BatchCreatePortsRequest | port_pb2.BatchUpdatePortsRequest
Response = TypeVar("Response", port_pb2.BatchCreatePortsResponse, port_pb2.BatchUpdatePortsResponse)
_AT_ONCE = 10  # items worked on before others get their turn: some milliseconds
_BYTES = 1 << 20  # of a transaction's values; etcd takes 1.5 MiB with all overhead


@dataclass(slots=True)
class Entry:
    """One request of the batch: what is to be committed, or what came of it."""

    name: str = ""
    item: Item | None = None
    ticket: Ticket | None = None
    port: port_pb2.Port | None = None
    error: Exception | None = None
    changes: bool = False  # a port that is there
    unchanged: list[Intent[Any]] = field(default_factory=list)  # it, if it is already as it is wanted

    @property
    def is_open(self) -> bool:
        """Whether it is still to be committed."""
        return self.item is not None and self.port is None and self.error is None


Build = Callable[[Draft], None]
Drafting = Callable[[Any, str, Entry], tuple[Build, str, str]]
"""A request of the batch, and its parent: names the entry, and says how it is built; reason and text of the event."""


class Batch:
    """The methods."""

    def __init__(self, parts: Parts, standard: Standard[Any]) -> None:
        self.parts, self.standard = parts, standard

    async def create(self, request: port_pb2.BatchCreatePortsRequest) -> port_pb2.BatchCreatePortsResponse:
        """Raises ApiError for the batch as a whole; errors of items stand in the answer."""
        return await self._run(request, self._creation, port_pb2.BatchCreatePortsResponse())

    async def update(self, request: port_pb2.BatchUpdatePortsRequest) -> port_pb2.BatchUpdatePortsResponse:
        """The same for ports that are there."""
        return await self._run(request, self._change, port_pb2.BatchUpdatePortsResponse())

    async def _run(self, request: Request, draft: Drafting, response: Response) -> Response:
        caller = current_caller()
        names.check_parent(request.parent, "parent")
        check_id(request.request_id)
        if not 1 <= len(request.requests) <= MOST:
            raise invalid("requests", f"1 to {MOST} requests in a batch, not {len(request.requests)}")
        await self.standard.ready(names.full_name("port", request.parent, "any"))
        shared: Chosen = {}
        entries = [await self._entry(request, index, draft, shared) for index in range(len(request.requests))]
        _each_once(entries)
        try:
            await self._prepare(request, entries)
            revision, atomicity = 0, Atomicity.ALL if request.atomic else Atomicity.EACH
            for group in self._groups(entries):
                revision = max(revision, await self._commit(group, caller, atomicity))
                self._raise_if_atomic(request, entries)
        finally:
            for entry in entries:
                if entry.item is not None:
                    entry.item.proposals.release()
        return self._response(entries, revision, response)

    # ---- preparing

    async def _entry(self, batch: Request, index: int, draft: Drafting, shared: Chosen) -> Entry:
        request, entry = batch.requests[index], Entry()
        await _breathe(index)
        try:
            if request.request_id or request.validate_only:
                raise invalid("request_id" if request.request_id else "validate_only", "belongs to single requests")
            plain, reason, text = draft(request, batch.parent, entry)
            entry.ticket = await self.parts.requests.ticket(
                request, tenant=batch.parent, request_id=batch.request_id, part=f"/{index}"
            )
            build = await self.parts.notes.noting(self._ticketed(plain, entry.ticket), reason=reason, text=text)
            entry.item = self.parts.committer.item(build, shared)
        except Replay as replay:
            await self._replayed(entry, replay)
        except ApiError as error:
            entry.error = _located(error, index)
        return entry

    def _creation(self, request: Any, parent: str, entry: Entry) -> tuple[Build, str, str]:
        if request.parent not in ("", parent):
            raise invalid("parent", f"is {request.parent[:200]!r}; that of the batch is {parent}")
        entry.name = names.full_name("port", parent, names.check_ident(request.port_id, "port_id"))
        body = self.standard.body(request.port, name=entry.name)

        def build(draft: Draft) -> None:
            self.standard.writer.create(draft, entry.name, copy_of(body))

        return build, "Created", ""

    def _change(self, request: Any, parent: str, entry: Entry) -> tuple[Build, str, str]:
        change = self.standard.change(request)
        if names.tenant_of(change.name) != parent:
            raise invalid("port.name", f"{change.name[:200]!r} is not of {parent}")
        entry.name, entry.changes, entry.unchanged = change.name, True, change.unchanged
        reason, _, text = change.what.partition(" ")
        return change.build, reason, text

    def _ticketed(self, build: Build, ticket: Ticket | None) -> Build:
        def ticketed(draft: Draft) -> None:
            build(draft)
            if ticket and draft.objects:
                ticket.enter(draft)

        return ticketed

    async def _replayed(self, entry: Entry, replay: Replay) -> None:
        """Done by an earlier try of the same batch."""
        rows, record = self.parts.store.world.ports.rows, replay.record
        row = rows.get(record.name)
        if row is None or row.uid != record.uid:  # or this replica does not have it yet
            await self.parts.requests.catch_up()
            row = rows.get(record.name)
        if row is None or row.uid != record.uid:
            entry.error = replay.gone()
            return
        entry.port = self.parts.presenter.message("port", row, current_caller())

    async def _prepare(self, request: Request, entries: list[Entry]) -> None:
        """Check and allocate everything; those who ask for certain addresses first, so that others leave them alone."""
        waiting = [(index, entry) for index, entry in enumerate(entries) if entry.is_open]
        waiting.sort(key=lambda pair: not request.requests[pair[0]].port.addresses)
        claimed: dict[bytes, bytes] = {}
        for index, entry in waiting:
            assert entry.item is not None
            await _breathe(index)
            await self.parts.committer.prepare([entry.item])
            if entry.item.draft is not None:
                entry.item.error = _claimed_twice(entry.item.draft, claimed)
            if entry.item.error is not None:
                await self._refused(entry, index, entry.item.error)
        self._raise_if_atomic(request, entries)
        if request.atomic:
            groups = self._groups(entries)
            if len(groups) > 1:
                text = f"does not fit in one transaction of the store; the first {len(groups[0])} would"
                raise invalid("requests", text, reason="BATCH_TOO_LARGE")

    def _raise_if_atomic(self, request: Request, entries: list[Entry]) -> None:
        failed = next((entry.error for entry in entries if entry.error is not None), None)
        if request.atomic and failed is not None:
            raise failed

    # ---- committing

    def _groups(self, entries: list[Entry]) -> list[list[tuple[int, Entry]]]:
        """Consecutive entries, as many at once as one transaction takes."""
        groups: list[list[tuple[int, Entry]]] = []
        compares = size = 0
        most = self.parts.committer.max_ops
        for index, entry in enumerate(entries):
            if not entry.is_open or entry.item is None or entry.item.draft is None:
                continue
            draft = entry.item.draft
            need = len(draft.checks())
            weight = sum(len(op.key) * 3 + len(op.value) for op in draft.puts.values())
            if not groups or compares + need > most or size + weight > _BYTES:
                groups.append([])
                compares = size = 0
            groups[-1].append((index, entry))
            compares, size = compares + need, size + weight
        return groups

    async def _commit(self, group: list[tuple[int, Entry]], caller: Caller, atomicity: Atomicity) -> int:
        """One transaction for a group; what is refused has its error, the others go on without it."""
        items = [entry.item for _, entry in group if entry.item is not None]
        try:
            committed = await self.parts.committer.send(items, patience=caller.time_left, atomicity=atomicity)
        except ApiError as error:
            for index, entry in group:
                entry.error = entry.error or _located(error, index)
            return 0
        written = {w.name: w for w in committed.written if w.kind == "port"} if committed else {}
        for index, entry in group:
            if (own := written.get(entry.name)) and entry.item and entry.item.error is None and committed:
                row = row_of(own, committed.revision, self.parts.store)
                entry.port = self.parts.presenter.message("port", row, caller)
            elif entry.item and entry.item.error:
                await self._refused(entry, index, entry.item.error)
            elif entry.unchanged:
                entry.port = self.parts.presenter.message("port", entry.unchanged[0], caller)
        return committed.revision if committed else 0

    async def _refused(self, entry: Entry, index: int, error: Exception) -> None:
        why = await self.parts.requests.explain(entry.ticket, error)
        if isinstance(why, Replay):
            await self._replayed(entry, why)
        else:
            entry.error = _located(why, index)

    def _response(self, entries: list[Entry], revision: int, response: Response) -> Response:
        response.revision = revision
        for entry in entries:
            result = response.results.add()
            if entry.port is not None:
                result.port.CopyFrom(entry.port)
                response.revision = max(response.revision, entry.port.revision)
            elif isinstance(entry.error, ApiError):
                status = entry.error.status()
                result.error.CopyFrom(
                    common_pb2.Error(code=status.code, message=status.message, details=status.details)
                )
        return response


def _each_once(entries: list[Entry]) -> None:
    """An update of a port that an earlier one of the batch is about is refused: which one would count?"""
    seen: set[str] = set()
    for index, entry in enumerate(entries):
        if entry.name in seen and entry.is_open and entry.item is not None and entry.changes:
            entry.item.proposals.release()
            entry.item, entry.error = None, invalid(f"requests[{index}].port.name", f"{entry.name} stands twice")
        seen.add(entry.name)


async def _breathe(index: int) -> None:
    """Others get their turn: whatever changes meanwhile is compared when the batch is committed."""
    if index % _AT_ONCE == _AT_ONCE - 1:
        await asyncio.sleep(0)


def _claimed_twice(draft: Draft, claimed: dict[bytes, bytes]) -> Exception | None:
    """What it means that an earlier item of the batch has claimed the same key: a name, an address, an interface."""
    twice = [
        claim.refuse(KeyValue(claim.key, claimed[claim.key], 0, 0, 0))
        for claim in draft.claims.values()
        if claim.key in claimed and claim.refuse  # what is only proposed is shared on purpose
    ]
    if twice:
        return foremost(twice)
    claimed.update({key: draft.puts[key].value for key in draft.claims if key in draft.puts})
    return None


def _located(error: Exception, index: int) -> Exception:
    """An item's error with field paths as seen from the batch."""
    if isinstance(error, Invalid):
        violations = [Violation(f"requests[{index}].{v.field}", v.text) for v in error.violations]
        return Invalid(violations, reason=error.reason)
    return error
