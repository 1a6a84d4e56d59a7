"""Flows and groups of the integration bridge, through OpenFlow 1.5. Layer flow.

Keys are a flow's cookie → Flow and ("group", id) → Group. The bridge is ours alone, so what nobody of ours made there
is read back, too, as ("foreign", …) → Foreign, to be deleted. Each batch is one atomic bundle. A flow's cookie is a
hash of its content, so `read` finds out without any memory when somebody has changed it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import structlog

from agent.connections import FLUSHED, Connection, as_v6
from agent.drivers.base import DeviceUnavailable, Failure
from agent.drivers.coming import Coming
from agent.drivers.openflow_session import Encode, RefusedError, Session
from agent.drivers.unixctl import UnixctlError, unixctl_each
from agent.drivers.vswitchd import control_socket
from agent.openflow import message as of
from agent.openflow import reply
from agent.openflow.errors import ProtocolError
from agent.openflow.flow import MARK, Flow, Group, GroupKey, is_ours
from agent.openflow.oxm import normal
from agent.openflow.reply import ErrorReply

log = structlog.get_logger()

RUN_DIR = "/run/openvswitch"
FIRST_PULSE, LAST_PULSE = 0.001, 0.05  # seconds
BUNDLE_ATTEMPTS = 8  # refused so often, a batch goes message by message
# Errors that may go away by themselves although the message stays the same: a port or group is not there yet.
PASSING = frozenset({(2, 4), (2, 9)})
HOPELESS = frozenset({2, 3, 4, 14})  # bad action, instruction, match, property: the same bytes will fail again

ForeignKey = tuple[Literal["foreign"], int, int, int]  # table, priority, cookie
Key = int | GroupKey | ForeignKey


@dataclass(frozen=True, slots=True)
class Foreign:
    """A flow on our bridge that we did not make, or that is no longer what its cookie says. To be deleted."""

    table: int
    priority: int
    cookie: int


Value = Flow | Group | Foreign
Form = tuple[int, int, bytes, bytes]  # table, priority, match and instructions as the switch tells them


@dataclass(frozen=True, slots=True)
class FlowFacts:
    """What is known of the bridge. `connections` grows with each connection: the tables may be empty.

    `generation` grows when somebody else changed flows or groups: read back.
    """

    connected: bool = False
    connections: int = 0
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Era:
    """Flows that no packet meets, another one in each table that changes: with it go all paths that looked there.

    `flows` are those of the next era, given which tables have changed (None: not known, or a group). An era ends with
    each batch that deletes something or writes what `ends` it. Its flows are known by their feature; nobody else hears
    of them.
    """

    feature: int
    flows: Callable[[Collection[int] | None], Iterable[Flow]]
    ends: Callable[[Value], bool]


class FlowDriver:
    """The driver of layer flow. `run` keeps the connection; without it everything raises DeviceUnavailable.

    `socket` is the bridge's management socket, `run_dir` where vswitchd keeps its pid file and control socket.
    `pulse` is a flow that no packet meets: written again, it changes nothing, but has the datapath checked at once.
    `era` is for a datapath that can't be trusted to change its paths: see `agent.era`.
    """

    def __init__(
        self, socket: str, *, run_dir: str = RUN_DIR, pulse: Flow | None = None, era: Era | None = None
    ) -> None:
        self._socket = socket
        self._run_dir = run_dir
        self._session: Session | None = None
        self.on_packet: Callable[[bytes], None] = lambda body: None
        self.on_port: Callable[[str, int], None] = lambda name, number: None  # the bridge has a new port
        self.refusal: Callable[[], str] = lambda: ""  # why nothing of the bridge is read or written
        self._facts = FlowFacts()
        self._changed = asyncio.Event()
        self._pulse, self._has_pulse = pulse, False
        self._era = era
        self._era_keys: set[int] = set()  # of its flows that are, or may be, on the switch
        self._tables: dict[Key, int] = {}  # of flows that are on the switch
        self._lock = asyncio.Lock()  # a read is never between two halves of an apply
        self._wait: asyncio.Task[None] | None = None
        self._next_wait: asyncio.Task[None] | None = None
        # Flows that the switch does not give back as they were sent, by cookie: see `_trust`.
        self._doubtful: dict[int, Form] = {}
        self._rewritten: dict[int, tuple[Form, Flow]] = {}

    # -- the connection

    async def run(self) -> None:
        """Stay connected for ever; cancel to stop."""
        attempt = 0
        while True:
            connections = self._facts.connections
            with Coming(self._socket) as coming:
                try:
                    await self._serve()
                except (DeviceUnavailable, ProtocolError, RefusedError) as error:
                    if attempt == 0:
                        log.warning("the bridge is out of reach", socket=self._socket, error=str(error))
                attempt = 0 if self._facts.connections > connections else attempt + 1
                if await coming.wait(attempt):
                    attempt = 0

    def facts(self) -> FlowFacts:
        """What is known now."""
        return self._facts

    async def changes(self) -> AsyncIterator[FlowFacts]:
        """Yield the facts now and whenever they change; what changes while the consumer is busy is one change."""
        last: FlowFacts | None = None
        while True:
            event = self._changed
            if self._facts != last:
                last = self._facts
                yield last
            else:
                await event.wait()

    async def closed(self) -> None:
        """Return when the present connection has ended, or at once without one."""
        connections = self._facts.connections
        async for facts in self.changes():
            if not facts.connected or facts.connections > connections:
                return

    async def _serve(self) -> None:
        async with Session(
            self._socket,
            on_change=self._on_change,
            on_packet=lambda body: self.on_packet(body),
            on_port=lambda name, number: self.on_port(name, number),
        ) as session:
            self._session = session
            self._set(connected=True, connections=self._facts.connections + 1)
            log.info("connected to the bridge", socket=self._socket, connections=self._facts.connections)
            try:
                why = await session.closed()
                log.warning("connection to the bridge lost", socket=self._socket, error=why)
            finally:
                self._session = None
                self._set(connected=False)

    def _on_change(self, cookie: int | None) -> None:
        """Somebody else changed this flow, or something else."""
        if cookie is not None:
            self._rewritten.pop(cookie, None)
        self._set(generation=self._facts.generation + 1)

    def _set(self, **changes: Any) -> None:
        self._facts = replace(self._facts, **changes)
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    def _connected(self) -> Session:
        if why := self.refusal():
            raise DeviceUnavailable(why)
        if self._session is None:
            raise DeviceUnavailable(f"no connection to the bridge at {self._socket}")
        return self._session

    # -- flows and groups

    async def read(self) -> dict[Key, Value]:
        """All flows and groups of the bridge."""
        out: dict[Key, Value] = {}
        async with self._lock:
            session = self._connected()
            self._doubtful.clear()
            await self._collect(session, of.flow_desc_request, partial(self._take_flows, out))
            await self._collect(session, of.group_desc_request, partial(_take_groups, out))
        self._has_pulse = self._pulse is not None and self._pulse.key in out
        for value in list(out.values()):
            if isinstance(value, Foreign):
                out.pop(value.cookie, None)  # an impostor: it goes by its cookie, and the true one with it
        self._era_keys = self._take_era(out)
        self._tables = {key: value.table for key, value in out.items() if isinstance(value, Flow)}
        return out

    def _take_era(self, out: dict[Key, Value]) -> set[int]:
        """Take the flows of the present era out of what was read; their keys."""
        if self._era is None:
            return set()
        feature = self._era.feature
        found = {v.key for v in out.values() if isinstance(v, Flow) and v.feature == feature}
        for key in found:
            del out[key]
        return found

    async def counts(self, feature: int) -> dict[int, tuple[int, int]]:
        """Packets and bytes of the flows of one room, by cookie."""
        out: dict[int, tuple[int, int]] = {}

        def take(payload: bytes) -> None:
            out.update({cookie: (packets, size) for cookie, packets, size in reply.parse_flow_counts(payload)})

        request = partial(of.flow_desc_request, cookie=MARK << 56 | feature << 48, mask=0xFFFF << 48)
        await self._collect(self._connected(), request, take)
        return out

    @staticmethod
    async def _collect(session: Session, request: Encode, on_part: Callable[[bytes], None]) -> None:
        try:
            await session.collect(request, on_part)
        except RefusedError as error:
            raise DeviceUnavailable(f"the switch does not tell what it has: {error}") from error

    def _take_flows(self, out: dict[Key, Value], payload: bytes) -> None:
        for raw in reply.parse_flow_desc(payload):
            flow = self._genuine(raw) if is_ours(raw.cookie) else None
            if flow is not None:
                out[raw.cookie] = flow
            else:
                foreign = Foreign(raw.table, raw.priority, raw.cookie)
                out["foreign", raw.table, raw.priority, raw.cookie] = foreign

    def _genuine(self, raw: reply.FlowDesc) -> Flow | None:
        """The flow if its content is what the cookie says it is."""
        actions = raw.actions
        if actions is not None:
            flow = Flow(raw.table, raw.priority, normal(raw.match), actions, raw.cookie >> 48 & 0xFF)
            if flow.cookie == raw.cookie:
                return flow
        form = (raw.table, raw.priority, raw.match, raw.instructions)
        trusted = self._rewritten.get(raw.cookie)
        if trusted is not None and trusted[0] == form:
            return trusted[1]
        self._doubtful[raw.cookie] = form
        return None

    async def apply(self, write: Mapping[Key, Value], delete: Collection[Key]) -> Mapping[Key, Failure]:
        """One atomic bundle. Groups are made before the flows that use them, and go after them.

        A refused message fails alone: the bundle is sent again without it. Reasons: OpenFlow… (of the switch),
        OpenFlowTooLarge, OpenFlowRefused (part of a bundle that did not go through).
        """
        failures: dict[Key, Failure] = {}
        todo = _plan(write, delete)
        era = self._era
        async with self._lock:
            session = self._connected()
            fresh: dict[int, Flow] = {}
            narrowing = [value for value in write.values() if era is not None and era.ends(value)]
            if era is not None and (delete or narrowing):
                fresh = {flow.key: flow for flow in era.flows(self._changing(narrowing, delete))}
                todo |= self._next_era(fresh)
            for attempt in range(BUNDLE_ATTEMPTS + 1):
                keys = list(todo)
                encoders = list(todo.values())
                last = attempt == BUNDLE_ATTEMPTS
                outcome = await (session.each(encoders) if last else session.bundle(encoders))
                for index, why in outcome.refused.items():
                    failures[keys[index]] = _failure(why)
                    del todo[keys[index]]
                if outcome.committed or not todo:
                    break
            if fresh:
                self._era_keys = fresh.keys() - failures.keys()
                failures = {key: why for key, why in failures.items() if key in write or key in delete}
        self._trust(write, failures)
        for key in delete:
            self._tables.pop(key, None)
        self._tables |= {key: value.table for key, value in write.items() if isinstance(value, Flow)}
        if self._pulse is not None and self._pulse.key in {*write, *delete}:
            self._has_pulse = self._pulse.key in write and self._pulse.key not in failures
        return failures

    def _changing(self, narrowing: Iterable[Value], delete: Iterable[Key]) -> set[int] | None:
        """The tables in which packets may come to look at less; None: that can't be told."""
        tables = {self._tables.get(key) for key in delete}
        tables |= {value.table if isinstance(value, Flow) else None for value in narrowing}
        return None if None in tables else {table for table in tables if table is not None}

    def _next_era(self, fresh: Mapping[int, Flow]) -> dict[Key, Encode]:
        """What puts these flows in the place of the present era's."""
        new = fresh.keys() - self._era_keys
        plan: dict[Key, Encode] = {key: partial(of.flow_delete, cookie=key) for key in self._era_keys - fresh.keys()}
        self._era_keys |= fresh.keys()
        return plan | {key: partial(of.flow_add, flow=flow) for key, flow in fresh.items() if key in new}

    def _trust(self, write: Mapping[Key, Value], failures: Mapping[Key, Failure]) -> None:
        """A flow that we have just written, and that did not look like it before, may simply look like that.

        Another version of Open vSwitch may write a match in another way. If the flow reads the same after it has been
        written again, and nobody else touched it, then it is ours; else it would be written for ever.
        """
        for cookie, form in self._doubtful.items():
            flow = write.get(cookie)
            if isinstance(flow, Flow) and cookie not in failures:
                self._rewritten[cookie] = (form, flow)
        self._doubtful.clear()

    # -- conntrack, packets, revalidation

    async def flush_zones(self, zones: Collection[int]) -> None:
        """Forget all connections of conntrack zones; returns when it is done. Raises RefusedError.

        All at once: each answer takes vswitchd a turn of its main loop, milliseconds where there are many ports.
        """
        await self._each([partial(of.flush_zone, zone=zone) for zone in zones])

    async def forget(self, connections: Sequence[Connection]) -> None:
        """Forget these TCP and UDP connections; others are left. Raises RefusedError."""
        encoders = [
            partial(
                of.flush_connection,
                zone=found.zone,
                protocol=FLUSHED[found.protocol],
                ends=(as_v6(found.source), as_v6(found.target)),
                ports=found.ports,
            )
            for found in connections
            if found.protocol in FLUSHED
        ]
        await self._each(encoders)

    async def packet_out(self, *, actions: bytes, packet: bytes, match: bytes = b"") -> None:
        """Run actions on a packet of ours (an Ethernet frame). `match` sets in_port, metadata and registers.

        Raises RefusedError, and ProtocolError if it is too large.
        """
        await self._each([partial(of.packet_out, actions=actions, packet=packet, match=match)])

    async def _each(self, encoders: Sequence[Encode]) -> None:
        outcome = await self._connected().each(encoders)
        for why in outcome.refused.values():
            raise why if isinstance(why, ProtocolError) else RefusedError(why)

    async def revalidated(self) -> None:
        """Return when no packet can take the path of flows that went before the call.

        Calls share: those that come while one runs wait for the next. Raises UnixctlError.
        """
        if self._wait is None or self._wait.done():
            self._wait = asyncio.create_task(self._revalidate(None))
            turn = self._wait
        else:
            if self._next_wait is None:
                self._next_wait = asyncio.create_task(self._revalidate(self._wait))
            turn = self._next_wait
        await asyncio.shield(turn)

    async def _revalidate(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
            self._wait, self._next_wait = self._next_wait, None
        # A bundle is answered before vswitchd tells its revalidators, which it does in the next turn of its main loop.
        # It takes new connections once in a turn: who is answered and then calls anew is heard in a later one.
        await self._vswitchd("version")
        # The first round to end may have begun before that; the second one has not. Both on one connection: the second
        # wait is heard when the first one has been answered.
        ended = asyncio.create_task(self._vswitchd("revalidator/wait", times=2))
        pause = FIRST_PULSE
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=pause)
                # They rest between two rounds, unless flows change: so one is changed.
                if not ended.done() and self._pulse is not None and self._has_pulse:
                    await self._each([partial(of.flow_add, flow=self._pulse)])
                pause = min(2 * pause, LAST_PULSE)
            await ended
        finally:
            ended.cancel()

    async def _vswitchd(self, command: str, *, times: int = 1) -> None:
        """Run a command so often, each time after it has been answered."""
        try:
            path = control_socket(self._run_dir)
        except (OSError, ValueError) as error:
            raise DeviceUnavailable(f"ovs-vswitchd is down: {error}") from error
        for answer in await unixctl_each(path, command, [()] * times):
            if isinstance(answer, UnixctlError):
                raise answer


