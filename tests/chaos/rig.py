"""Histories on a lab: real etcd, controllers, agents, Open vSwitch and namespaces, with traffic running.

One lab serves many histories; each begins and ends with hosts as they are without tenants.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from tealnet import kinds
from tealnet.client import ApiError, Client
from tealnet.lab import Host, Lab, api
from tealnet.lab.controller import Controller
from tealnet.lab.etcd import Member
from tealnet.lab.traffic import Running, Workload
from tealnet.lab.wait import wait_for
from tealnet.v1 import (
    host_pb2_grpc,
    network_pb2_grpc,
    port_pb2_grpc,
    rollout_pb2_grpc,
    router_pb2_grpc,
    security_pb2_grpc,
    split_pb2_grpc,
    tenant_pb2_grpc,
)
from tests.chaos.history import GONE, Done
from tests.chaos.lab_faults import LabFaults
from tests.chaos.lab_store import SmallDisk
from tests.chaos.operations import LABEL, Call, Operations
from tests.chaos.settling import VSWITCHD, Settling, logs, settle
from tests.lab.stand import READY, Stand, standing

HOSTS, CONTROLLERS, MEMBERS = 3, 2, 3
CALM = ("anchor/a1", "anchor/a2", "anchor/a3")  # ports that nobody touches, one on each host
_STUBS = {
    "tenant": tenant_pb2_grpc.TenantServiceStub,
    "network": network_pb2_grpc.NetworkServiceStub,
    "router": router_pb2_grpc.RouterServiceStub,
    "port": port_pb2_grpc.PortServiceStub,
    "host": host_pb2_grpc.HostServiceStub,
    "split": split_pb2_grpc.TrafficSplitServiceStub,
    "rollout": rollout_pb2_grpc.RolloutServiceStub,
    "group": security_pb2_grpc.SecurityGroupServiceStub,
}
STREAMS = 5  # connections between two calm workloads
BEFORE = 3.0  # seconds before the end of the last fault, from which on logs are shown of who took long
PATIENCE = 15.0  # seconds of a call
SETTLED = 30.0  # seconds until what was started is up
TCP = 30.0  # seconds for an answer on a connection after the last fault: TCP waits ever longer


@contextmanager
def rig(name: str) -> Iterator[Rig]:
    """A lab for histories, with a tenant that nobody touches."""
    with standing(name, hosts=HOSTS, controllers=CONTROLLERS, etcd=MEMBERS) as stand:
        stand.tenant("anchor")
        stand.network("anchor/net", "10.200.0.0/24", "fd77::/64")
        for port, host in zip(CALM, stand.lab.hosts, strict=True):
            stand.port(port, "net", host.name)
        stand.sync()
        made = Rig(stand, stand.workloads(*CALM), SmallDisk(stand.lab, stand.lab.members[-1].name))
        wait_for(lambda: not made.whole(), seconds=SETTLED, what="all is up")
        yield made


@dataclass
class Rig:
    """A lab, and the three workloads between which traffic always runs."""

    stand: Stand
    calm: list[Workload]
    disk: SmallDisk  # of one member of etcd
    ports: tuple[str, ...] = CALM

    @property
    def lab(self) -> Lab:
        return self.stand.lab

    def revive(self) -> None:
        """Start daemons that ended by themselves, as systemd does: a controller without a store to read ends."""
        machines: list[Controller | Member | Host] = [*self.lab.controllers, *self.lab.members, *self.lab.hosts]
        for machine in machines:
            for name in machine.processes:
                process = machine.process(name)
                if process is not None and not process.alive():
                    machine.start(name)

    def whole(self) -> str:
        """What is not up or not in session yet; "" if all is."""
        self.revive()
        try:
            status = self.stand.client.status()
        except ApiError as error:
            return f"no answer: {error.message}"
        ready = [host.name for host in status.hosts if host.status.state == READY]
        members = [member for member in status.etcd if member.healthy]
        found = (len(status.replicas), len(members), len(ready))
        if found != (CONTROLLERS, MEMBERS, HOSTS):
            return f"replicas, members, hosts: {found}"
        return ""


class LabClient:
    """One client with its own memory of revisions; calls are noted in the history."""

    def __init__(self, rig: Rig, number: int, history: list[Done], bugs: list[str], say: Callable[[str], None]) -> None:
        self.client: Client = api.client(rig.lab.context)
        self.number, self.history, self.bugs, self.say = number, history, bugs, say
        self._stubs = {name: stub(self.client.channel) for name, stub in _STUBS.items()}  # type: ignore[no-untyped-call]

    def do(self, call: Call) -> Done:
        """One call, from asking to answer."""
        done = Done(call, self.number, time.monotonic())
        self.history.append(done)
        try:
            answer = self.client.call(getattr(self._stubs[call.service], call.method), call.request, timeout=PATIENCE)
        except ApiError as error:
            self._refused(done, error)
        else:
            done.result = "ok"
            if "revision" in answer.DESCRIPTOR.fields_by_name:
                done.revision = answer.revision
            if call.act in ("read", "look"):
                done.value = answer.labels.get(LABEL, "")
        done.returned = time.monotonic()
        took = done.returned - done.asked
        self.say(
            f"client {self.number}: {call.method} {call.key} {call.token} → {done.result} {done.value} {took:.2f} s"
        )
        return done

    def _refused(self, done: Done, error: ApiError) -> None:
        clear = error.code is not grpc.StatusCode.UNAVAILABLE or error.reason not in ("OUTCOME_UNKNOWN", "")
        done.result = "failed" if clear else "unknown"
        act, name = done.call.act, error.metadata.get("name", "")
        match error.code:
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                done.result = "unknown"
            case grpc.StatusCode.INTERNAL | grpc.StatusCode.UNKNOWN:
                done.result = "unknown"
                self.bugs.append(f"{done.call.method}: {error}: {done.call.request}")
            case grpc.StatusCode.NOT_FOUND if act in ("create", "update") and error.reason == "DELETED_SINCE":
                done.result, done.revision = "ok", int(error.metadata["revision"])
            case grpc.StatusCode.NOT_FOUND if act in ("read", "look"):
                done.result, done.value = "missing", GONE
            case grpc.StatusCode.ALREADY_EXISTS if act == "create" and done.call.key in (name or error.message):
                done.result = "exists"


@dataclass
class Outcome:
    """Of one history on the lab."""

    seed: int
    gentle: bool
    wrong: list[str] = field(default_factory=list)
    settling: Settling = field(default_factory=Settling)
    calls: int = 0
    acknowledged: int = 0
    faults: int = 0
    pings: list[dict[str, Any]] = field(default_factory=list)
    streams: list[dict[str, Any]] = field(default_factory=list)  # see `tealnet.probe.twins.hold`
    trace: list[str] = field(default_factory=list)


def drive(rig: Rig, seed: int, outcome: Outcome, *, steps: int) -> tuple[list[Done], Operations, LabFaults]:
    """Operations by two clients and faults, two to one; all healed at the end, and waited for."""
    dice = random.Random(f"lab {seed}")
    began = time.monotonic()

    def say(text: str) -> None:
        outcome.trace.append(f"{time.monotonic() - began:8.3f}  {text}")

    history: list[Done] = []
    operations = Operations(dice, [host.name for host in rig.lab.hosts])
    faults = LabFaults(rig, dice, say, gentle=outcome.gentle)
    clients = [LabClient(rig, n, history, outcome.wrong, say) for n in range(2)]
    for call in operations.first():
        if clients[0].do(call).result == "ok":
            operations.known.note(call)
    busy: dict[int, threading.Thread] = {}
    lock = threading.Lock()

    def work(number: int, call: Call) -> None:
        done = clients[number].do(call)
        if done.result == "ok":
            with lock:
                operations.known.note(call)

    try:
        for _ in range(steps):
            if dice.random() < 1 / 3:
                faults.begin()
                outcome.faults += 1
            else:
                number = dice.randrange(len(clients))
                with lock:
                    call = operations.next()
                if number in busy:
                    busy[number].join(0.5)
                if number not in busy or not busy[number].is_alive():
                    busy[number] = threading.Thread(target=work, args=(number, call))
                    busy[number].start()
            faults.tick()
            time.sleep(dice.choice([0, 0.01, 0.1, 0.5]) * dice.random())
    finally:
        faults.heal()
        healed = time.monotonic()
        try:
            outcome.settling = settle(rig, since=healed)
        except AssertionError:
            outcome.trace += logs([*rig.lab.controllers, *rig.lab.hosts], since=healed - BEFORE)
            outcome.trace += [f"{host.name}: {host.agent_http('/status')}" for host in rig.lab.hosts]
            raise
        if faults.ovsdb_away:
            outcome.settling.promise += VSWITCHD
        say(f"SETTLED after {outcome.settling.seconds:.2f} s")
        if outcome.settling.is_late:
            outcome.trace += outcome.settling.lines()
            outcome.trace += logs([*rig.lab.controllers, *rig.lab.hosts], since=healed - BEFORE)
        for thread in busy.values():
            thread.join(PATIENCE + 5)
        for client in clients:
            client.client.close()
    outcome.calls, outcome.acknowledged = len(history), sum(done.result == "ok" for done in history)
    return history, operations, faults


@contextmanager
def traffic(rig: Rig, outcome: Outcome) -> Iterator[None]:
    """10 ms pings and TCP connections between the calm workloads meanwhile, both families."""
    a, b, c = rig.calm
    pings: list[Running] = []
    streams: list[Running] = []
    with ExitStack() as stack:
        for target in rig.calm:
            stack.enter_context(target.running("answer", "8000", target.name))
        for source, address in ((a, b.v4), (b, c.v6), (c, a.v4)):
            pings.append(stack.enter_context(source.running("ping", address)))
            words = [address, "8000", "--count", str(STREAMS), "--interval", "0.2", "--patience", str(TCP)]
            streams.append(stack.enter_context(source.running("hold", *words, ends=TCP + 5)))
        yield
    outcome.pings = [ping.result for ping in pings]
    outcome.streams = [stream.result for stream in streams]


def accept(rig: Rig, faults: LabFaults) -> None:
    """Hosts that were given an older memory may know ports whose proof of removal is gone (A4): an admin's word."""
    for host in rig.stand.client.list_all(kinds.HOST):
        if host.status.unaccounted and host.name.rpartition("/")[2] in faults.set_back:
            rig.stand.client.accept(host.name)
