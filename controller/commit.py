"""The commit loop: build a draft against the tables, send it, and find out why it failed if it did.

A failed transaction brings back every key that it compared. A name that is taken is the caller's answer; a number that
is taken is proposed anew, and only that; a parent or guard that has changed means: wait until the tables have it, and
check again. Nobody touches the tables here: the answer waits until the watch has brought the commit back.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import structlog

from controller.caller import PATIENCE
from controller.draft import Chosen, Draft, Emptiness, Proposals, Reading, Written, holds
from controller.errors import Aborted, AlreadyExists, Ambiguous, ApiError, ResourceExhausted, Unavailable
from controller.etcd import LeaseNotFound, OutcomeUnknown, StoreError, StoreFull, StoreUnavailable
from controller.etcd.types import Compare, Get, KeyValue, Nested, Op, Page, TxnResult, delete, get
from controller.store import Store
from tealnet.store.v1 import store_pb2

log = structlog.get_logger()

TRIES = 32
"""Views of the world that may be out of date before a caller is told so; who is told would only try again, from further
away. With twelve writers on a dozen objects, one call of 16,000 lost eight times in a row."""
_COLLISIONS = 200
_BLOCKERS = 10  # names shown
_COMEBACK = 1.5  # seconds that a write waits for a silent store
_CLEAR = 1.9  # seconds after which an unanswered write is said to be unclear
_PAUSE = 0.1  # seconds between looks at a store that does not answer


class Effect(Enum):
    """What a commit is for."""

    WRITE = "write"
    VALIDATE = "validate"
    """Everything is compared in etcd, nothing is written."""


class Atomicity(Enum):
    """What becomes of the others when an item is refused."""

    EACH = "each"
    """They are committed."""
    ALL = "all"
    """Nothing is."""


@dataclass(slots=True)
class Item:
    """One object's part of a commit. `build` fills a draft or raises ApiError; it runs again after each conflict."""

    build: Callable[[Draft], None]
    proposals: Proposals
    write_id: bytes = field(default_factory=lambda: secrets.token_bytes(16))  # chosen before the first try
    draft: Draft | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """What was written. `revision` is 0 if nothing was."""

    revision: int
    written: tuple[Written, ...]


@dataclass(slots=True)
class _Run:
    """The state of one commit over its attempts."""

    items: Sequence[Item]
    deadline: float
    tries: int = 0
    collisions: int = 0
    ambiguous: bool = False


