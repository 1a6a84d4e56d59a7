from __future__ import annotations

import asyncio
import os
import signal
import time

from controller.etcd import Etcd
from controller.etcd.embedded import EmbeddedEtcd
from controller.etcd.types import put
from tests.controller.etcd.helpers import Relay, eventually


async def exists(etcd: Etcd, key: bytes) -> bool:
    return bool((await etcd.range(key)).kvs)


async def test_kept_alive_beyond_its_ttl_and_gone_when_closed(etcd: Etcd) -> None:
    async with await etcd.lease(1) as lease:
        await etcd.txn((), [put(b"session", b"", lease=lease.id)])
        begin = time.monotonic()

        async def old() -> bool:
            assert await exists(etcd, b"session") and not lease.lost.is_set()
            return time.monotonic() > begin + 2.5 * lease.ttl

        await eventually(old)
    assert not await exists(etcd, b"session")
    assert await etcd.time_to_live(lease.id) == -1


async def test_an_endpoint_that_fails_does_not_cost_the_lease(relays: tuple[Relay, Relay], etcd: Etcd) -> None:
    first, second = relays
    async with Etcd([first.endpoint, second.endpoint]) as client, await client.lease(1) as lease:
        begin, turn = time.monotonic(), 0

        async def old() -> bool:
            nonlocal turn
            if time.monotonic() > begin + turn * 0.35:
                await (first if turn % 2 == 0 else second).cut()
                turn += 1
            return time.monotonic() > begin + 2 * lease.ttl

        await eventually(old)
        assert turn >= 5 and not lease.lost.is_set()
        assert await etcd.time_to_live(lease.id) >= 0


async def test_lost_when_etcd_is_silent_for_a_ttl(server: EmbeddedEtcd, etcd: Etcd) -> None:
    async with await etcd.lease(1) as lease:
        await etcd.txn((), [put(b"session", b"", lease=lease.id)])
        os.kill(server.pid, signal.SIGSTOP)
        begin = time.monotonic()
        try:
            async with asyncio.timeout(5):
                await lease.lost.wait()
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert 0.5 < time.monotonic() - begin < 2.5  # a TTL; what is above 1 s is for a busy machine

        async def gone() -> bool:
            return not await exists(etcd, b"session")

        await eventually(gone)  # etcd and we agree in the end


async def test_lost_at_once_when_etcd_says_so(etcd: Etcd) -> None:
    async with await etcd.lease(5) as lease:
        await etcd.revoke(lease.id)
        async with asyncio.timeout(3):  # the next renewal, long before the TTL is over
            await lease.lost.wait()


async def test_lost_when_nothing_can_be_reached(relays: tuple[Relay, Relay]) -> None:
    relay, _ = relays
    async with Etcd([relay.endpoint], timeout=0.2) as client, await client.lease(1) as lease:
        await relay.close()
        async with asyncio.timeout(3):
            await lease.lost.wait()


async def test_an_unkept_lease_runs_out(etcd: Etcd) -> None:
    lease_id = await etcd.grant(1)
    await etcd.txn((), [put(b"barrier", b"", lease=lease_id)])

    async def gone() -> bool:
        return not await exists(etcd, b"barrier")

    await eventually(gone)
    assert await etcd.time_to_live(lease_id) == -1
    await etcd.revoke(lease_id)  # of one that is gone: fine
