"""Histories on a lab: real etcd, controllers, agents, Open vSwitch and namespaces, with traffic running.

One lab serves many histories; each begins and ends with hosts as they are without tenants.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from tealnet import kinds
from tealnet.client import ApiError, Client
from tealnet.lab import Host, Lab, api
from tealnet.lab.controller import Controller
from tealnet.lab.errors import LabError
from tealnet.lab.etcd import Member
from tealnet.lab.fabric import Direction, Network
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
from tests.chaos.checkpoints import spoil
from tests.chaos.history import GONE, Done
from tests.chaos.operations import LABEL, Call, Operations
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
PATIENCE = 15.0  # seconds of a call


@contextmanager
def rig(name: str) -> Iterator[Rig]:
    """A lab for histories, with a tenant that nobody touches."""
    with standing(name, hosts=HOSTS, controllers=CONTROLLERS, etcd=MEMBERS) as stand:
        stand.tenant("anchor")
        stand.network("anchor/net", "10.200.0.0/24", "fd77::/64")
        for port, host in zip(CALM, stand.lab.hosts, strict=True):
            stand.port(port, "net", host.name)
        stand.sync()
        yield Rig(stand, stand.workloads(*CALM))


@dataclass
class Rig:
    """A lab, and the three workloads between which traffic always runs."""

    stand: Stand
    calm: list[Workload]

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
class Fault:
    """What was begun and how it ends."""

    text: str
    due: float
    end: Callable[[], None]


OFCTL = "ovs-ofctl -O OpenFlow15"
_HARMS = (
    f"{OFCTL} del-flows br-int table=40",
    f"{OFCTL} del-flows br-int table=10",
    f"{OFCTL} del-flows br-int",
    f"{OFCTL} add-flow br-int priority=60000,arp,actions=drop",
    f"{OFCTL} del-groups br-int",
    "ovs-vsctl --timeout=5 del-port {device}",
    "ovs-vsctl --timeout=5 set Interface {device} ofport_request=777",
    "ovs-vsctl --timeout=5 clear Port {device} external_ids",
    "ovs-vsctl --timeout=5 del-port vxlan0",
    "ovs-vsctl --timeout=5 set Interface vxlan0 options:key=7",
    "ovs-vsctl --timeout=5 del-br br-int",
    "ovs-vsctl --timeout=5 set Bridge br-int fail_mode=standalone",
    "ip link delete {device}",
    "ip link set {device} down",
    "ip -n {space} link delete eth0",
    "ip -n {space} link set eth0 down",
    "ip -n {space} address flush dev eth0",
    "ip -n {space} route flush all",
    "ip netns delete {space}",
    "nft delete table netdev tealnet",
)
_CENTRAL = ("controller", "controller2", "etcd1", "etcd2", "etcd3")


class LabFaults:
    """Random ones. `gentle`: none that packets may notice."""

    def __init__(self, rig: Rig, dice: random.Random, say: Callable[[str], None], *, gentle: bool) -> None:
        self.rig, self.lab, self.dice, self.say, self.gentle = rig, rig.lab, dice, say, gentle
        self.live: list[Fault] = []
        self.set_back: set[str] = set()
        self._down: set[tuple[str, str]] = set()
        self._old: dict[str, bytes] = {}
        self._calm = {rig.stand.state(name).device for name in CALM}
        self._all: list[tuple[int, Callable[[], str]]] = [
            (6, lambda: self._kill(*self._central())),
            (5, lambda: self._freeze(*self._central())),
            (6, lambda: self._kill(self._host(), "agent")),
            (4, lambda: self._freeze(self._host(), "agent")),
            (4, self._spoil_checkpoint),
            (3, self._full_disk),
            (4, lambda: self._cut(Network.MANAGEMENT)),
            (2, self._stutter),
        ]
        if not gentle:
            self._all += [
                (3, lambda: self._kill(self._host(), "ovsdb-server")),
                (3, lambda: self._kill(self._host(), "ovs-vswitchd")),
                (2, lambda: self._freeze(self._host(), "ovs-vswitchd")),
                (2, lambda: self._freeze(self._host(), "ovsdb-server")),
                (4, lambda: self._cut(Network.UNDERLAY)),
                (12, self._harm),
            ]

    def begin(self) -> None:
        """One fault."""
        weights, makers = zip(*self._all, strict=True)
        text = self.dice.choices(makers, weights)[0]()
        if text:
            self.say(f"FAULT {text}")

    def tick(self) -> None:
        """End what is due."""
        for fault in [fault for fault in self.live if fault.due <= time.monotonic()]:
            self._finish(fault)

    def heal(self) -> None:
        """End all."""
        for fault in list(self.live):
            self._finish(fault)
        self.say("HEALED")

    def _finish(self, fault: Fault) -> None:
        self.live.remove(fault)
        self.say(f"end of: {fault.text}")
        fault.end()

    def _later(self, text: str, end: Callable[[], None], *, longest: float = 4.0) -> str:
        delay = self.dice.uniform(0.05, longest)
        self.live.append(Fault(text, time.monotonic() + delay, end))
        return f"{text} for {delay:.1f} s"

    def _host(self) -> str:
        return self.dice.choice([host.name for host in self.lab.hosts])

    def _central(self) -> tuple[str, str]:
        name = self.dice.choice(_CENTRAL)
        return name, name.rstrip("123")

    def _take(self, name: str, what: str) -> bool:
        """One thing at a time for one process."""
        if (name, what) in self._down:
            return False
        self._down.add((name, what))
        return True

    def _kill(self, name: str, what: str) -> str:
        if not self._take(name, what):
            return ""
        self.lab.kill(name, what)

        def again() -> None:
            self.lab.start(name, what)
            self._down.discard((name, what))

        return self._later(f"kill {what} of {name}", again)

    def _freeze(self, name: str, what: str) -> str:
        if not self._take(name, what):
            return ""
        self.lab.stop(name, what)

        def again() -> None:
            self.lab.cont(name, what)
            self._down.discard((name, what))

        return self._later(f"stop {what} of {name}", again, longest=7.0)

    def _stutter(self) -> str:
        """A slow agent: it runs a fifth of the time."""
        name = self._host()
        if not self._take(name, "agent"):
            return ""
        process, over = self.lab.host(name).process("agent"), threading.Event()
        assert process is not None

        def slow() -> None:
            while not over.wait(0.05):
                process.send(signal.SIGSTOP)
                over.wait(0.2)
                process.send(signal.SIGCONT)

        worker = threading.Thread(target=slow)
        worker.start()

        def end() -> None:
            over.set()
            worker.join()
            self._down.discard((name, "agent"))

        return self._later(f"agent of {name} is slow", end)

    def _cut(self, network: Network) -> str:
        name, direction = self._host(), self.dice.choice(list(Direction))
        if not self._take(name, network):
            return ""
        self.lab.cut(name, network, direction=direction)

        def end() -> None:
            self.lab.heal(name, network)
            self._down.discard((name, network))

        return self._later(f"cut {name} from {network} ({direction})", end)

    def _spoil_checkpoint(self) -> str:
        name = self._host()
        path = self.lab.host(name).disk("/var/lib/tealnet") / "checkpoint"
        if not path.exists() or not self._take(name, "agent"):
            return ""
        self.lab.kill(name, "agent")
        data = path.read_bytes()
        old, self._old[name] = self._old.get(name, data), data
        how = self.dice.choice(["truncated", "garbage", "old", "gone"])
        spoil(path, how, old=old, dice=self.dice)
        if how in ("truncated", "old"):
            self.set_back.add(name)

        def again() -> None:
            self.lab.start(name, "agent")
            self._down.discard((name, "agent"))

        return self._later(f"kill agent of {name}, its checkpoint is {how}", again, longest=2.0)

    def _full_disk(self) -> str:
        """A file system without room for a checkpoint lies over the right one."""
        name = self._host()
        host = self.lab.host(name)
        if not self._take(name, "disk"):
            return ""
        host.output(["mount", "-t", "tmpfs", "-o", "size=4k", "none", "/var/lib/tealnet"])
        self.set_back.add(name)  # what the agent can't write, it does not know when it is started again

        def end() -> None:
            host.output(["umount", "--lazy", "/var/lib/tealnet"])
            self._down.discard((name, "disk"))

        return self._later(f"the disk of the agent of {name} is full", end)

    def _harm(self) -> str:
        """Somebody breaks something by plain tools; the calm workloads' own things are left alone: pings run there."""
        host = self.lab.host(self._host())
        names = host.run(["ls", "/run/netns"]).stdout.split()
        spaces = [name for name in names if not name.startswith("anchor.")]
        links = [
            line.split(":")[1].split("@")[0].strip() for line in host.run(["ip", "-o", "link"]).stdout.splitlines()
        ]
        devices = [link for link in links if link.startswith("tn") and len(link) == 14 and link not in self._calm]
        if not spaces or not devices:
            return ""
        command = self.dice.choice(_HARMS).format(device=self.dice.choice(devices), space=self.dice.choice(spaces))
        done = host.run(["timeout", "8", "sh", "-c", command])
        return f"on {host.name}: {command} ({done.returncode})"


