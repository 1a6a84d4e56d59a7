"""Create, Get, List, Update and Delete: the same for every kind; what differs is in its writer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from controller import masks, names
from controller.api.reads import Parts, Reads
from controller.caller import Caller, current_caller
from controller.commit import Committed, Effect
from controller.decode import intent
from controller.draft import Draft, Written
from controller.errors import ApiError, NotFound
from controller.etcd.types import KeyValue
from controller.fields import Violations, unknown
from controller.intents.base import Writer, check_etag, stored_message
from controller.intents.group import ensure_default
from controller.keys import OWNED
from controller.requests import Replay, Ticket
from controller.rows import Intent
from controller.store import Store

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Change:
    """An Update: `build` drafts it, and puts the object into `unchanged` if it is so already. `what` as in `write`."""

    name: str
    build: Callable[[Draft], None]
    what: str
    unchanged: list[Intent[Any]]


class Standard(Reads[M]):
    """The standard methods of one kind."""

    def __init__(self, parts: Parts, writer: Writer) -> None:
        super().__init__(parts, writer.kind)
        self.writer = writer

    # ---- writing

    async def create(self, request: Any) -> M:
        """Create, AIP-133."""
        ident = names.check_ident(getattr(request, f"{self.field}_id"), f"{self.field}_id")
        parent = names.check_parent(request.parent, "parent") if self.kind in OWNED else ""
        name = names.full_name(self.kind, parent, ident)
        body = self.body(getattr(request, self.field), name=name)
        await self.ready(name)

        def build(draft: Draft) -> None:
            self.writer.create(draft, name, copy_of(body))

        created: M = await self.write(request, build, name=name, what="Created")
        return created

    async def update(self, request: Any) -> M:
        """Update, AIP-134; with an etag only what the caller has seen is changed."""
        change = self.change(request)
        await self.ready(change.name)
        updated: M = await self.write(
            request, change.build, name=change.name, what=change.what, unchanged=change.unchanged
        )
        return updated

    def change(self, request: Any) -> Change:
        """What an Update asks for. Raises Invalid."""
        given = getattr(request, self.field)
        name = names.check_name(self.kind, given.name, f"{self.field}.name")
        body = self.body(given, name=name)
        paths = masks.paths_of(request.update_mask, given, self.writer.policy)
        unchanged: list[Intent[Any]] = []

        def build(draft: Draft) -> None:
            unchanged.clear()
            row = self.row(draft, name)
            check_etag(row, given.etag)
            message, before = stored_message(row, self.kind), stored_message(row, self.kind)
            masks.merge(message, body, paths=paths, policy=self.writer.policy, prefix=self.field)
            self.writer.update(draft, row, message)
            message.update_time.CopyFrom(before.update_time)
            if message == before:
                draft.discard()
                unchanged.append(row)

        return Change(name, build, f"Updated {', '.join(paths)[:200]}", unchanged)

    async def delete(self, request: Any, *, etag: str | None = None) -> None:
        """Delete, AIP-135; `etag` takes the place of the request's."""
        name = names.check_name(self.kind, request.name, "name")

        def build(draft: Draft) -> None:
            row = self.row(draft, name)
            check_etag(row, request.etag if etag is None else etag)
            self.writer.delete(draft, row)

        await self.write(request, build, name=name, what="Deleted")

    async def is_done(self, request: Any, name: str) -> bool:
        """Whether a request with an id was carried out before. Raises Invalid for the id of another request."""
        try:
            await self._ticket(request, name)
        except Replay:
            return True
        return False

    async def _ticket(self, request: Any, name: str) -> Ticket | None:
        tenant = names.tenant_of(name) if self.kind in names.IN_TENANT else ""
        return await self.parts.requests.ticket(request, tenant=tenant, request_id=request.request_id)

    def body(self, given: Any, *, name: str) -> Any:
        """The object of a request in canonical form, without what only the server sets. Raises Invalid."""
        found = Violations(self.field)
        unknown(given, "", found)
        if given.name not in ("", name):
            found.add("name", f"{given.name[:200]!r} is not {name}; leave it out")
        body = copy_of(given)
        for field in self.writer.policy.output:
            body.ClearField(field)
        self.writer.fields(body, found)
        found.finish()
        return body

    async def ready(self, name: str) -> None:
        """What must be there before an object of this kind: a tenant of an earlier version gets its default group."""
        if self.kind in ("network", "port", "group"):
            await ensure_default(self.parts.store, names.tenant_of(name))

    def row(self, draft: Draft, name: str) -> Intent[Any]:
        """The object as it is, compared whole. Raises NotFound."""
        row = draft.reading.row(self.kind, name)
        if row is None:
            raise NotFound(name)
        return row

    async def write(
        self,
        request: Any,
        build: Callable[[Draft], None],
        *,
        name: str,
        what: str,
        unchanged: list[Intent[Any]] | None = None,
    ) -> Any:
        """Commit, once per request id, and answer with the object (None: it was deleted).

        The first word of `what` is the reason of the event, the rest its text.
        """
        caller = current_caller()
        effect = Effect.VALIDATE if request.validate_only else Effect.WRITE
        ticket: Ticket | None = None
        reason, _, text = what.partition(" ")
        noted = await self.parts.notes.noting(build, reason=reason, text=text)

        def ticketed(draft: Draft) -> None:
            noted(draft)
            if ticket and draft.objects:
                ticket.enter(draft)

        try:
            if effect is Effect.WRITE:
                ticket = await self._ticket(request, name)
            committed = await self.parts.committer.commit(ticketed, effect=effect, patience=caller.time_left)
        except (ApiError, Replay) as error:
            why = await self.parts.requests.explain(ticket, error)
            if not isinstance(why, Replay):
                raise why from None
            return None if request.DESCRIPTOR.name.startswith("Delete") else await self._replayed(why, caller)
        if unchanged:
            return self.parts.presenter.message(self.kind, unchanged[0], caller)
        return self._answer(committed, caller)

    def _answer(self, committed: Committed, caller: Caller) -> Any:
        own = next(w for w in committed.written if w.kind == self.kind)
        if own.value is None:
            return None
        row = row_of(own, committed.revision, self.parts.store)
        return self.parts.presenter.message(self.kind, row, caller)

    async def _replayed(self, replay: Replay, caller: Caller) -> Any:
        await self.parts.requests.catch_up()
        row = getattr(self.world, f"{self.kind}s").rows.get(replay.record.name)
        if row is None or row.uid != replay.record.uid:
            raise replay.gone()
        return self.parts.presenter.message(self.kind, row, caller)


def copy_of(message: Any) -> Any:
    """A message of its own."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def row_of(written: Written, revision: int, store: Store) -> Intent[Any]:
    """The row of what was just written (or, with revision 0, of what would be)."""
    assert written.value is not None
    kv = KeyValue(written.key, written.value, written.create_revision or revision, revision, 1)
    return intent(written.kind, kv, store.keys)
