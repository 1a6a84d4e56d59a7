"""The loop that brings devices to what is wanted, in an order that never opens a port early or leaves one open late.

    netns → link → guard → ovsdb → address → zone      flow      zone ← address ← ovsdb ← guard ← link ← netns
              create, left to right          one bundle          delete, right to left

Two lanes run side by side: `devices` for all layers but the last, `flow` for the last one, so that a slow bridge never
delays a change of flows. They meet in tables and in two rules. A port's flows are wanted only when facts say that its
number and its guard are in place (facts are put when a layer has been applied). A device goes only when nothing of its
owner is left to be deleted in the layers to its right, and nothing that is there refers to it. Each step does what can
be done now; whatever changes wakes the lanes again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, Protocol

import structlog

from agent.desired import LAYERS, Desired
from agent.drivers.base import Driver, Failure
from agent.layer import NEVER, Layer, look_at_all
from agent.staying import Home, Staying
from tealnet.core.tables import Graph

log = structlog.get_logger()

Actual = Mapping[Hashable, Any]  # what is there in a layer, by key
# Addresses after the plug: with them a workload begins to send. What it sends before its port is open is lost, and the
# datapath remembers to drop it until the revalidators have been there. And whoever changes links meanwhile holds up
# vswitchd, which asks for the state of all devices when it plugs one.
DEVICE_LAYERS, FLOW = LAYERS[:-1], LAYERS[-1]
ON_LINKS = frozenset({"guard", "ovsdb", "address"})  # layers in which things are done with the devices of `link`
SLICE = 0.02  # seconds of deriving without giving way
RESYNC_EVERY = 300.0  # seconds, ± 20 %


@dataclass(frozen=True, slots=True)
class Applied:
    """What is on the devices: all of units up to `revision`, but for `failures` (by resource key)."""

    revision: int
    failures: Mapping[str, Failure]


class Watcher(Protocol):
    """Who makes facts of what has been applied, and does what comes with it (`agent.facts`)."""

    async def clear(self, layer: str, write: Mapping[Hashable, Any], there: Mapping[Hashable, Any]) -> None:
        """About to be written, in place of what is there: what must be done first."""
        ...

    async def prepare(self, layer: str, write: Mapping[Hashable, Any]) -> Mapping[Hashable, Failure]:
        """Just written, not yet told to anybody: what must be done first, by key what could not."""
        ...

    def observe(self, layer: str, actual: Mapping[Hashable, Any]) -> None:
        """What is now on the devices of this layer: put facts. Never awaits."""
        ...

    async def revalidated(self) -> None:
        """Return when no packet can take the path of flows deleted before the call."""
        ...


class Reconciler:
    """Wants from `desired`, devices by `drivers`. Nothing is touched before `ready()`: the inputs are whole.

    `in_use[layer]` says which keys of a layer others still refer to, given what is actual in all layers. `stands`:
    whether a link that is there becomes what is wanted without being made anew, given (wanted, there). `narrows`:
    packets may take another path than before because of this flow, although it takes nobody's place. `home`: see
    `agent.staying`.
    """

    def __init__(
        self,
        *,
        graph: Graph,
        desired: Desired,
        drivers: Mapping[str, Driver[Any, Any]],
        watcher: Watcher,
        ready: Callable[[], bool],
        clock: Callable[[], float],
        in_use: Mapping[str, Callable[[Mapping[str, Actual]], Collection[Hashable]]] | None = None,
        stands: Callable[[Any, Any], bool] = lambda wanted, there: False,
        narrows: Callable[[Any], bool] = lambda value: False,
        home: Home = lambda value: None,
    ) -> None:
        self.layers = {name: Layer(name, drivers[name], desired.deltas[name], clock=clock) for name in LAYERS}
        self.revision = 0  # of the inputs
        self.on_progress: Callable[[], None] = lambda: None
        self.on_committed: Callable[[Collection[Hashable]], None] = lambda keys: (
            None
        )  # flows, before they are forgotten
        self._graph, self._desired, self._watcher = graph, desired, watcher
        self._ready, self._clock, self._in_use = ready, clock, in_use or {}
        self._narrows, self._stands = narrows, stands
        self._devices = [self.layers[name] for name in DEVICE_LAYERS]
        self._flow = self.layers[FLOW]
        self._deriving = 0  # how many are deriving in slices
        self._late = NEVER  # … and to which revision what has changed meanwhile is owed
        self._devices_passed = False  # the first pass is over: facts are whole
        self._narrowed = False  # flows went since the last revalidation
        self._staying = Staying(
            self._flow.delta, home=home, beside=partial(desired.beside, FLOW), revalidated=watcher.revalidated
        )
        self._wake = {"devices": asyncio.Event(), "flow": asyncio.Event()}

    # -- from outside

    def take(self, revision: int) -> None:
        """The inputs have been changed to this revision."""
        self.revision = revision
        self.settle()
        self.on_progress()

    async def derive(self, *, before: Awaitable[None] | None = None) -> None:
        """Derive what the inputs make of themselves now, giving way to others; `take` must follow.

        Nothing of it is wanted before it is whole, and before `before`: what is put meanwhile (facts) waits with it.
        """
        self._deriving += 1
        try:
            began = self._clock()
            for count, _ in enumerate(self._graph.steps()):
                if count % 16 == 0 and self._clock() - began > SLICE:
                    await asyncio.sleep(0)
                    began = self._clock()
            if before is not None:
                await before
        finally:
            self._deriving -= 1

    def settle(self, since: float = NEVER) -> None:
        """Derive, and wake who has something to do. `since`: what changes now is owed to this revision already."""
        self._late = min(self._late, since)
        if self._deriving:
            return
        since, self._late = self._late, NEVER
        self._graph.settle()
        changed = self._desired.update()
        revision = int(min(since, self.revision))
        for layer in self.layers.values():
            layer.note(revision)
        if changed:
            self.kick()

    def learned(self, layer: str, key: Hashable) -> None:
        """Something of a key that is just being applied is a fact already: derive what follows from it."""
        self.settle(self.layers[layer].since.get(key, NEVER))

    def kick(self) -> None:
        """Have both lanes look for something to do; flows first, of which the switch takes its own time."""
        for event in reversed(self._wake.values()):
            event.set()

    def reread(self, *names: str) -> None:
        """These layers may not be what they were: read them back."""
        for name in names:
            self.layers[name].reread()
        self.kick()

    def reread_key(self, name: str, key: Hashable) -> None:
        """One key of a layer may not be what it was."""
        self.layers[name].reread({key})
        self.kick()

    def resync(self) -> None:
        """Read back everything and try again what has failed."""
        for layer in self.layers.values():
            layer.forgive()
            for key in self._desired.known(layer.name):  # what was wanted for a moment and never made
                if key not in layer.under_way:
                    self._desired.forget(layer.name, key)
        self.reread(*LAYERS)

    async def run(self) -> None:
        """Reconcile for ever; cancel to stop, which leaves the devices as they are."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._lane("devices", self.devices_step), name="lane-devices")
            tasks.create_task(self._lane("flow", self.flow_step), name="lane-flow")
            tasks.create_task(self._resync_for_ever(), name="resync")
            tasks.create_task(self._staying.run(self._wake["flow"].set), name="staying")

    # -- how far we are

    def applied(self) -> Applied | None:
        """What can be said truthfully now; None while nothing can."""
        if not self._ready() or not self._devices_passed or not self._flow.was_read or self._deriving:
            return None
        failures = self._desired.failures()
        broken: set[str] = set()
        unsure: set[tuple[str, Hashable]] = set()
        for layer in self.layers.values():
            for key, trouble in layer.troubles.items():
                if self._may_be_gone(layer, key):
                    unsure.add((layer.name, key))
                    continue
                for resource in self._desired.resources(layer.name, key):
                    failures.setdefault(resource, trouble.failure)
                broken |= self._idents(layer, key)
        oldest = self.revision + 1
        for layer in self.layers.values():
            for key in layer.pending() - self._kept(layer):
                # What waits for something of its own port that failed is not late, it has failed with it.
                has_failed = key in layer.troubles and (layer.name, key) not in unsure
                if not has_failed and not self._idents(layer, key) <= broken:
                    oldest = min(oldest, layer.since.get(key, oldest))
        return Applied(oldest - 1, failures)

    def _may_be_gone(self, layer: Layer, key: Hashable) -> bool:
        """Whether something has failed on a device that may not be there any more: then that is what is wrong."""
        return layer.name in ON_LINKS and self.layers["link"].in_doubt(_device(key))

    def in_place(self, resource: str) -> bool:
        """Whether the flows that this resource wants are on the switch."""
        waiting = self.waiting()
        return waiting is not None and resource not in waiting

    def waiting(self) -> set[str] | None:
        """Resources whose flows are not all on the switch as they are wanted; None while nothing can be said."""
        if not self._ready() or not self._devices_passed or not self._flow.usable() or self._deriving:
            return None
        return {resource for key in self._flow.pending() for resource in self._desired.resources(FLOW, key)}

    def take_narrowed(self) -> bool:
        """Have flows gone since the last call?"""
        narrowed, self._narrowed = self._narrowed, False
        return narrowed

    def at_rest(self) -> bool:
        """Nothing is to be done but what has failed, and what waits for that."""
        applied = self.applied()
        return applied is not None and applied.revision >= self.revision

    async def revalidated(self) -> None:
        """See `Watcher`."""
        await self._watcher.revalidated()

    # -- lanes

    async def _lane(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        event = self._wake[name]
        while True:
            wait = self._next(name) - self._clock()
            try:
                async with asyncio.timeout(None if wait == NEVER else max(wait, 0)):
                    await event.wait()
            except TimeoutError:
                pass
            event.clear()
            if self._ready():
                await step()
                self.on_progress()

    def _next(self, name: str) -> float:
        """When a lane has to look by itself."""
        if not self._ready() or (name == "flow" and not self._devices_passed):
            return NEVER
        return min(layer.next_due() for layer in (self._devices if name == "devices" else [self._flow]))

    async def devices_step(self) -> None:
        """Everything but flows, once: read back, create left to right, delete right to left."""
        await look_at_all(self._devices)
        self._retry_if_back(*self._devices)
        if not self._devices_passed:  # what a former process left is fact before anything is derived from its absence
            for layer in self._devices:
                self._observe(layer)
        self.settle()
        for layer in self._devices:
            await self._create(layer)
        if all(layer.was_read for layer in self._devices):
            if not self._devices_passed:
                self._devices_passed = True
                self._wake["flow"].set()
            await self._delete_devices()

    def _retry_if_back(self, *looked: Layer) -> None:
        """What has failed may have failed because one of these was out of reach, and waits ever longer meanwhile."""
        if any([layer.take_back() for layer in looked]):
            for layer in self.layers.values():
                layer.retry_now()
            self.kick()

    async def _create(self, layer: Layer) -> None:
        if layer.must_look():  # a link has been made again just now
            await layer.look()
        if layer.usable():
            await self._write(layer)

    async def flow_step(self) -> None:
        """All flows, once: one bundle."""
        if not self._devices_passed:
            return  # facts are not whole yet: ports would be taken for closed
        looked = self._flow.must_look()
        await look_at_all([self._flow])
        self._retry_if_back(self._flow)
        if looked:
            self._wake["devices"].set()  # devices go only when it is known that no flow of theirs is left
        self._flow.note(self.revision)
        if not self._flow.usable():
            return
        write, delete = self._flow.due(self._flow.delta.to_write), self._flow.due(self._flow.delta.to_delete)
        delete -= self._staying.keep(delete)
        if not write and not delete:
            return
        narrowed = bool(delete) or any(
            key in self._flow.delta.actual or self._narrows(self._flow.delta.desired[key]) for key in write
        )
        done = await self._flow.apply(write, delete)
        self._narrowed = self._narrowed or narrowed
        self.on_committed(done or ())
        self._finish(self._flow, done or set())
        if delete:
            self._wake["devices"].set()  # devices may go now
        self._staying.written()

    async def _write(self, layer: Layer) -> None:
        due = self._due_to_write(layer)
        if due:
            desired, actual = layer.delta.desired, layer.delta.actual
            await self._watcher.clear(layer.name, {key: desired[key] for key in due}, actual)
            due &= self._due_to_write(layer)
        standing = {key for key in due if key in actual and self._stands(desired[key], actual[key])}
        done = await layer.apply(due, ()) if due else None
        if layer.name in ON_LINKS and due:
            self._doubt_links(layer, due - (done or set()))
        if done:
            written = {key: layer.written[key] for key in done}
            failures = await self._watcher.prepare(layer.name, written)
            for key, failure in failures.items():
                layer.fail(key, failure, value=written[key])
            done -= failures.keys()
        if not due and not layer.unobserved:
            return  # six layers of seven, each time
        if done and layer.name == "link":  # with a device goes what was put on it, and perhaps its guard
            for other in ("guard", "address"):
                self.layers[other].reread((done - standing) & self.layers[other].delta.actual.keys())
        self._finish(layer, done or set())

    def _doubt_links(self, layer: Layer, failed: Iterable[Hashable]) -> None:
        """What fails on a device for the first time may do so because the device has just gone: look at it."""
        new = {_device(key) for key in failed if key in layer.troubles and layer.troubles[key].attempts == 1}
        link = self.layers["link"]
        if known := new & link.delta.actual.keys():
            link.reread(known)
            self._wake["devices"].set()

    def _due_to_write(self, layer: Layer) -> set[Hashable]:
        blocked = self._without_support(layer) | self._without_place(layer)
        layer.shelve(blocked)
        return layer.due(layer.delta.to_write - blocked)

    def _without_support(self, layer: Layer) -> set[Hashable]:
        """What has to wait until all of its owner is in place in the layers to the left.

        Asked at the very moment of writing: while a lane waits for anything, more may have come to be wanted.
        """
        if not layer.delta.to_write:
            return set()
        broken: set[str] = set()
        for left in takewhile(lambda other: other is not layer, self._devices):
            for key in left.delta.to_write:
                broken |= self._idents(left, key)
        broken.discard("")
        return {key for key in layer.delta.to_write if not self._idents(layer, key).isdisjoint(broken)}

    def _without_place(self, layer: Layer) -> set[Hashable]:
        """What has to wait until something else has gone from its place: that is late, it has not failed."""
        delta, place = layer.delta, self._desired.place
        leaving = {place(layer.name, key, delta.actual[key]) for key in delta.to_delete - layer.troubles.keys()}
        return {key for key in delta.to_write if place(layer.name, key, delta.desired[key]) in leaving}

    async def _delete_devices(self) -> None:
        if not self._flow.was_read:
            return
        deleted = False
        right = [self._flow]
        for layer in reversed(self._devices):
            if layer.usable():
                waiting = self._still_needed(layer, right)
                layer.shelve(waiting)
                due = layer.due(layer.delta.to_delete - waiting)
                if due:
                    done = await layer.apply((), due)
                    self._finish(layer, done or set())
                    deleted = deleted or bool(done)
            right.append(layer)
        if deleted:  # what was in somebody's way may be gone
            for layer in self._devices:
                layer.retry_now()
            self._wake["devices"].set()

    def _still_needed(self, layer: Layer, right: Iterable[Layer]) -> set[Hashable]:
        """What has to wait until its owner's things in the layers to the right are gone; asked at that moment, too."""
        if not layer.delta.to_delete:
            return set()
        blocked: set[str] = set()
        for other in right:
            for key in other.leaving():
                blocked |= self._idents(other, key)
        waiting = {key for key in layer.delta.to_delete if not self._idents(layer, key).isdisjoint(blocked)}
        return waiting | (layer.delta.to_delete & self._referred_to(layer))

    def _kept(self, layer: Layer) -> set[Hashable]:
        """What is to go, but for others that refer to it: those are pending themselves."""
        return layer.delta.to_delete & self._referred_to(layer) if layer.delta.to_delete else set()

    def _referred_to(self, layer: Layer) -> set[Hashable]:
        find = self._in_use.get(layer.name)
        return set(find({name: other.delta.actual for name, other in self.layers.items()})) if find else set()

    def _finish(self, layer: Layer, done: set[Hashable]) -> None:
        """These keys are in place: tell the facts, derive what follows, in one go."""
        since = layer.seen(done)
        for key in done:
            self._desired.forget(layer.name, key)
        self._observe(layer)
        self.settle(since)

    def _observe(self, layer: Layer) -> None:
        if layer.was_read:  # before, nothing there is not a fact
            layer.unobserved = False
            self._watcher.observe(layer.name, layer.delta.actual)

    def _idents(self, layer: Layer, key: Hashable) -> set[str]:
        """Whose it is, as ids without the kind: a port and its endpoint are one. {""}: nobody's that is known."""
        return {name.partition("/")[2] for name in self._desired.resources(layer.name, key)} or {""}

    async def _resync_for_ever(self) -> None:
        while True:
            await asyncio.sleep(RESYNC_EVERY * random.uniform(0.8, 1.2))
            self.resync()


def _device(key: Hashable) -> Hashable:
    """The device that a key of a layer on links is about."""
    return key[1] if isinstance(key, tuple) else key
