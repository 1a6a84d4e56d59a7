"""One layer of devices: what is wanted and what is there, what failed and when to try again.

A layer never decides about order; `agent.reconcile` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import structlog

from agent.drivers.base import DeviceUnavailable, Driver, Failure
from tealnet.core.delta import Delta

log = structlog.get_logger()

FIRST_RETRY, LAST_RETRY = 0.1, 30.0  # seconds; doubled each time
FIRST_LOOK, LAST_LOOK = 0.05, 1.0  # … for a device that is out of reach
NEVER = float("inf")


@runtime_checkable
class ReadsSome(Protocol):
    """A driver that can read back single keys."""

    async def read_some(self, keys: Collection[Any]) -> Mapping[Any, Any]:
        """Those of these keys that are there and ours."""
        ...


@dataclass(slots=True)
class Trouble:
    """A key that could not be brought to `value` (None: could not be deleted)."""

    failure: Failure
    value: Any
    attempts: int
    due: float  # loop time


class Layer:
    """`delta.desired` is written by `Desired`; `delta.actual` only here, from what the driver says."""

    def __init__(
        self,
        name: str,
        driver: Driver[Any, Any],
        delta: Delta[Hashable, Any],
        *,
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self.delta = delta
        self.troubles: dict[Hashable, Trouble] = {}
        self.since: dict[Hashable, int] = {}  # pending key → revision at which it became so
        self.was_read = False
        self.unavailable = ""  # why the whole device is out of reach, "" = it is not
        self.repairs = 0
        self.written: dict[Hashable, Any] = {}  # by the last apply
        self.under_way: set[Hashable] = set()  # being applied, or it is not known what came of it
        self.unobserved = False  # `delta.actual` has changed, or been read back, since somebody was told
        self._driver = driver
        self._reads_some = driver if isinstance(driver, ReadsSome) else None
        self._clock = clock
        self._stale = True
        self._stale_keys: set[Hashable] = set()  # … or only these
        self._looks = 0  # failed in a row
        self._look_due = 0.0
        self._is_back = False

    # -- what is to be done

    def pending(self) -> set[Hashable]:
        """Keys that are not as wanted, or not known to be."""
        return self.delta.to_write | self.delta.to_delete | self.under_way

    def has(self, key: Hashable) -> bool:
        """Something of this key is there, is to be, or is just being made or taken away."""
        return key in self.delta.actual or key in self.delta.desired or key in self.under_way

    def leaving(self) -> set[Hashable]:
        """Keys that are to go. A value that is just being written may be there yet: its key goes after that."""
        return self.delta.to_delete | (self.under_way - self.delta.desired.keys())

    def note(self, revision: int) -> None:
        """The desired side has changed with this revision: date what became pending, forget troubles of the past."""
        pending = self.pending()
        for key in self.since.keys() - pending:
            del self.since[key]
        for key in pending - self.since.keys():
            self.since[key] = revision
        for key in [key for key, trouble in self.troubles.items() if not self._same(key, trouble)]:
            del self.troubles[key]

    def due(self, keys: Iterable[Hashable]) -> set[Hashable]:
        """Those of the keys that may be tried now."""
        now = self._clock()
        return {key for key in keys if key not in self.troubles or self.troubles[key].due <= now}

    def next_due(self) -> float:
        """When something is to be tried again, loop time."""
        times = [self._look_due] if self._stale or self._stale_keys else []
        if self.usable():
            times += [trouble.due for trouble in self.troubles.values()]
        return min(times, default=NEVER)

    def must_look(self) -> bool:
        """Read back before doing anything?"""
        return (self._stale or bool(self._stale_keys)) and self._look_due <= self._clock()

    def in_doubt(self, key: Hashable) -> bool:
        """What is known of this key may not be so: it is to be read back, and has not been yet."""
        return self.usable() and (self._stale or key in self._stale_keys)

    def usable(self) -> bool:
        """Read back and in reach."""
        return self.was_read and not self.unavailable

    def reread(self, keys: Collection[Hashable] | None = None) -> None:
        """Something may have changed on the device; with `keys`, only these.

        One that was out of reach may be back: it is looked at now, not when that is due.
        """
        if keys is None:
            self._look_due = 0.0
        if keys is None or self._reads_some is None:
            self._stale = True
        else:
            self._stale_keys |= set(keys)

    def shelve(self, keys: Iterable[Hashable]) -> None:
        """These wait for another layer: what failed here before says nothing any more."""
        for key in keys:
            self.troubles.pop(key, None)

    def retry_now(self) -> None:
        """Circumstances have changed: try once more at once what failed; the pace of further tries stays."""
        now = self._clock()
        for trouble in self.troubles.values():
            if trouble.failure.retriable:
                trouble.due = now

    def take_back(self) -> bool:
        """Has the device come back into reach since the last call?"""
        back, self._is_back = self._is_back, False
        return back

    def forgive(self) -> None:
        """A resync: try everything again, also what is not said to be worth it."""
        self.troubles.clear()

    # -- the device

    async def look(self) -> None:
        """Read back and compare: everything, or what is known to be in doubt."""
        began = self._clock()
        keys, self._stale_keys = (None if self._stale else self._stale_keys), set()
        self._stale = False
        try:
            if keys is not None and self._reads_some is not None:
                some = await self._reads_some.read_some(keys)
                actual = {key: value for key, value in self.delta.actual.items() if key not in keys} | dict(some)
            else:
                actual = await self._driver.read()
        except DeviceUnavailable as error:
            self._out_of_reach(str(error))
            return
        except Exception as error:  # a bug in one driver must not take the other layers with it
            log.exception("driver failed to read", layer=self.name)
            self._out_of_reach(repr(error))
            return
        if self.unavailable:
            log.info("device is back", layer=self.name)
            self._is_back = True
        self.unavailable, self._looks = "", 0
        if self.was_read:
            self._count_repairs(actual)
        self.was_read = True
        self.under_way -= self.under_way if keys is None else keys
        self.unobserved = True
        self.delta.saw_all(actual)
        self._log("read", began, keys=len(actual) if keys is None else len(keys))

    async def apply(self, write: Collection[Hashable], delete: Collection[Hashable]) -> set[Hashable] | None:
        """Bring keys to what is wanted now; returns what succeeded, None if the device is out of reach.

        What succeeded is not yet `seen`: the caller may have something to do first.
        """
        began = self._clock()
        values = {key: self.delta.desired[key] for key in write}
        self.under_way = {*values, *delete}
        try:
            failures = await self._driver.apply(values, delete)
        except DeviceUnavailable as error:
            self._out_of_reach(str(error))
            return None
        except Exception as error:  # as above
            log.exception("driver failed to apply", layer=self.name)
            self._out_of_reach(repr(error))
            return None
        for key, failure in failures.items():
            self.fail(key, failure, value=values.get(key))
        self._log("applied", began, write=len(values), delete=len(delete), failed=len(failures))
        done = {*values, *delete} - failures.keys()
        self.written = values
        return done

    def seen(self, keys: Iterable[Hashable]) -> float:
        """These keys of the last `apply` are in place; returns the lowest revision that one of them was due to."""
        since = []
        for key in keys:
            self.unobserved = True
            self.under_way.discard(key)
            self.troubles.pop(key, None)
            self.delta.saw(key, self.written.get(key))
            since.append(self.since.get(key, NEVER))
            if key not in self.delta.to_write and key not in self.delta.to_delete:
                self.since.pop(key, None)
        return min(since, default=NEVER)

    def fail(self, key: Hashable, failure: Failure, *, value: Any) -> None:
        """This key could not be brought to `value`."""
        before = self.troubles.get(key)
        attempts = before.attempts + 1 if before else 1
        delay = min(LAST_RETRY, FIRST_RETRY * 2 ** (attempts - 1)) if failure.retriable else NEVER
        self.troubles[key] = Trouble(failure, value, attempts, self._clock() + delay)
        self._stale = True  # half of it may have been done
        if before is None or before.failure.reason != failure.reason:
            log.warning("not applied", layer=self.name, key=str(key), reason=failure.reason, text=failure.text)

    def _log(self, event: str, began: float, **numbers: int) -> None:
        took = 1000 * (self._clock() - began)
        log.debug(event, layer=self.name, began=round(began, 6), ms=round(took, 2), **numbers)

    def _same(self, key: Hashable, trouble: Trouble) -> bool:
        if key in self.delta.to_write:
            return bool(self.delta.desired[key] == trouble.value)
        return key in self.delta.to_delete and trouble.value is None

    def _out_of_reach(self, text: str) -> None:
        if not self.unavailable:
            log.warning("device is out of reach", layer=self.name, error=text)
        self.unavailable = text or "unavailable"
        self._stale = True
        self._look_due = self._clock() + min(LAST_LOOK, FIRST_LOOK * 2**self._looks)
        self._looks = min(self._looks + 1, 10)

    def _count_repairs(self, actual: dict[Hashable, Any]) -> None:
        """Somebody else changed what was as wanted, or put something that looks like ours."""
        known = self.delta.actual
        settled = [key for key in known if key not in self.delta.to_write and key not in self.delta.to_delete]
        touched = [key for key in settled if actual.get(key) != known[key]]
        touched += [key for key in actual if key not in known and key not in self.delta.desired]
        if touched:
            self.repairs += len(touched)
            sample = [str(key) for key in touched[:5]]
            log.warning("somebody changed our objects", layer=self.name, count=len(touched), sample=sample)


async def look_at_all(layers: Iterable[Layer]) -> None:
    """Read back every layer that has to, side by side."""
    await asyncio.gather(*(layer.look() for layer in layers if layer.must_look()))
