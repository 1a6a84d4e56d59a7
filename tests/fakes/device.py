"""Devices as dicts, with planned errors: what reconciling is tested against."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any

from agent.drivers.base import DeviceUnavailable, Failure


class Crash(BaseException):
    """The process ends here, between any two steps; nothing may catch it."""


class DictDevice:
    """A driver whose device is `content`. Each change goes to `log` as (layer, verb, key)."""

    def __init__(self, layer: str, log: list[tuple[str, str, Hashable]] | None = None) -> None:
        self.layer = layer
        self.content: dict[Hashable, Any] = {}
        self.log = log if log is not None else []
        self.errors: dict[Hashable, Failure] = {}
        self.unavailable = False
        self.reads = 0
        self.applies = 0
        self.before: Callable[[str, Hashable], None] = lambda verb, key: None

    def plan_error(self, key: Hashable, failure: Failure | None) -> None:
        """From now on (or, with None, no longer) this key fails."""
        if failure is None:
            self.errors.pop(key, None)
        else:
            self.errors[key] = failure

    async def read(self) -> dict[Hashable, Any]:
        await asyncio.sleep(0)
        self._check()
        self.reads += 1
        return dict(self.content)

    async def read_some(self, keys: Collection[Hashable]) -> dict[Hashable, Any]:
        await asyncio.sleep(0)
        self._check()
        return {key: self.content[key] for key in keys if key in self.content}

    async def apply(self, write: Mapping[Hashable, Any], delete: Collection[Hashable]) -> Mapping[Hashable, Failure]:
        await asyncio.sleep(0)
        self._check()
        self.applies += 1
        failures = {key: self.errors[key] for key in (*write, *delete) if key in self.errors}
        for key in delete:
            if key not in failures:
                self.before("delete", key)
                self.content.pop(key, None)
                self.log.append((self.layer, "delete", key))
        for key, value in write.items():
            if key not in failures:
                self.before("write", key)
                self.content[key] = value
                self.log.append((self.layer, "write", key))
        await asyncio.sleep(0)
        return failures

    def _check(self) -> None:
        if self.unavailable:
            raise DeviceUnavailable(f"{self.layer} does not answer")
