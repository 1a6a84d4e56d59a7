"""One OpenFlow 1.5 connection to a bridge's management socket.

A reader runs all the time: vswitchd stops reading from a client whose replies pile up, so one that only writes locks
up with it. It answers echo requests, finds out when the switch falls silent, and hands out replies by xid.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

import structlog

from agent.drivers.base import DeviceUnavailable
from agent.openflow import message as of
from agent.openflow import reply
from agent.openflow.errors import ProtocolError
from agent.openflow.message import Type
from agent.openflow.reply import ErrorReply, Message

log = structlog.get_logger()

CHUNK = 1 << 18  # bytes written before the reader and everybody else gets a turn
IDLE = 5.0  # seconds without a word until we ask
SILENCE = 10.0  # … and from then on until the switch counts as gone; a big reconfiguration takes vswitchd seconds
HANDSHAKE = 10.0
MONITOR_ID = 1  # the connection's own
MISS_SEND_LEN = 128  # any but 0; see `only_wanted`
SHOWN_RATE, SHOWN_BURST = 100, 100  # packets a second that are shown to us, all together

Encode = Callable[[int], bytes]  # a message for an xid; raises ProtocolError if it fits into none
Part = Callable[[bytes], None]


class RefusedError(Exception):
    """The switch answered a request with an error."""

    def __init__(self, error: ErrorReply) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch. `refused`: by index into the batch, why not."""

    committed: bool
    refused: dict[int, ErrorReply | ProtocolError]


@dataclass(slots=True)
class _Waiting:
    """Somebody who waits for the reply to an xid."""

    done: asyncio.Future[Message]
    on_part: Part | None = None


@dataclass(slots=True)
class _Batch:
    """Messages without replies; errors among them are told by xid."""

    xids: range
    refused: dict[int, ErrorReply | ProtocolError] = field(default_factory=dict)


