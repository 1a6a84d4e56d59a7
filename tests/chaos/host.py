"""A host without a kernel: what is on its devices, layer by layer, and how one thing hangs on another.

The devices outlive agents, and lose what real ones lose: a namespace takes its links along, a link its addresses and
guard, vswitchd its flows. Whoever is running hears of every change a moment later, as from netlink, OVSDB and OpenFlow.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, replace
from os.path import basename, dirname
from pathlib import Path
from typing import Any

from agent.desired import LAYERS
from agent.drivers.base import DeviceUnavailable, Failure
from agent.objects import Bridge, Guard, Link, Namespace, NetnsKind, OvsPort, Tunnel, Zone
from tests.chaos.loop import running

NOTICE = 0.02  # seconds until an event of a device is heard
OF_OVSDB, OF_VSWITCHD = {"ovsdb", "zone"}, {"flow", "zone", "ovsdb"}


class SimDriver:
    """A driver of one layer of a host."""

    def __init__(self, host: SimHost, layer: str) -> None:
        self.host, self.layer = host, layer

    async def read(self) -> dict[Hashable, Any]:
        await self.host.touch(self.layer)
        return dict(self.host.content[self.layer])

    async def read_some(self, keys: Collection[Hashable]) -> dict[Hashable, Any]:
        found = await self.read()
        return {key: found[key] for key in keys if key in found}

    async def apply(self, write: Mapping[Hashable, Any], delete: Collection[Hashable]) -> Mapping[Hashable, Failure]:
        await self.host.touch(self.layer)
        failures: dict[Hashable, Failure] = {}
        if self.layer == "flow":  # one bundle
            self.host.step()
            await self.host.point()
            for key in delete:
                self.host.content["flow"].pop(key, None)
            self.host.content["flow"].update(write)
        else:
            for key in delete:
                await self.host.point()
                self.host.remove(self.layer, key)
            for key, value in write.items():
                await self.host.point()
                if failure := self.host.refusal(self.layer, key, value):
                    failures[key] = failure
                else:
                    self.host.write(self.layer, key, value)
        await self.host.touch(self.layer)
        return failures


@dataclass(frozen=True)
class View:
    """As `OvsdbDriver.facts()`."""

    ofports: Mapping[str, int]
    used_ofports: frozenset[int]


class SimHost:
    """Devices, disk and daemons of one host."""

    def __init__(self, name: str, vtep: str, directory: Path, dice: random.Random) -> None:
        self.name, self.vtep, self.directory, self.dice = name, vtep, directory, dice
        self.content: dict[str, dict[Hashable, Any]] = {layer: {} for layer in LAYERS}
        self.boot = "boot-1"
        self.ovsdb_up = self.vswitchd_up = True
        self.disk_full = False
        self.flaky = 0.0  # share of single writes that fail
        self.slow = 0.0  # seconds more for each touch
        self.crash_after = 0  # steps until the agent is killed; 0: never
        self.on_crash: Callable[[], None] = lambda: None
        self.notify: Callable[[str], None] = lambda layer: None  # to the agent that runs
        self.drivers = {layer: SimDriver(self, layer) for layer in LAYERS}
        directory.mkdir(parents=True)

    # -- for drivers

    async def touch(self, layer: str) -> None:
        """A round trip to the device. Raises DeviceUnavailable."""
        await asyncio.sleep(self.dice.expovariate(1 / 0.0005) + self.slow * self.dice.random())
        if layer in OF_OVSDB and not self.ovsdb_up:
            raise DeviceUnavailable("ovsdb-server does not answer")
        if layer in OF_VSWITCHD and not self.vswitchd_up:
            raise DeviceUnavailable("ovs-vswitchd does not answer")
        if layer == "flow" and not any(isinstance(value, Bridge) for value in self.content["ovsdb"].values()):
            raise DeviceUnavailable("there is no bridge")

    def step(self) -> None:
        """The agent has done one thing more."""
        if self.crash_after:
            self.crash_after -= 1
            if not self.crash_after:
                self.on_crash()

    async def point(self) -> None:
        """Between two changes: here an agent may end."""
        self.step()
        if self.dice.random() < 0.2:
            await asyncio.sleep(0)

    def refusal(self, layer: str, key: Hashable, value: Any) -> Failure | None:
        """Why a write fails, if it does."""
        if self.dice.random() < self.flaky:
            return Failure("Flaky", "not this time")
        if layer in ("guard", "address") and key not in self.content["link"]:
            return Failure("LinkMissing", f"there is no link {key}")
        ours = isinstance(value, Link) and value.netns.kind is NetnsKind.OURS
        if ours and basename(value.netns.path) not in self.content["netns"]:
            return Failure("NetnsMissing", f"there is no namespace {value.netns.path}")
        return None

    def write(self, layer: str, key: Hashable, value: Any) -> None:
        """One object as it is wanted."""
        if isinstance(value, Link) and value.is_made_anew(self.content["link"].get(key)):
            self.remove("link", key)
        if isinstance(value, Namespace) and value.spare in self.content["netns"] and key not in self.content["netns"]:
            self._rename(value.spare, value.name)
        self.content[layer][key] = value

    def _rename(self, spare: str, name: str) -> None:
        """What was in the one namespace is in the other; the first name leads there, too, until it is removed."""
        for device, link in self.content["link"].items():
            if basename(link.netns.path) == spare:
                moved = replace(link.netns, path=f"{dirname(link.netns.path)}/{name}")
                self.content["link"][device] = replace(link, netns=moved)

    def remove(self, layer: str, key: Hashable) -> None:
        """One object, and what goes with it."""
        self.content[layer].pop(key, None)
        if layer == "netns":
            inside = [k for k, link in self.content["link"].items() if basename(link.netns.path) == key]
            for device in inside:
                self.remove("link", device)
                self.tell("link")
        elif layer == "link":
            self.content["guard"].pop(key, None)
            self.content["address"].pop(key, None)

    def view(self) -> View:
        """What OVSDB says."""
        ports = [p for p in self.content["ovsdb"].values() if isinstance(p, OvsPort)]
        there = {p.device: p.ofport for p in ports if p.ofport > 0 and p.device in self.content["link"]}
        return View(there, frozenset(p.ofport for p in ports))

    async def flush(self, zones: Collection[int]) -> None:
        await self.touch("flow")

    async def revalidate(self) -> None:
        await self.touch("flow")

    # `agent.cut.Conntrack`, `agent.cut.Sockets`, `agent.observe.Probes`

    async def connections(self, zones: Collection[int] | None = None) -> list[Any]:
        await self.touch("flow")
        return []

    async def forget(self, connections: Collection[Any]) -> None:
        await self.touch("flow")

    async def close_connections(self, path: str, ends: Collection[Any]) -> int:
        return 0

    def want(self, probes: Any) -> None:
        pass

    def observed(self) -> list[Any]:
        return []

    # -- what others do

    def tell(self, *layers: str) -> None:
        """Have the agent hear that these are not what they were."""
        for layer in layers:
            running().later(NOTICE * self.dice.random(), self._heard, layer)

    def _heard(self, layer: str) -> None:
        self.notify(layer)

    def kill_vswitchd(self) -> None:
        """Flows, groups and conntrack limits are gone."""
        self.vswitchd_up = False
        self.content["flow"].clear()
        self.content["zone"].clear()
        self.tell("flow", "zone", "ovsdb")

    def start_vswitchd(self) -> None:
        self.vswitchd_up = True
        self.tell("flow", "zone", "ovsdb")

    def set_ovsdb(self, *, up: bool) -> None:
        self.ovsdb_up = up
        self.tell("ovsdb", "zone")

    def reboot(self) -> None:
        """Only the disk is left: OVSDB's is on it, too."""
        self.boot = f"boot-{int(self.boot.split('-')[1]) + 1}"
        for layer in LAYERS:
            if layer != "ovsdb":
                self.content[layer].clear()

    def tamper(self, word: str) -> bool:
        """One thing that somebody does; False: there was nothing to do it to."""
        layer = self.dice.choice([layer for layer in LAYERS if self.content[layer]] or ["netns"])
        if not self.content[layer]:
            return False
        key = self.dice.choice(sorted(self.content[layer], key=str))
        if word == "delete":
            self.remove(layer, key)
            if layer == "ovsdb" and isinstance(key, tuple) and key[0] == "bridge":
                self.content["ovsdb"].clear()
                self.content["flow"].clear()
                self.tell("flow")
            if layer == "link":
                self.tell("guard", "address")
        elif word == "clear":
            for one in list(self.content[layer]):
                self.remove(layer, one)
            if layer == "ovsdb":
                self.content["flow"].clear()
                self.tell("flow")
            if layer in ("netns", "link"):
                self.tell("link", "guard", "address")
        else:
            self.content[layer][key] = altered(self.content[layer][key])
        self.tell(layer)
        return True


def altered(value: Any) -> Any:
    """Something like it that nobody wants."""
    if isinstance(value, (Namespace, Link, Guard)) or hasattr(value, "flaw"):
        return replace(value, flaw="altered")
    if isinstance(value, OvsPort):
        return replace(value, ofport=value.ofport + 1)
    if isinstance(value, Tunnel):
        return replace(value, udp_port=1)
    if isinstance(value, Bridge):
        return replace(value, datapath_type="other")
    if isinstance(value, Zone):
        return replace(value, limit=1)
    return ("altered", value)