def _take_groups(out: dict[Key, Value], payload: bytes) -> None:
    for group in reply.parse_group_desc(payload):
        out[group.key] = group


def _plan(write: Mapping[Key, Value], delete: Collection[Key]) -> dict[Key, Encode]:
    """What is to be sent, in order. Foreign flows go first: one may carry the cookie of a flow that is written."""
    plan: dict[Key, Encode] = {}
    for key, value in write.items():
        if isinstance(value, Group):
            plan[key] = partial(of.group_write, group=value)
    for key in delete:
        if isinstance(key, tuple) and key[0] == "foreign":
            plan[key] = partial(of.flow_delete, cookie=key[3], table=key[1])
    for key, value in write.items():
        if isinstance(value, Flow):
            plan[key] = partial(of.flow_add, flow=value)
    for key in delete:
        if isinstance(key, int):
            plan[key] = partial(of.flow_delete, cookie=key)
    for key in delete:
        if isinstance(key, tuple) and key[0] == "group":
            plan[key] = partial(of.group_delete, group_id=key[1])
    return plan


def _failure(why: ErrorReply | ProtocolError) -> Failure:
    if isinstance(why, ProtocolError):
        return Failure("OpenFlowTooLarge", str(why), retriable=False)
    passing = why.type not in HOPELESS or (why.type, why.code) in PASSING
    return Failure(why.reason, f"the switch refused it: {why}", retriable=passing)
