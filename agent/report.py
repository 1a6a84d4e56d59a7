"""What this host tells about itself beside its ports: underlay, versions, conditions; and warm tunnel neighbours."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import structlog

from agent.core import Condition, Core
from agent.devices import Devices
from agent.drivers.base import DeviceUnavailable
from agent.drivers.underlay import TunnelNeighbours, UnderlayFacts, read_underlay
from agent.inputs import THIS, Inputs
from agent.openflow.errors import ProtocolError
from agent.reconcile import Reconciler
from agent.tally import EVERY, Tally

log = structlog.get_logger()

LOOK_EVERY = 1.0  # seconds between looks at what costs nothing
UNDERLAY_EVERY = 30  # … in looks, at the underlay
WARM_EVERY = 240.0  # seconds; OVS forgets an unused entry after 900
WARM_RETRY, LAST_WARM_RETRY = 0.2, 5.0  # … the first one and the longest: a vswitchd that starts is soon there
FIRST_WARM = 1.0  # … that an Ack waits for VTEPs that have just appeared


class Reporter:
    """Gathers facts and conditions and has the core send them when they change."""

    def __init__(self, core: Core, reconciler: Reconciler, devices: Devices, inputs: Inputs, tally: Tally) -> None:
        self._core, self._reconciler, self._devices, self._inputs = core, reconciler, devices, inputs
        self._tally = tally
        self._underlay = UnderlayFacts("")
        self._cold: dict[str, str] = {}  # VTEP → why its neighbour is not warm
        self._underlay_changed = False
        devices.on_underlay = self._note_underlay
        self._changed = asyncio.Event()
        core.on_resources = devices.on_ovs = self._changed.set
        core.before_ack.append(self.reachable)
        self._keeper: TunnelNeighbours | None = None
        self._tried: frozenset[str] = frozenset()  # VTEPs that an Ack needs not wait for any more

    async def run(self) -> None:
        """Report for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._report(), name="report")
            tasks.create_task(self._keep_warm(), name="tunnel-neighbours")

    def _note_underlay(self) -> None:
        self._underlay_changed = True

    def conditions(self) -> list[Condition]:
        """All conditions of this host that the agent knows of."""
        return sorted(self._conditions())

    def _conditions(self) -> Iterator[Condition]:
        yield from self._tally.conditions()
        ovs = self._devices.ovsdb.facts()
        if not ovs.connected:
            yield Condition("OvsdbUnavailable", "ovsdb-server does not answer", "systemctl status openvswitch-switch")
        if ovs.too_old:
            remedy = "upgrade openvswitch-switch; until then everything stays as it is"
            yield Condition("OvsTooOld", self._devices.ovsdb.refusal(), remedy)
        elif not ovs.vswitchd_up:
            yield Condition("VswitchdDown", "ovs-vswitchd does not run", "systemctl status openvswitch-switch")
        for name, layer in self._reconciler.layers.items():
            if layer.unavailable and ovs.connected and ovs.vswitchd_up:
                yield Condition("DeviceUnavailable", f"{name}: {layer.unavailable}")
        if self._core.checkpoint.failure:
            yield Condition("CheckpointFailed", self._core.checkpoint.failure, "make room on the disk of the state_dir")
        if self._underlay.vtep and not self._underlay.device:
            text = f"no device of this host has the tunnel address {self._underlay.vtep}"
            yield Condition("VtepMissing", text, "ip address show; see the settings vtep and underlay_bridge")
        if self._cold:
            vtep, reason = min(self._cold.items())
            text = f"{len(self._cold)} tunnel neighbours do not answer, e.g. {vtep}: {reason}"
            yield Condition("TunnelNeighbour", text, "check the underlay between the hosts")

    async def _report(self) -> None:
        looks, starts, version = 0, 0, ""
        await self._first_contact()
        while True:
            ovs = self._devices.ovsdb.facts()
            if ovs.vswitchd_up and (ovs.vswitchd_starts != starts or not version):
                starts, version = ovs.vswitchd_starts, await self._devices.ovs_version()
            this = self._inputs.this.rows.get(THIS)
            vtep = str(this.vtep) if this else self._core.local.vtep
            if vtep and (looks % UNDERLAY_EVERY == 0 or self._underlay_changed or not self._underlay.device):
                self._underlay_changed = False
                try:
                    self._underlay = await read_underlay(vtep, members=self._devices.ovsdb.members)
                except OSError as error:
                    log.warning("underlay not read", error=str(error))
            if ovs.vswitchd_up and looks % EVERY == 0:
                with suppress(DeviceUnavailable, ProtocolError):  # the next look tells
                    await self._tally.look(now=asyncio.get_running_loop().time())
            looks += 1
            self._core.report(underlay_mtu=self._underlay.mtu, ovs_version=version, conditions=self.conditions())
            await asyncio.sleep(LOOK_EVERY)

    async def _first_contact(self) -> None:
        """A moment for connections to come up, so that a start does not look like a fault."""
        try:
            async with asyncio.timeout(LOOK_EVERY):
                async for facts in self._devices.ovsdb.changes():
                    if facts.connected and facts.vswitchd_up:
                        return
        except TimeoutError:
            return

    async def reachable(self) -> None:
        """Resolve the way to VTEPs that have just appeared: who is told that it is done may send at once.

        One that does not answer holds an Ack up only once; afterwards it is a condition of this host.
        """
        vteps = self._vteps()
        new, self._tried = vteps - self._tried, vteps
        if new and (keeper := self._keep()) is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_WARM):
                    await self._warm(keeper, new)

    def _vteps(self) -> frozenset[str]:
        """Of all other hosts that share a domain with this one."""
        this = self._inputs.this.rows.get(THIS)
        own = this.host_uid if this else ""
        return frozenset(str(peer.vtep) for uid, peer in self._inputs.hostpeers.rows.items() if uid != own)

    def _keep(self) -> TunnelNeighbours | None:
        this = self._inputs.this.rows.get(THIS)
        if self._keeper is None and this is not None:
            self._keeper = TunnelNeighbours(this.datapath, run_dir=self._devices.run_dir)
        return self._keeper

    async def _keep_warm(self) -> None:
        """The way to every VTEP in scope stays resolved: when one appears, after vswitchd starts, and in time."""
        loop = asyncio.get_running_loop()
        done: tuple[frozenset[str], int] | None = None
        due, retry = 0.0, WARM_RETRY
        while True:
            self._changed.clear()
            keeper, ovs, pause = self._keep(), self._devices.ovsdb.facts(), LOOK_EVERY
            if keeper is not None and ovs.vswitchd_up:
                vteps = self._vteps()
                is_new = (vteps, ovs.vswitchd_starts) != done
                if is_new or loop.time() >= due:
                    retry = WARM_RETRY if is_new else min(2 * retry, LAST_WARM_RETRY)
                    done = vteps, ovs.vswitchd_starts
                    self._cold = await self._warm(keeper, vteps)
                    due = loop.time() + (retry if self._cold else WARM_EVERY)
                if self._cold:
                    pause = min(LOOK_EVERY, due - loop.time())
            await self._told(pause)

    async def _told(self, seconds: float) -> None:
        """Wait until resources or Open vSwitch change, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _warm(self, keeper: TunnelNeighbours, vteps: frozenset[str]) -> dict[str, str]:
        try:
            results = await keeper.keep(sorted(vteps))
        except (DeviceUnavailable, OSError) as error:
            return {vtep: str(error) for vtep in vteps}
        return {vtep: failure.reason for vtep, failure in results.items() if failure is not None}
