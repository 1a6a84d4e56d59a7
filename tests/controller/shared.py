"""One etcd for all tests that only need some etcd: each has a cluster of its own in it, as sites that share one.

It runs in a thread of its own, because the kernel ends it with the thread that started it, and loops of tests come and
go. Tests that stop, fill or look at an etcd start their own.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import threading
from pathlib import Path

from controller.etcd.embedded import Durability, EmbeddedEtcd, Options

_clusters = itertools.count(1)


class SharedEtcd:
    """Started when it is first asked for; `stop` at the end of the session."""

    def __init__(self) -> None:
        self._endpoint, self._thread = "", threading.Thread(target=self._main, name="etcd of the tests", daemon=True)
        self._loop = asyncio.new_event_loop()
        self._up, self._end = threading.Event(), asyncio.Event()

    def start(self) -> None:
        self._thread.start()
        assert self._up.wait(60), "no etcd"

    @property
    def endpoint(self) -> str:
        return self._endpoint

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)

    def _main(self) -> None:
        self._loop.run_until_complete(self._run())

    async def _run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="tn") as name:
            async with EmbeddedEtcd(Options(Path(name) / "etcd", durability=Durability.MEMORY)) as server:
                self._endpoint = server.endpoint
                self._up.set()
                await self._end.wait()


_shared: SharedEtcd | None = None


def shared_etcd() -> tuple[str, str]:
    """Its endpoint, and the name of a cluster that is nobody else's."""
    global _shared
    if _shared is None:
        _shared = SharedEtcd()
        _shared.start()
    return _shared.endpoint, f"test-{next(_clusters)}"


def stop_shared() -> None:
    """When no more tests come."""
    global _shared
    if _shared is not None:
        _shared.stop()
        _shared = None
