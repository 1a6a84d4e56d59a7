"""What goes wrong in the simulation: each fault begins, and most of them end after a while or when all is healed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

from tests.chaos.checkpoints import spoil
from tests.chaos.etcd import Server
from tests.chaos.loop import Process
from tests.chaos.replica import SimReplica
from tests.chaos.site import Site


class Faults:
    """Random ones for one site."""

    def __init__(self, site: Site, dice: random.Random) -> None:
        self.site, self.dice = site, dice
        self._ends: list[Callable[[], None]] = []
        self._old: dict[str, bytes] = {}  # earlier checkpoints, by host
        self._all: list[tuple[int, Callable[[], str]]] = [
            (8, self._kill_replica),
            (5, self._stop_replica),
            (10, self._kill_agent),
            (6, self._crash_agent),
            (5, self._stop_agent),
            (4, self._store_away),
            (4, self._store_cut),
            (4, self._store_ill),
            (3, self._watch_ill),
            (2, self._leases_expire),
            (1, self._compact),
            (5, self._kill_vswitchd),
            (4, self._kill_ovsdb),
            (6, self._cut),
            (3, self._slow_way),
            (10, self._tamper),
            (3, self._disk_full),
            (5, self._spoil_checkpoint),
            (2, self._reboot),
            (3, self._clock),
            (2, self._slow_process),
            (3, self._ill_devices),
            (2, self._mislead),
        ]

    def begin(self) -> None:
        """One fault."""
        weights, makers = zip(*self._all, strict=True)
        text = self.dice.choices(makers, weights)[0]()
        if text:
            self.site.note(f"FAULT {text}")

    def heal(self) -> None:
        """End all faults; start what was killed."""
        for end in self._ends:
            end()
        self._ends.clear()
        site = self.site
        site.server.is_up = True
        for name, replica in site.replicas.items():
            if replica.process.is_stopped:
                site.loop.cont(replica.process)
            if replica.process.is_dead or replica.failure:
                site.start_replica(name)
        for name, agent in site.agents.items():
            site.hosts[name].crash_after = 0
            if agent.process.is_stopped:
                site.loop.cont(agent.process)
            if agent.process.is_dead:
                site.start_agent(name)
        site.note("HEALED")

    def _later(self, end: Callable[[], None], *, longest: float = 8.0) -> float:
        """End it after a while, or when all is healed."""
        over = [False]

        def once() -> None:
            if not over[0]:
                over[0] = True
                end()

        self._ends.append(once)
        delay = self.dice.uniform(0.05, longest) if self.dice.random() < 0.8 else longest * 2
        self.site.loop.later(delay, once)
        return delay

    def _host(self) -> str:
        return self.dice.choice(self.site.names)

    # -- controllers

    def _kill_replica(self) -> str:
        name = self.dice.choice(self.site.replica_names)
        replica = self.site.replicas[name]
        if replica.process.is_dead:
            return ""
        self.site.kill_replica(name)

        def again() -> None:
            if self.site.replicas[name] is replica:
                self.site.start_replica(name)

        return f"kill replica {name} for {self._later(again):.1f} s"

    def _stop_replica(self) -> str:
        replica = self.site.replicas[self.dice.choice(self.site.replica_names)]
        return self._stop(replica.process)

    def _stop(self, process: Process) -> str:
        if process.is_dead or process.is_stopped:
            return ""
        self.site.loop.stop_process(process)
        return f"stop {process.name} for {self._later(lambda: self.site.loop.cont(process), longest=12):.1f} s"

    def _clock(self) -> str:
        one = self.dice.choice(self.site.daemons())
        one.process.offset = self.dice.choice([-86400.0, -3600.0, -5.0, 0.0, 5.0, 3600.0, 86400.0])
        return f"clock of {one.process.name} off by {one.process.offset:.0f} s"

    def _slow_process(self) -> str:
        one = self.dice.choice(self.site.daemons())
        one.process.lag = 0.002

        def end() -> None:
            one.process.lag = 0.0

        return f"{one.process.name} is slow for {self._later(end, longest=4):.1f} s"

    # -- the store

    def _store_away(self) -> str:
        server = self.site.server
        server.is_up = False

        def end() -> None:
            if not server.is_up:
                server.is_up = True
                if self.dice.random() < 0.5:
                    server.expire()

        return f"no quorum for {self._later(end):.1f} s"

    def _store_cut(self) -> str:
        link = self.site.replicas[self.dice.choice(self.site.replica_names)].link
        link.weather.is_cut = True

        def end() -> None:
            link.weather.is_cut = False

        return f"a replica is cut from the store for {self._later(end):.1f} s"

    def _store_ill(self) -> str:
        link = self.site.replicas[self.dice.choice(self.site.replica_names)].link
        link.weather.lost_answers, link.weather.slow = 0.3, self.dice.choice([0, 0.05, 0.5])

        def end() -> None:
            link.weather.lost_answers = link.weather.slow = 0.0

        return f"answers of the store are lost or late for {self._later(end):.1f} s"

    def _watch_ill(self) -> str:
        link = self.site.replicas[self.dice.choice(self.site.replica_names)].link
        link.weather.watch_lag, link.weather.breaks = self.dice.choice([0.1, 0.4, 3.0]), 0.3

        def end() -> None:
            link.weather.watch_lag = link.weather.breaks = 0.0

        return f"a watch lags and breaks for {self._later(end):.1f} s"

    def _leases_expire(self) -> str:
        for ident in list(self.site.server.leases):
            self.site.server.revoke(ident)
        return "all leases end"

    def _compact(self) -> str:
        self.site.server.compact(self.site.server.revision)
        return "the store is compacted"

    # -- hosts

    def _kill_agent(self) -> str:
        name = self._host()
        if self.site.agents[name].process.is_dead:
            return ""
        self.site.kill_agent(name)
        return f"kill agent of {name} for {self._restart(name):.1f} s"

    def _restart(self, name: str) -> float:
        def again() -> None:
            if self.site.agents[name].process.is_dead:
                self.site.start_agent(name)

        return self._later(again, longest=4)

    def _crash_agent(self) -> str:
        name = self._host()
        if self.site.agents[name].process.is_dead:
            return ""
        self.site.hosts[name].crash_after = steps = self.dice.randint(1, 12)
        return f"the agent of {name} will crash after {steps} steps ({self._restart(name):.1f} s)"

    def _stop_agent(self) -> str:
        return self._stop(self.site.agents[self._host()].process)

    def _kill_vswitchd(self) -> str:
        host = self.site.hosts[self._host()]
        host.kill_vswitchd()
        return f"kill vswitchd of {host.name} for {self._later(host.start_vswitchd, longest=3):.1f} s"

    def _kill_ovsdb(self) -> str:
        host = self.site.hosts[self._host()]
        host.set_ovsdb(up=False)
        return f"kill ovsdb-server of {host.name} for {self._later(lambda: host.set_ovsdb(up=True), longest=3):.1f} s"

    def _cut(self) -> str:
        name = self._host()
        words = self.dice.choice([("up",), ("down",), ("up", "down")])
        others = self.site.replica_names if self.dice.random() < 0.6 else [self.dice.choice(self.site.replica_names)]
        ways = [getattr(self.site.ways[name, other], word) for word in words for other in others]
        for way in ways:
            way.is_cut = True

        def end() -> None:
            for way in ways:
                way.is_cut = False

        return f"cut {name} from {','.join(others)} ({'+'.join(words)}) for {self._later(end):.1f} s"

    def _slow_way(self) -> str:
        name = self._host()
        ways = [self.site.ways[name, other] for other in self.site.replica_names]
        for way in ways:
            way.up.slow = way.down.slow = 0.3

        def end() -> None:
            for way in ways:
                way.up.slow = way.down.slow = 0.0

        return f"the way of {name} is slow for {self._later(end):.1f} s"

    def _tamper(self) -> str:
        host, word = self.site.hosts[self._host()], self.dice.choice(["delete", "delete", "clear", "alter"])
        before = {layer: dict(found) for layer, found in host.content.items()}
        if not host.tamper(word):
            return ""
        gone = {layer: len(before[layer]) - len(host.content[layer]) for layer in before}
        return f"somebody's {word} on {host.name}: {[f'{n} of {layer}' for layer, n in gone.items() if n]}"

    def _disk_full(self) -> str:
        host = self.site.hosts[self._host()]
        host.disk_full = True

        def end() -> None:
            host.disk_full = False

        return f"the disk of {host.name} is full for {self._later(end):.1f} s"

    def _spoil_checkpoint(self) -> str:
        name = self._host()
        path: Path = self.site.hosts[name].directory / "checkpoint"
        if not path.exists():
            return ""
        data = path.read_bytes()
        old, self._old[name] = self._old.get(name, data), data
        how = self.dice.choice(["truncated", "garbage", "old", "old", "gone", "flipped"])
        if how in ("truncated", "old", "flipped"):
            self.site.set_back.add(name)
        self.site.kill_agent(name)
        spoil(path, how, old=old, dice=self.dice)
        return f"the agent of {name} is killed, its checkpoint is {how} ({self._restart(name):.1f} s)"

    def _reboot(self) -> str:
        name = self._host()
        self.site.kill_agent(name)
        self.site.hosts[name].reboot()
        return f"{name} boots ({self._restart(name):.1f} s)"

    def _ill_devices(self) -> str:
        host = self.site.hosts[self._host()]
        host.flaky, host.slow = self.dice.choice([(0.3, 0.0), (0.0, 0.1), (0.2, 0.05)])

        def end() -> None:
            host.flaky = host.slow = 0.0

        return f"the devices of {host.name} are flaky and slow for {self._later(end):.1f} s"

    # -- another store

    def _mislead(self) -> str:
        site, name = self.site, self._host()
        if site.foreign is None:
            other = Server()
            site.foreign = SimReplica("foreign", other, self.dice, 0)
            site.loop.spawn(site.foreign.process, site.foreign.run())
            site.loop.outside(_furnish(site, site.foreign))
        site.misled.add(name)
        site.were_misled.add(name)
        for replica in site.replicas.values():  # what it has now breaks off
            for connection in list(replica.connections):
                if connection.client is site.agents[name].process:
                    connection.lose()

        def end() -> None:
            site.misled.discard(name)
            if site.foreign is not None:
                for connection in list(site.foreign.connections):
                    connection.lose()

        return f"{name} reaches the controller of another cluster for {self._later(end):.1f} s"


async def _furnish(site: Site, foreign: SimReplica) -> None:
    """It knows hosts of the same names."""
    from tealnet.v1 import host_pb2

    while not foreign.serves:
        await asyncio.sleep(0.05)
    for name, host in site.hosts.items():
        request = host_pb2.CreateHostRequest(host_id=name, host=host_pb2.Host(vtep=host.vtep))
        await foreign.call("host", "CreateHost", request)