class Committer:
    """Sends drafts for one replica. `max_ops` is what etcd takes in one list of a transaction.

    Outside of calls it is used for the steps of rollouts.

    `on_lease_gone` is called when a lease that a draft writes on is not there any more.
    """

    def __init__(self, store: Store, *, max_ops: int = 128, on_lease_gone: Callable[[], None] = lambda: None) -> None:
        self.store, self.max_ops = store, max_ops
        self._on_lease_gone = on_lease_gone
        self._in_flight: set[bytes] = set()

    def item(self, build: Callable[[Draft], None], shared: Chosen | None = None) -> Item:
        """A part of a commit; `shared` is one for all its parts."""
        return Item(build, Proposals(self._in_flight, shared))

    async def commit(
        self, build: Callable[[Draft], None], *, effect: Effect = Effect.WRITE, patience: float = PATIENCE
    ) -> Committed:
        """One object, or what belongs together. Raises ApiError, or what a claim says when its key is taken."""
        item = self.item(build)
        try:
            committed = await self.send([item], effect=effect, patience=patience)
        finally:
            item.proposals.release()
        if item.error is not None:
            raise item.error
        assert committed is not None
        return committed

    async def send(
        self,
        items: Sequence[Item],
        *,
        effect: Effect = Effect.WRITE,
        patience: float = PATIENCE,
        atomicity: Atomicity = Atomicity.EACH,
    ) -> Committed | None:
        """Commit the items in one transaction, without those that get an `error`. None: nothing was left to commit.

        Raises Aborted, Unavailable, Ambiguous, ResourceExhausted.
        """
        run = _Run(items, asyncio.get_running_loop().time() + patience)
        await self._heard()
        try:
            while True:
                await self._prepare(run)
                if atomicity is Atomicity.ALL and any(item.error is not None for item in items):
                    return None
                drafts = [item.draft for item in items if item.error is None and item.draft is not None]
                if not drafts:
                    return None
                if (committed := await self._attempt(run, drafts, effect)) is not None:
                    return committed
        except StoreFull as error:
            raise ResourceExhausted(
                "the store is full: compact and defragment etcd", subject="store", reason="STORE_FULL"
            ) from error
        except StoreError as error:
            if isinstance(error, LeaseNotFound):
                self._on_lease_gone()
            if run.ambiguous:
                raise Ambiguous("the store does not answer; the write may have been done") from error
            if not isinstance(error, StoreUnavailable):
                raise
            raise Unavailable(f"the store does not answer, nothing was written: {error}") from error

    async def _heard(self) -> None:
        """Begin nothing while the store is silent; it may be about to come back. Raises Unavailable."""
        if self.store.stale_since is None:
            return
        try:
            async with asyncio.timeout(_COMEBACK):
                await self.store.passed(self.store.revision + 1)
        except TimeoutError:
            raise Unavailable("the store does not answer, nothing was written; try again when it does") from None

    # ---- building

    async def prepare(self, items: Sequence[Item]) -> None:
        """Check and allocate without committing; `send` goes on from there. Raises Aborted, Unavailable."""
        run = _Run(items, asyncio.get_running_loop().time())
        try:
            await self._prepare(run)
        except StoreUnavailable as error:
            raise Unavailable(f"the store does not answer, nothing was written: {error}") from error

    async def _prepare(self, run: _Run) -> None:
        """Build what needs building; what is refused is refused only if its view of the world was current."""
        for item in run.items:
            while item.error is None and item.draft is None:
                draft = self._draft(item)
                try:
                    item.build(draft)
                    item.draft = draft
                except ApiError as error:
                    if await self._is_current(draft.reading):
                        item.error = error
                        item.proposals.release()
                    else:
                        self._count(run)
                        item.proposals.release()

    def _draft(self, item: Item) -> Draft:
        return Draft(Reading(self.store.world, self.store.keys), item.proposals, item.write_id)

    async def _is_current(self, reading: Reading) -> bool:
        """Whether everything that was read is so in etcd; if not, wait until the tables have what is."""
        checks = list(reading.checks.values())
        if not checks:
            return True
        result = await self.store.etcd.txn(checks, (), [get(check.key) for check in checks])
        if result.succeeded:
            return True
        await self._catch_up(checks, _found(result))
        return False

    # ---- sending

    async def _attempt(self, run: _Run, drafts: list[Draft], effect: Effect) -> Committed | None:
        """One transaction. None: it failed and the items have been told."""
        checks, writes = _checks(drafts), _writes(drafts)
        written = tuple(obj for draft in drafts for obj in draft.objects)
        then = [] if effect is Effect.VALIDATE else self._grouped(writes)
        clear_by = min(run.deadline, asyncio.get_running_loop().time() + _CLEAR)
        try:
            result = await self.store.etcd.txn(checks, then, [_look(check) for check in checks])
        except OutcomeUnknown:
            run.ambiguous = True
            if (revision := await self._settled(drafts[0], clear_by=clear_by)) is None:
                return None
            return await self._done(revision, written)
        if result.succeeded:
            return await self._done(result.revision, written) if then else Committed(0, written)
        if run.ambiguous and (revision := await self._settled(drafts[0], clear_by=clear_by)) is not None:
            return await self._done(revision, written)
        await self._failed(run, drafts, checks, result)
        return None

    def _grouped(self, writes: list[Op]) -> list[Op]:
        """Within etcd's limit: unconditional nested transactions carry more than one list (measured, A18)."""
        if len(writes) <= self.max_ops:
            return writes
        return [Nested((), tuple(writes[i : i + self.max_ops])) for i in range(0, len(writes), self.max_ops)]

    async def _done(self, revision: int, written: tuple[Written, ...]) -> Committed:
        self.store.wrote("Rollout", [own.name for own in written], revision)
        await self.store.committed(revision)
        return Committed(revision, written)

    async def _settled(self, draft: Draft, *, clear_by: float) -> int | None:
        """After an answer that never came: the revision if the write was done, None if it is to be tried again.

        Raises Ambiguous when the store has not said so until `clear_by` (of the loop's clock).
        """
        first = draft.objects[0]
        while True:
            try:
                async with asyncio.timeout_at(clear_by):
                    page = await self.store.etcd.range(first.key)
                break
            except (StoreUnavailable, TimeoutError) as error:
                if asyncio.get_running_loop().time() >= clear_by:
                    raise Ambiguous("the store does not answer; the write may have been done") from error
                await asyncio.sleep(_PAUSE)
        found = page.kvs[0] if page.kvs else None
        stored = store_pb2.Stored.FromString(found.value) if found else None
        if first.value is None:
            if stored is None or stored.uid != first.uid:
                return await self.store.barrier()
            return None
        if found is None or stored is None:
            return None
        if first.create_revision == 0 and stored.uid == first.uid:  # ours, whoever has changed it since
            return found.create_revision
        return found.mod_revision if stored.write_id == draft.write_id else None

    # ---- when it failed

    async def _failed(self, run: _Run, drafts: list[Draft], checks: list[Compare], result: TxnResult) -> None:
        """Give each item what its failed compares mean."""
        found = _found(result)
        pages = {(check.key, check.end): page for check, page in zip(checks, found, strict=True)}
        stale = False
        for item in run.items:
            if item.draft is None or item.error is not None:
                continue
            draft = item.draft
            if any(not holds(c, _first(pages[c.key, c.end])) for c in draft.reading.checks.values()):
                stale = True
                item.draft = None
                item.proposals.release()
                continue
            errors = [*_occupied(draft.emptiness, pages), *_taken(item, draft, pages, run)]
            if errors:
                item.error = foremost(errors)
                item.proposals.release()
        if run.collisions > _COLLISIONS:
            raise Aborted("too many others take the same numbers at the same time; try again")
        if stale:
            self._count(run)
            await self._catch_up(checks, found)

    def _count(self, run: _Run) -> None:
        run.tries += 1
        if run.tries >= TRIES:
            raise Aborted(f"what this depends on has changed {TRIES} times meanwhile; try again")

    async def _catch_up(self, checks: Sequence[Compare], found: Sequence[Page]) -> None:
        """Wait until the tables have what was found in etcd."""
        newest = 0
        for check, page in zip(checks, found, strict=True):
            kv = _first(page)
            if check.end or holds(check, kv):
                continue
            if kv is None:  # deleted, nobody says at which revision
                await self.store.barrier()
                return
            # Every commit writes under w/, so the watch passes this revision also when the key is under k/.
            newest = max(newest, kv.mod_revision)
        await self.store.passed(newest)


