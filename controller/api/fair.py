"""Whose call is next: a queue for each party, so that what one tenant asks for does not keep the others waiting.

    calls ──► queue of their tenant (admins together, hosts together) ──round robin──► at most AT_ONCE under way

A party that is alone may use all places; while others have called within the last second, everyone's share is equal, so
that who comes seldom finds a place free. Then also a party of which calls wait rests after each one for as long as that
took: new calls of all parties come in through one door, one per round or two of the event loop, and a backlog sends a
new one in for each that ends. A connection carries STREAMS calls at once (HTTP/2): what a client has beyond that waits
at the client and costs nothing here. Calls that wait for others by their nature (Sync, questions to hosts) and streams
are not queued but counted. Units of the agents' stream are not concerned, and never split.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from controller.auth import AGENTS, OPEN
from controller.caller import Caller, current_caller
from controller.errors import ResourceExhausted

if TYPE_CHECKING:
    Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    Interceptor = grpc.aio.ServerInterceptor
Continue = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]

STREAMS = 100
"""Calls of one connection at once: `grpc.max_concurrent_streams`."""
AT_ONCE = 8
"""Calls under way, of all parties together: enough to keep the processor busy while some wait for etcd."""
QUEUED = 1000
"""Calls of one party that wait. One more is refused, after it has waited, too: a refusal that costs nothing would be
asked for again at once."""
WAITING = 200
"""Streams and calls that wait for others, of one party at once."""
_RECENT = 1.0  # seconds for which a party that has called is counted in
_PATIENCE = 1.0  # seconds until a call beyond QUEUED is refused
_UNQUEUED = frozenset(
    {"Sync", "ListRules", "ListDenials", "GetStatus", "ListAudit", "Check", "Backup", "Defragment", "DisarmAlarms"}
)
"""What takes long because it waits, not because it works."""


class Gate:
    """The queues. `clock` is monotonic, in seconds; `later` calls something after so many seconds."""

    def __init__(
        self,
        *,
        at_once: int,
        queued: int,
        clock: Callable[[], float] | None = None,
        later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self.at_once, self.queued = at_once, queued
        self._clock = clock or asyncio.get_running_loop().time
        self._later = later or asyncio.get_running_loop().call_later
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}  # in the order of their turns
        self._running: Counter[str] = Counter()
        self._resting: Counter[str] = Counter()  # places that a party leaves free although calls of it wait
        self._seen: dict[str, float] = {}  # when a party has called last, oldest first

    @contextlib.asynccontextmanager
    async def turn(self, party: str) -> AsyncIterator[None]:
        """A place until the end of the block. Raises ResourceExhausted if too many of the party wait."""
        self._seen.pop(party, None)
        self._seen[party] = self._clock()
        queue = self._queues.get(party)
        if queue or not self._may(party):
            await self._wait(party)
        else:
            self._running[party] += 1
        began = self._clock()
        try:
            yield
        finally:
            self._count(self._running, party, -1)
            if self._queues.get(party) and self._lately() > 1:
                self._count(self._resting, party, 1)
                self._later(min(self._clock() - began, _RECENT), partial(self._rested, party))
            self._pass()

    def share(self) -> int:
        """How many places each party may have now."""
        return max(1, self.at_once // max(1, self._lately()))

    def _lately(self) -> int:
        """How many parties have called within the last second, or have calls here."""
        now = self._clock()
        while self._seen:
            party = next(iter(self._seen))
            if now - self._seen[party] < _RECENT:
                break
            del self._seen[party]
            if party in self._running or party in self._queues:
                self._seen[party] = now
        return len(self._seen)

    def _rested(self, party: str) -> None:
        self._count(self._resting, party, -1)
        self._pass()

    def _count(self, places: Counter[str], party: str, more: int) -> None:
        places[party] += more
        if not places[party]:
            del places[party]

    def _may(self, party: str) -> bool:
        return self._running.total() < self.at_once and self._has(party) < self.share()

    def _has(self, party: str) -> int:
        return self._running[party] + self._resting[party]

    async def _wait(self, party: str) -> None:
        if len(self._queues.get(party, ())) >= self.queued:
            await asyncio.sleep(_PATIENCE)
            if len(self._queues.get(party, ())) >= self.queued:
                text = f"{self.queued} calls of {party} wait already: call less often, or several things at once"
                raise ResourceExhausted(text, subject=party, reason="TOO_MANY_CALLS")
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(party, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was given a place and can't use it
                self._count(self._running, party, -1)
                self._pass()
            elif queue := self._queues.get(party):
                with contextlib.suppress(ValueError):
                    queue.remove(place)
                if not queue:
                    del self._queues[party]
            raise

    def _pass(self) -> None:
        """Give free places away, one to each party in turn."""
        passed = True
        while passed and self._running.total() < self.at_once:
            passed = False
            share = self.share()
            for party in list(self._queues):
                if self._has(party) >= share or self._running.total() >= self.at_once:
                    continue
                queue = self._queues.pop(party)
                place = queue.popleft()
                if queue:
                    self._queues[party] = queue  # behind the others
                if not place.done():
                    self._running[party] += 1
                    place.set_result(None)
                passed = True


class Fair(Interceptor):
    """Inside `Auth`: it needs to know who calls."""

    def __init__(self) -> None:
        self.gate: Gate | None = None
        self._waiting: Counter[str] = Counter()

    async def intercept_service(self, continuation: Continue, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Wrap unary and server-streaming handlers."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith((AGENTS, *OPEN)) or handler.request_streaming:
            return handler
        if self.gate is None:
            self.gate = Gate(at_once=AT_ONCE, queued=QUEUED)
        if handler.response_streaming:
            return self._streaming(handler)
        return self._unary(handler, is_queued=method.rsplit("/", 1)[-1] not in _UNQUEUED)

    def _unary(self, handler: Any, *, is_queued: bool) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            assert self.gate is not None
            party = party_of(current_caller())
            async with self.gate.turn(party) if is_queued else self._counted(party):
                return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )

    def _streaming(self, handler: Any) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            async with (
                self._counted(party_of(current_caller())),
                contextlib.aclosing(handler.unary_stream(request, context)) as responses,
            ):
                async for response in responses:
                    yield response

        return grpc.unary_stream_rpc_method_handler(
            call, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )

    @contextlib.asynccontextmanager
    async def _counted(self, party: str) -> AsyncIterator[None]:
        if self._waiting[party] >= WAITING:
            await asyncio.sleep(_PATIENCE)
            if self._waiting[party] >= WAITING:
                text = f"{party} has {WAITING} streams and waiting calls already: end some"
                raise ResourceExhausted(text, subject=party, reason="TOO_MANY_STREAMS")
        self._waiting[party] += 1
        try:
            yield
        finally:
            self._waiting[party] -= 1
            if not self._waiting[party]:
                del self._waiting[party]


def party_of(caller: Caller) -> str:
    """A tenant by its name; all others by what they are."""
    return caller.tenant or f"{caller.identity.kind.value}s"
