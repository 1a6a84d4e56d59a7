"""Nobody's calls keep the others waiting, and whatever one asks for has an end."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from controller.api import fair
from controller.api.fair import Gate
from controller.api.sizes import check_size
from controller.errors import Invalid, ResourceExhausted
from tealnet.v1 import security_pb2, system_pb2, system_pb2_grpc, tenant_pb2, tenant_pb2_grpc
from tests.controller.running import site


class Played:
    """Calls through a gate that end when they are told to."""

    def __init__(self, at_once: int, queued: int = 1000) -> None:
        self.now = 0.0
        self.rests: list[tuple[float, Callable[[], None]]] = []
        self.gate = Gate(at_once=at_once, queued=queued, clock=lambda: self.now, later=self._later)
        self.running: dict[str, list[asyncio.Event]] = {}
        self.order: list[str] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.most = 0

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self.rests.append((seconds, call))

    def rest(self) -> None:
        """All who rest have rested."""
        rests, self.rests = self.rests, []
        for _, call in rests:
            call()

    def call(self, party: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._call(party))
        self.tasks.add(task)
        return task

    async def _call(self, party: str) -> None:
        end = asyncio.Event()
        async with self.gate.turn(party):
            self.order.append(party)
            self.running.setdefault(party, []).append(end)
            self.most = max(self.most, sum(map(len, self.running.values())))
            try:
                await end.wait()
            finally:
                self.running[party].remove(end)

    async def end(self, party: str) -> None:
        """One of its calls ends."""
        self.running[party][0].set()
        await settle()

    def counts(self) -> dict[str, int]:
        return {party: len(ends) for party, ends in self.running.items() if ends}

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.rest()
        assert not self.gate._running and not self.gate._queues and not self.gate._resting


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_is_alone_has_all_places() -> None:
    played = Played(at_once=4)
    for _ in range(10):
        played.call("a")
    await settle()
    assert played.counts() == {"a": 4}
    await played.end("a")
    assert played.counts() == {"a": 4} and len(played.order) == 5
    await played.close()


async def test_who_comes_seldom_finds_a_place_whatever_others_have_in_their_queues() -> None:
    played = Played(at_once=4)
    played.call("b")
    await settle()
    await played.end("b")
    for _ in range(500):
        played.call("a")
    await settle()
    assert played.counts() == {"a": 2}  # b called a moment ago
    played.call("b")
    await settle()
    assert played.counts() == {"a": 2, "b": 1}, "b did not wait"
    await played.end("b")
    played.now = 5.0  # long ago
    await played.end("a")
    assert played.counts() == {"a": 4}
    played.call("b")
    await settle()
    assert played.counts() == {"a": 4}  # all taken: it is the next one
    await played.end("a")
    assert played.counts() == {"a": 3, "b": 1}
    await played.close()


async def test_parties_take_turns() -> None:
    played = Played(at_once=1)
    for party in "aaaaaaaabbbc":
        played.call(party)
    await settle()
    while any(played.counts()):
        await played.end(next(iter(played.counts())))
        played.rest()
        await settle()
    assert "".join(played.order) == "abacbabaaaaa"
    await played.close()


async def test_who_has_a_backlog_rests_after_each_call_while_others_are_about() -> None:
    """Or it would fill the one door through which all calls come in."""
    played = Played(at_once=4)
    played.call("b")
    await settle()
    await played.end("b")
    for _ in range(10):
        played.call("a")
    await settle()
    played.now = 0.25
    await played.end("a")
    assert played.counts() == {"a": 1} and [seconds for seconds, _ in played.rests] == [0.25]
    for _ in range(3):
        played.call("b")
    await settle()
    assert played.counts() == {"a": 1, "b": 2}, "the places of who rests are free for others"
    played.rest()
    await settle()
    assert played.counts() == {"a": 2, "b": 2}
    await played.end("b")
    await played.end("b")
    played.rest()
    await settle()
    played.now = 5.0  # b called long ago
    await played.end("b")
    await played.end("a")
    assert played.counts() == {"a": 4} and not played.rests, "who is alone does not rest"
    await played.close()


async def test_too_many_are_refused_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair, "_PATIENCE", 0.05)
    played = Played(at_once=1, queued=3)
    for _ in range(4):
        played.call("a")
    await settle()
    with pytest.raises(ResourceExhausted) as caught:
        await played.call("a")
    assert caught.value.reason == "TOO_MANY_CALLS" and "3 calls of a wait already" in caught.value.text
    late = played.call("a")
    other = played.call("b")
    await settle()
    await played.end("a")
    await played.end("b")
    assert other.done() and not other.exception()  # another's queue is another's
    played.rest()
    await asyncio.sleep(0.1)
    assert not late.done()  # there was room in time
    await played.close()


@pytest.mark.parametrize("seed", range(20))
async def test_any_history_leaves_nothing_and_forgets_nobody(seed: int) -> None:
    """Calls come, end and are given up at random: never too many, nobody waits while there is room, all end."""
    rng = random.Random(seed)
    played = Played(at_once=rng.choice((1, 3, 8)))
    done: Counter[str] = Counter()
    for _ in range(300):
        party = rng.choice("aaaab")
        match rng.randrange(4):
            case 0 | 1:
                played.call(party).add_done_callback(lambda task, party=party: done.update([party]))  # type: ignore[misc]
            case 2 if played.running.get(party):
                played.running[party][0].set()
            case 3 if played.tasks:
                rng.choice(sorted(played.tasks, key=id)).cancel()
        if rng.randrange(3) == 0:
            played.rest()
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        played.now += rng.choice((0, 0.1, 3))
        assert played.most <= played.gate.at_once
    played.now += 10
    for _ in range(2000):
        played.rest()
        await settle()
        running = [party for party, count in played.counts().items() if count]
        if not running:
            break
        await played.end(running[0])
    await asyncio.gather(*played.tasks, return_exceptions=True)
    assert not played.gate._running and not played.gate._queues
    assert done.total() == len(played.tasks)


# ---- through the API


async def test_more_calls_than_a_connection_carries_all_get_their_answer() -> None:
    async with site() as place, place.channel(place.ca.issue("admin")) as channel:
        stub: Any = tenant_pb2_grpc.TenantServiceStub(channel)
        names = [f"t{number}" for number in range(2 * fair.STREAMS)]
        await asyncio.gather(*(stub.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id=name)) for name in names))
        answer = await stub.ListTenants(tenant_pb2.ListTenantsRequest(page_size=1000))
        assert len(answer.tenants) == len(names)


async def test_streams_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair, "WAITING", 5)
    monkeypatch.setattr(fair, "_PATIENCE", 0.05)
    async with site() as place, place.channel(place.ca.issue("admin")) as channel:
        tenants: Any = tenant_pb2_grpc.TenantServiceStub(channel)
        await tenants.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id="acme"))
        stub: Any = system_pb2_grpc.SystemServiceStub(channel)

        async def watch(of: Any) -> Any:
            call = of.Watch(system_pb2.WatchRequest())
            await call.read()
            return call

        calls = [await watch(stub) for _ in range(5)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch(stub)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        async with place.channel(place.ca.issue("tenant/acme/admin")) as other:
            (await watch(system_pb2_grpc.SystemServiceStub(other))).cancel()  # has its own
        calls.pop().cancel()
        for _ in range(200):
            with contextlib.suppress(grpc.aio.AioRpcError):
                calls.append(await watch(stub))
                break
            await asyncio.sleep(0.01)
        assert len(calls) == 5


async def test_messages_have_an_end() -> None:
    async with site() as place, place.channel(place.ca.issue("admin")) as channel:
        stub: Any = tenant_pb2_grpc.TenantServiceStub(channel)
        request = tenant_pb2.CreateTenantRequest(tenant_id="acme")
        request.tenant.description = "x" * (17 << 20)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateTenant(request)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await stub.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id="acme"))


TOO_MUCH: dict[str, Any] = {
    "description": tenant_pb2.Tenant(description="x" * (15 << 20)),
    "labels": tenant_pb2.Tenant(labels={f"k{number}": "" for number in range(20_000)}),
    "labels ": tenant_pb2.Tenant(labels={"k": "x" * (1 << 20)}),
    "placement.kinds": tenant_pb2.Tenant(placement=tenant_pb2.Placement(kinds=["ATTACHMENT_KIND_NETNS"] * 20_000)),
}


async def test_what_takes_long_to_check_is_not_looked_at() -> None:
    """Millions of entries fit into a message; to look at each would keep everybody waiting for seconds."""
    async with site() as place, place.channel(place.ca.issue("admin")) as channel:
        stub: Any = tenant_pb2_grpc.TenantServiceStub(channel)
        for field, body in TOO_MUCH.items():
            request = tenant_pb2.CreateTenantRequest(tenant_id="acme", tenant=body)
            began = time.process_time()
            with pytest.raises(Invalid, match=re.escape(f"tenant.{field.strip()}")):
                check_size(request)
            assert time.process_time() - began < 0.1
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.CreateTenant(request)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        deep = security_pb2.CreateSecurityGroupRequest()
        for _ in range(3):
            deep.security_group.ingress.add(protocol="tcp")
        check_size(deep)
        deep.security_group.ingress[2].ports.extend(["80"] * 10_001)
        with pytest.raises(Invalid, match=r"security_group.ingress\[2\].ports"):
            check_size(deep)