def foremost(errors: Sequence[Exception]) -> Exception:
    """Which of several refusals is told: that the name is taken says more than that what goes with it is."""
    return next((error for error in errors if isinstance(error, AlreadyExists)), errors[0])


def _checks(drafts: list[Draft]) -> list[Compare]:
    unique = {(c.key, c.end, c.field): c for draft in drafts for c in draft.checks()}
    return list(unique.values())


def _writes(drafts: list[Draft]) -> list[Op]:
    writes: list[Op] = [delete(key) for draft in drafts for key in draft.deletes]
    puts = {key: op for draft in drafts for key, op in draft.puts.items()}
    return [*writes, *puts.values()]


def _look(check: Compare) -> Get:
    return get(check.key, check.end, limit=_BLOCKERS if check.end else 1)


def _found(result: TxnResult) -> list[Page]:
    return [page for page in result.responses if isinstance(page, Page)]


def _first(page: Page) -> KeyValue | None:
    return page.kvs[0] if page.kvs else None


def _taken(item: Item, draft: Draft, pages: dict[tuple[bytes, bytes], Page], run: _Run) -> list[Exception]:
    """Claims that failed: refusals, or (for what was only proposed) none, and the draft is built again."""
    errors: list[Exception] = []
    for claim in draft.claims.values():
        kv = _first(pages[claim.key, b""])
        if kv is None:
            continue
        if claim.refuse is not None:
            errors.append(claim.refuse(kv))
        else:
            run.collisions += 1
            item.proposals.collided(claim.key)
            item.draft = None
    return errors


def _occupied(emptiness: list[Emptiness], pages: dict[tuple[bytes, bytes], Page]) -> list[Exception]:
    pairs = ((item, pages[item.check.key, item.check.end]) for item in emptiness)
    return [item.refuse(page) for item, page in pairs if page.kvs]
