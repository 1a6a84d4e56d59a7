"""Faults of a lab: they begin at random, and end by themselves or when all is healed."""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tealnet.lab.etcd import ETCD
from tealnet.lab.fabric import Direction, Network
from tests.chaos.checkpoints import spoil
from tests.chaos.lab_store import FullQuota

if TYPE_CHECKING:
    from tests.chaos.rig import Rig


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
        self.ovsdb_away = False  # for a while, of any host
        self._down: set[tuple[str, str]] = set()
        self._old: dict[str, bytes] = {}
        self._calm = {rig.stand.state(name).device for name in rig.ports}
        self._all: list[tuple[int, Callable[[], str]]] = [
            (6, lambda: self._kill(*self._central())),
            (5, lambda: self._freeze(*self._central())),
            (6, lambda: self._kill(self._host(), "agent")),
            (4, lambda: self._freeze(self._host(), "agent")),
            (4, self._spoil_checkpoint),
            (3, self._full_disk),
            (4, lambda: self._cut(Network.MANAGEMENT)),
            (2, self._stutter),
            (2, self._full_store),
            (2, self._full_member),
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
        """End all, and last what ends by itself when the store answers."""
        for fault in sorted(self.live, key=lambda fault: fault.due):
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

    def _runs(self, name: str, what: str) -> bool:
        """Whether it is there to be harmed: an agent that is started on a full disk ends, until systemd tries again."""
        machines = {one.name: one for one in (*self.lab.controllers, *self.lab.members, *self.lab.hosts)}
        process = machines[name].process(what)
        return process is not None and process.alive()

    def _take(self, name: str, what: str) -> bool:
        """One thing at a time for one process."""
        if (name, what) in self._down:
            return False
        self._down.add((name, what))
        return True

    def _kill(self, name: str, what: str) -> str:
        if not self._runs(name, what) or not self._take(name, what):
            return ""
        self.lab.kill(name, what)
        self.ovsdb_away |= what == "ovsdb-server"

        def again() -> None:
            self.lab.start(name, what)
            self._down.discard((name, what))

        return self._later(f"kill {what} of {name}", again)

    def _freeze(self, name: str, what: str) -> str:
        if not self._runs(name, what) or not self._take(name, what):
            return ""
        self.lab.stop(name, what)

        def again() -> None:
            self.lab.cont(name, what)
            self._down.discard((name, what))

        return self._later(f"stop {what} of {name}", again, longest=7.0)

    def _stutter(self) -> str:
        """A slow agent: it runs a fifth of the time."""
        name = self._host()
        if not self._runs(name, "agent") or not self._take(name, "agent"):
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
        if not path.exists() or not self._runs(name, "agent") or not self._take(name, "agent"):
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

    def _full_store(self) -> str:
        """The quota of etcd is used up: it takes no writes until an operator has disarmed its alarm."""
        if not self._take("etcd", "quota"):
            return ""
        seconds = self.dice.uniform(0.5, 4.0)
        full = FullQuota(self.lab, seconds)

        def end() -> None:
            full.end()
            self._down.discard(("etcd", "quota"))

        text = f"the store is full for {seconds:.1f} s"
        self.live.append(Fault(text, math.inf, end))
        return text

    def _full_member(self) -> str:
        """The disk of one member of etcd is full: it ends as soon as it needs another page."""
        disk = self.rig.disk
        if not self._take(disk.name, ETCD):
            return ""
        disk.fill()

        def end() -> None:
            disk.empty()
            self._down.discard((disk.name, ETCD))

        return self._later(f"the disk of {disk.name} is full", end)

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
