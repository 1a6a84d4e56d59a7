"""A whole simulated site: the store, replicas, hosts with agents, the networks between them, and clients."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.errors import AlreadyExists, Ambiguous, ApiError, DeletedSince, NotFound
from tealnet.v1 import host_pb2
from tests.chaos.agent import SimAgent
from tests.chaos.etcd import Server
from tests.chaos.history import GONE, Done
from tests.chaos.host import SimHost
from tests.chaos.loop import Process, SimLoop
from tests.chaos.operations import LABEL, Call, Operations
from tests.chaos.replica import Gone, SimReplica
from tests.chaos.skew import Wire
from tests.chaos.wire import Channel, Connection, Pipe, Way


@dataclass
class Ways:
    """Between one host and one replica."""

    up: Way = field(default_factory=Way)
    down: Way = field(default_factory=Way)


class Site:
    """Everything of one history."""

    def __init__(
        self, loop: SimLoop, dice: random.Random, directory: Path, *, hosts: int, replicas: int, wire: Wire
    ) -> None:
        self.loop, self.dice, self.directory, self.wire = loop, dice, directory, wire
        self.server = Server()
        self.names = [f"h{n}" for n in range(1, hosts + 1)]
        self.hosts = {
            name: SimHost(name, f"192.0.2.{n}", directory / name, dice) for n, name in enumerate(self.names, 1)
        }
        self.agents: dict[str, SimAgent] = {}
        self.replica_names = ["a", "b", "c"][:replicas]
        self.replicas: dict[str, SimReplica] = {}
        self.ways = {(h, r): Ways() for h in self.names for r in self.replica_names}
        self.foreign: SimReplica | None = None  # of another store, whom some hosts reach instead
        self.misled: set[str] = set()  # … these hosts
        self.were_misled: set[str] = set()
        self.set_back: set[str] = set()  # hosts that were given an older memory: they may know what is gone
        self.lives = 0
        self.history: list[Done] = []
        self.bugs: list[str] = []
        self.trace: list[str] = []
        self.clients = [Client(self, n) for n in range(3)]
        for host in self.hosts.values():
            host.on_crash = lambda name=host.name: self.kill_agent(name)  # type: ignore[misc]

    def note(self, text: str) -> None:
        """For who reads what happened."""
        self.trace.append(f"{self.loop.now - 1000:9.3f}  {text}")

    # -- processes

    def start_replica(self, name: str) -> SimReplica:
        """A new life of a controller."""
        self.lives += 1
        replica = SimReplica(name, self.server, self.dice, self.lives)
        self.replicas[name] = replica
        replica.on_exit = lambda: self.loop.later(1.0, self._again, replica)
        self.loop.spawn(replica.process, replica.run())
        return replica

    def _again(self, replica: SimReplica) -> None:
        """What systemd does."""
        if self.replicas[replica.name] is replica:
            self.start_replica(replica.name)

    def kill_replica(self, name: str) -> None:
        replica = self.replicas[name]
        self.note(f"kill {replica.process.name}")
        replica.kill()

    def start_agent(self, name: str) -> SimAgent:
        """A new life of an agent."""
        self.lives += 1
        host, context = self.hosts[name], Process(f"agent of {name}")
        agent = SimAgent(host, list(self.replica_names), lambda server: self._channel(name, server), self.lives)
        self.agents[name] = agent
        context = agent.process
        host.notify = lambda layer: self.loop.later(0, agent.heard, layer, process=context)
        self.loop.spawn(agent.process, agent.run())
        return agent

    def kill_agent(self, name: str) -> None:
        agent = self.agents[name]
        if agent.process.is_dead:
            return
        self.note(f"kill {agent.process.name}")
        if agent.core.checkpoint.is_behind:  # what it could not write, the next one does not know
            self.set_back.add(name)
        self.hosts[name].crash_after = 0
        self.hosts[name].notify = lambda layer: None
        self.loop.kill(agent.process)
        for replica in (*self.replicas.values(), *([self.foreign] if self.foreign else [])):
            for connection in list(replica.connections):
                if connection.client is agent.process:
                    self.loop.later(0.001, self._hang_up, connection)

    def _hang_up(self, connection: Connection) -> None:
        connection.up.reset()
        if connection.handler is not None:
            connection.handler.cancel()

    def _channel(self, host: str, server: str) -> Channel:
        ways, agent = self.ways[host, server], self.agents[host]

        def replica() -> SimReplica | None:
            return self.foreign if host in self.misled else self.replicas.get(server)

        def reachable() -> bool:
            found = replica()
            stopped = found is not None and not found.process.is_dead and found.process.is_stopped
            return not (ways.up.is_cut or ways.down.is_cut or stopped)

        def dial() -> Connection | None:
            found = replica()
            if found is None or not found.serves:
                return None
            up = Pipe(ways.up, self.dice, change=self.wire.from_agent, extra=self.wire.extra)
            down = Pipe(ways.down, self.dice, change=self.wire.to_agent, extra=self.wire.extra)
            connection = Connection(up, down)
            connection.client = agent.process
            found.connect(connection, host)
            return connection

        return Channel(dial, reachable)

    # -- beginning and end

    async def until(self, condition: Callable[[], Any], seconds: float, what: str) -> float:
        """Virtual seconds until it holds."""
        began = self.loop.now
        while not condition():
            if self.loop.now - began > seconds:
                raise AssertionError(f"not within {seconds} s: {what}")
            await asyncio.sleep(0.02)
        return self.loop.now - began

    async def begin(self, operations: Operations) -> None:
        """All is up, hosts are known, a tenant stands."""
        for name in self.replica_names:
            self.start_replica(name)
        await self.until(lambda: all(r.serves for r in self.replicas.values()), 30, "replicas serve")
        for name, host in self.hosts.items():
            body = host_pb2.Host(vtep=host.vtep)
            request = host_pb2.CreateHostRequest(host_id=name, host=body)
            await self.replicas["a"].call("host", "CreateHost", request)
            self.start_agent(name)
        for call in operations.first():
            done = await self.clients[0].do(call)
            assert done.result == "ok", (call, done)
            operations.known.note(call)

    async def accept(self) -> None:
        """An admin lets go what hosts with an older memory have, and whose proof of removal is long gone (A4)."""
        for name, agent in self.agents.items():
            problem = agent.core.problem.reason if agent.core.problem else ""
            # Without a memory it belongs to whom it meets first.
            astray = not agent.core.server and problem == "ForeignHistory" and name in self.were_misled
            if astray or (name in self.set_back and agent.core.resources.unaccounted()):
                self.note(f"accept {name}")
                request = host_pb2.AcceptHostRequest(name=f"hosts/{name}")
                await next(iter(self.replicas.values())).call("host", "AcceptHost", request)

    def dead(self) -> list[str]:
        """Processes that ended although nobody killed them."""
        return [f"{one.process.name} ended: {_deep(one.failure)}" for one in self.daemons() if one.failure is not None]

    def daemons(self) -> list[SimReplica | SimAgent]:
        """All that run, or should."""
        return [*self.replicas.values(), *self.agents.values()]


def _deep(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_deep(one) for one in error.exceptions)
    import traceback

    lines = traceback.format_exception(error)
    return "".join(lines[-6:])


class Client:
    """As the SDK: remembers the highest revision it has seen, goes on to another replica when one is gone."""

    def __init__(self, site: Site, number: int) -> None:
        self.site, self.number, self.revision = site, number, 0

    async def do(self, call: Call) -> Done:
        """One call, from asking to answer; noted in the history."""
        site, request = self.site, call.request
        if "read" in request.DESCRIPTOR.fields_by_name:
            request.read.min_revision = self.revision
        done = Done(call, self.number, site.loop.now)
        site.history.append(done)
        again = bool(getattr(request, "request_id", "")) or call.act in ("read", "look")
        for attempt in range(3):
            serving = [r for r in site.replicas.values() if r.serves]
            if not serving:
                done.result = "failed" if not attempt else "unknown"
                break
            replica = site.dice.choice(serving)
            try:
                answer = await replica.call(call.service, call.method, request)
            except (Gone, TimeoutError):
                done.result = "unknown"
                if again:
                    continue
            except ApiError as error:
                self._refused(done, error, first=not attempt)
                cause = f" ({error.__cause__!r})" if error.__cause__ else ""
                site.note(f"    {type(error).__name__}: {error}{cause}")
            else:
                self._answered(done, answer)
            break
        done.returned = site.loop.now
        what = getattr(request, "name", "") or call.key
        site.note(
            f"client {self.number}: {call.method} {what} {call.token} → {done.result} {done.value} {done.revision}"
        )
        return done

    def _refused(self, done: Done, error: ApiError, *, first: bool) -> None:
        done.result = "failed" if first else "unknown"
        if isinstance(error, Ambiguous):
            done.result = "unknown"
        elif type(error) is ApiError:
            done.result = "unknown"
            self.site.bugs.append(f"INTERNAL from {done.call.method}: {done.call.request}")
        elif isinstance(error, NotFound) and done.call.act in ("read", "look") and first:
            done.result, done.value = "missing", GONE
        elif isinstance(error, DeletedSince) and done.call.act in ("create", "update"):
            done.result, done.revision = "ok", int(error.metadata["revision"])  # before its answer was lost
        elif isinstance(error, AlreadyExists) and done.call.act == "create" and first and done.call.key in str(error):
            done.result = "exists"

    def _answered(self, done: Done, answer: Any) -> None:
        done.result = "ok"
        fields = answer.DESCRIPTOR.fields_by_name
        if "revision" in fields:
            done.revision = answer.revision
            self.revision = max(self.revision, answer.revision)
        if done.call.act in ("read", "look"):
            done.value = answer.labels.get(LABEL, "")
