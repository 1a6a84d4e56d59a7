"""`python -m tests.chaos.store_look CA CERT KEY ENDPOINT…`, inside a lab: what is wrong in its etcd, a line each."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import structlog

from controller.etcd import Etcd, Tls
from controller.store import Store, bootstrap
from tests.chaos.judge import twice
from tests.controller.consistent import inconsistencies


async def look(ca: str, cert: str, key: str, endpoints: list[str]) -> list[str]:
    """Keys without objects, objects without keys, numbers that two objects have."""
    async with Etcd(endpoints, Tls(Path(ca), Path(cert), Path(key))) as etcd:
        store = Store(etcd, await bootstrap(etcd, "default"), replica="judge")
        await store.load()
        following = asyncio.create_task(store.run())
        try:
            lines = await inconsistencies(store) + list(twice(store))
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        return lines


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    for line in asyncio.run(look(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])):
        print(line.replace("\n", " "))