@dataclass
class Outcome:
    """Of one history on the lab."""

    seed: int
    gentle: bool
    wrong: list[str] = field(default_factory=list)
    settled: float = 0.0  # seconds from the last fault on until every host says that it has everything
    calls: int = 0
    acknowledged: int = 0
    faults: int = 0
    pings: list[dict[str, Any]] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)


def drive(rig: Rig, seed: int, outcome: Outcome, *, steps: int) -> tuple[list[Done], Operations, LabFaults]:
    """Operations by two clients and faults, two to one; all healed at the end."""
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
        for thread in busy.values():
            thread.join(PATIENCE + 5)
        for client in clients:
            client.client.close()
    outcome.calls, outcome.acknowledged = len(history), sum(done.result == "ok" for done in history)
    return history, operations, faults


@contextmanager
def traffic(rig: Rig, outcome: Outcome) -> Iterator[None]:
    """10 ms pings between the calm workloads meanwhile, both families."""
    a, b, c = rig.calm
    running: list[Running] = []
    with ExitStack() as stack:
        for source, address in ((a, b.v4), (b, c.v6), (c, a.v4)):
            running.append(stack.enter_context(source.running("ping", address)))
        yield
    outcome.pings = [ping.result for ping in running]


def settle(rig: Rig, *, seconds: float) -> float:
    """Wait until all is up and every host has everything; returns how long it took."""
    began = time.monotonic()
    rest = [""]

    def so() -> bool:
        rest[0] = rig.whole()
        if rest[0]:
            return False
        with suppress(ApiError):
            answer = rig.stand.client.sync(timeout=1.0)
            rest[0] = str(answer)
            return bool(answer.complete)
        return False

    try:
        wait_for(so, seconds=seconds, what="all is as it is to be", every=0.02)
    except LabError as error:
        raise AssertionError(f"{error}: {rest[0]}") from None
    return time.monotonic() - began


def accept(rig: Rig, faults: LabFaults) -> None:
    """Hosts that were given an older memory may know ports whose proof of removal is gone (A4): an admin's word."""
    for host in rig.stand.client.list_all(kinds.HOST):
        if host.status.unaccounted and host.name.rpartition("/")[2] in faults.set_back:
            rig.stand.client.accept(host.name)