class Session:
    """Use as `async with`: entered, it is connected and tells of changes by others.

    `on_change` is called with the cookie of each flow that somebody else added, removed or modified, and with None
    when a group was changed or the switch has lost count. `on_packet` gets the body of each packet that a flow shows
    us, so many a second at most, `on_port` name and number of each port that was added. Everything raises
    DeviceUnavailable once it is closed.
    """

    def __init__(
        self,
        path: str,
        *,
        on_change: Callable[[int | None], None],
        on_packet: Part = lambda body: None,
        on_port: Callable[[str, int], None] = lambda name, number: None,
    ) -> None:
        self._path = path
        self._on_change, self._on_packet, self._on_port = on_change, on_packet, on_port
        self._xid = 0
        self._waiting: dict[int, _Waiting] = {}
        self._batches: list[_Batch] = []
        self._why = ""
        self._closed = asyncio.Event()

    async def __aenter__(self) -> Session:
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(self._path, limit=1 << 20)
        except OSError as error:
            raise DeviceUnavailable(f"{self._path}: {error}") from error
        self._task = asyncio.create_task(self._read(), name="openflow-reader")
        try:
            async with asyncio.timeout(HANDSHAKE):
                await self._handshake()
        except BaseException as error:
            await self._stop()
            if isinstance(error, TimeoutError):
                raise DeviceUnavailable(f"{self._path}: no answer") from error
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self._stop()

    async def closed(self) -> str:
        """Return when the connection has ended, with the reason."""
        await self._closed.wait()
        return self._why

    async def collect(self, request: Callable[[int], bytes], on_part: Part) -> None:
        """A multipart request: `on_part` gets the payload of each part as it comes in. Raises RefusedError."""
        xid = self._take(1)
        await self._reply(xid, request(xid), on_part)

    async def bundle(self, encoders: Sequence[Encode]) -> Outcome:
        """Carry out messages in order, all at once or, if it is not `committed`, none.

        A message that is refused when it is put into the bundle is left out, and the rest committed. One that is
        refused on commit is told as `refused`, and nothing is done.
        """
        first = self._take(len(encoders) + 2)
        bundle = first  # never that of a bundle that we have left open when we were cancelled
        opening = of.bundle_control(first, bundle=bundle, kind=of.Bundle.OPEN)
        commit_xid = first + len(encoders) + 1
        commit = of.bundle_control(commit_xid, bundle=bundle, kind=of.Bundle.COMMIT)
        with_bundle = (lambda xid, encode=encode: of.bundle_add(encode(xid), bundle=bundle) for encode in encoders)
        batch = _Batch(range(first, commit_xid))
        try:
            rest = await self._batch(batch, opening, with_bundle)
            answer = await self._reply(commit_xid, rest + commit)
            committed = reply.parse_bundle_control(answer.body) == of.Bundle.COMMITTED
        except RefusedError as error:
            log.info("bundle refused", error=str(error))
            committed = False
        finally:
            self._batches.remove(batch)
        return Outcome(committed, {xid - first - 1: why for xid, why in batch.refused.items() if xid > first})

    async def each(self, encoders: Sequence[Encode]) -> Outcome:
        """Carry out messages in order, each for itself; returns when all are done."""
        first = self._take(len(encoders) + 1)
        last = first + len(encoders)
        batch = _Batch(range(first, last))
        try:
            rest = await self._batch(batch, b"", encoders)
            await self._reply(last, rest + of.barrier(last))
        finally:
            self._batches.remove(batch)
        return Outcome(True, {xid - first: why for xid, why in batch.refused.items()})

    # -- writing

    def _take(self, count: int) -> int:
        """The first of so many xids that nobody uses."""
        if self._xid + count >= 1 << 32:
            self._xid = 0
        first = self._xid + 1
        self._xid += count
        return first

    async def _batch(self, batch: _Batch, opening: bytes, encoders: Iterable[Encode]) -> bytes:
        """Send all but the last piece, which is returned: sent with what ends the batch it wakes the switch once."""
        self._batches.append(batch)
        chunk = bytearray(opening)
        xid = batch.xids.start + (1 if opening else 0)
        for encode in encoders:
            try:
                chunk += encode(xid)
            except ProtocolError as error:
                batch.refused[xid] = error
            xid += 1
            if len(chunk) >= CHUNK:
                await self._send(bytes(chunk))
                await asyncio.sleep(0)
                chunk.clear()
        return bytes(chunk)

    async def _send(self, data: bytes) -> None:
        self._check()
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise DeviceUnavailable(f"{self._path}: {error}") from error

    async def _reply(self, xid: int, request: bytes, on_part: Part | None = None) -> Message:
        self._check()
        waiting = self._waiting[xid] = _Waiting(asyncio.get_running_loop().create_future(), on_part)
        try:
            await self._send(request)
            return await waiting.done
        finally:
            del self._waiting[xid]
            if waiting.done.done() and not waiting.done.cancelled():
                waiting.done.exception()  # seen, even if sending has failed first

    def _check(self) -> None:
        if self._closed.is_set():
            raise DeviceUnavailable(f"{self._path}: {self._why}")

    async def _handshake(self) -> None:
        await self._send(of.hello(self._take(1)))
        # Answered only after the switch's own hello; a switch that does not speak 1.5 closes instead.
        xid = self._take(1)
        await self._reply(xid, of.barrier(xid))
        await self._send(of.set_config(self._take(1), miss_send_len=MISS_SEND_LEN))
        await self._send(of.only_wanted(self._take(1)))
        if (await self.each([partial(of.shown_limit, rate=SHOWN_RATE, burst=SHOWN_BURST)])).refused:
            await self.each([partial(of.shown_limit, rate=SHOWN_RATE, burst=SHOWN_BURST, again=True)])
        try:
            await self.collect(lambda xid: of.flow_monitor_request(xid, monitor=MONITOR_ID), lambda _: None)
        except RefusedError as error:
            log.warning("no flow monitor: changes by others are seen only when all is read back", error=str(error))

    # -- reading

    async def _read(self) -> None:
        why = "closed by the switch"
        try:
            framer = reply.Framer()
            while data := await self._next():
                for message in framer.feed(data):
                    self._dispatch(message)
        except (OSError, ProtocolError, DeviceUnavailable) as error:
            why = str(error)
        finally:
            self._end(why)

    async def _next(self) -> bytes:
        """Some bytes; b"" at the end."""
        try:
            async with asyncio.timeout(IDLE):
                return await self._reader.read(CHUNK)
        except TimeoutError:
            self._writer.write(of.echo(self._take(1)))
        try:
            async with asyncio.timeout(SILENCE):
                return await self._reader.read(CHUNK)
        except TimeoutError:
            raise DeviceUnavailable(f"silent for {IDLE + SILENCE:.0f} s") from None

    def _dispatch(self, message: Message) -> None:
        if message.type == Type.ECHO_REQUEST:
            self._writer.write(of.echo_reply(message.xid, message.body))
        elif message.type == Type.ERROR:
            self._on_error(message)
        elif message.type == Type.MULTIPART_REPLY:
            self._on_multipart(message)
        elif message.type == Type.PACKET_IN:
            self._on_packet(message.body)
        elif message.type == Type.PORT_STATUS:
            self._on_port(*reply.parse_port_status(message.body))
        elif message.type == Type.REQUESTFORWARD:
            self._on_change(None)
        elif (waiting := self._waiting.get(message.xid)) is not None and not waiting.done.done():
            waiting.done.set_result(message)

    def _on_error(self, message: Message) -> None:
        error = reply.parse_error(message.body)
        waiting = self._waiting.get(message.xid)
        if waiting is not None and not waiting.done.done():
            waiting.done.set_exception(RefusedError(error))
            return
        for batch in self._batches:
            if message.xid in batch.xids:
                batch.refused[message.xid] = error
                return
        log.warning("the switch reports an error", error=str(error))

    def _on_multipart(self, message: Message) -> None:
        kind, more, payload = reply.parse_multipart(message.body)
        if kind == of.Multipart.FLOW_MONITOR:
            for update in reply.parse_flow_updates(payload):
                if update.event == reply.Event.PAUSED:
                    self._on_change(None)
                elif update.event not in (reply.Event.ABBREVIATED, reply.Event.RESUMED, reply.Event.INITIAL):
                    self._on_change(update.cookie)
        waiting = self._waiting.get(message.xid)
        if waiting is None or waiting.done.done():
            return
        if waiting.on_part is not None:
            waiting.on_part(payload)
        if not more:
            waiting.done.set_result(message)

    # -- the end

    def _end(self, why: str) -> None:
        self._why = self._why or why
        self._closed.set()
        for waiting in self._waiting.values():
            if not waiting.done.done():
                waiting.done.set_exception(DeviceUnavailable(f"{self._path}: {self._why}"))

    async def _stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.transport.abort()
        self._end("closed")
