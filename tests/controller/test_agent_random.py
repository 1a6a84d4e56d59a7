"""An agent that says anything: its session may end, the controller goes on and nothing of others is touched."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

import grpc
import grpc.aio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import controller.api.system
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.agent.v1 import agent_pb2_grpc
from tealnet.v1 import port_pb2, system_pb2, system_pb2_grpc
from tests.controller.making import Maker, uid_of
from tests.controller.randomly import messages
from tests.controller.running import FakeAgent, Site, site, until
from tests.samples import samples

NET = "tenants/acme/networks/web"
P1, P2 = "tenants/acme/ports/p1", "tenants/acme/ports/p2"
FINE = set(grpc.StatusCode) - {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
KEYS = st.one_of(
    st.sampled_from(
        [
            f"localport/{uid_of(P1)}", f"localport/{uid_of(P2)}", f"endpoint/{uid_of(P1)}", "localport/", "localport/x",
            "segment/5001", "segment/x", "segment/-1", f"segment/{'9' * 5000}", "route/x", "route/",
            "route/1001/10.0.0.0/8", "hostpeer/y", "", "/", "endpoint", "nonsense/1",
        ]
    ),
    st.text(max_size=12),
)  # fmt: skip
REVISIONS = st.one_of(st.integers(0, 60), st.sampled_from([-1, 2**62, -(2**63), 2**63 - 1]))
SCOPES = st.sampled_from(["host", "domain/1001", "domain/7", "", "host/x", "\x00"])


@st.composite
def failure(draw: st.DrawFn) -> pb.KeyFailure:
    version = draw(st.binary(max_size=20))
    return pb.KeyFailure(
        key=draw(KEYS), version=version, reason=draw(st.text(max_size=8)), text=draw(st.text(max_size=8))
    )


ACKS = st.builds(
    lambda revision, failures, unaccounted: pb.FromAgent(
        ack=pb.Ack(revision=revision, failures=failures, unaccounted=unaccounted)
    ),
    REVISIONS,
    st.lists(failure(), max_size=3),
    st.lists(KEYS, max_size=3),
)
TAKEN = st.builds(
    lambda unit, scopes: pb.FromAgent(taken=pb.Taken(unit=unit, mismatched=scopes)),
    st.integers(0, 4),
    st.lists(SCOPES, max_size=3),
)
VERSIONS = st.builds(
    lambda scope, keys: pb.FromAgent(
        versions=pb.Versions(scope=scope, versions=[pb.KeyVersion(key=key, version=b"v") for key in keys])
    ),
    SCOPES,
    st.lists(KEYS, max_size=3),
)
KNOWN = st.one_of(ACKS, TAKEN, VERSIONS)
SAID = st.one_of(
    st.lists(ACKS, min_size=1, max_size=4),
    st.lists(KNOWN, max_size=8),
    st.lists(st.one_of(KNOWN, messages(pb.FromAgent.DESCRIPTOR)), max_size=8),  # of which many end the session
)
HELLOS = st.one_of(st.none(), st.none(), messages(pb.Hello.DESCRIPTOR))  # None: the right one
SESSIONS = st.lists(st.tuples(HELLOS, SAID), min_size=4, max_size=10)


Look = Callable[[], Awaitable[None]]


async def talk(place: Site, hello: pb.Hello | None, said: list[Any], look: Look) -> grpc.StatusCode:
    """One session of h2, from its first word to its end; `look` asks others about it meanwhile."""
    right = FakeAgent("h2", "192.0.2.2", instance="instance-2").hello()
    async with place.channel(place.ca.issue("host/h2")) as channel:
        call = agent_pb2_grpc.AgentServiceStub(channel).Connect()
        try:
            for message in (pb.FromAgent(hello=hello or right), *said):
                await call.write(message)
            if hello is None:  # it is heard: what comes after it may end the session
                assert isinstance(await call.read(), pb.ToAgent)
            await look()
            await call.done_writing()
            async with asyncio.timeout(20):
                while isinstance(await call.read(), pb.ToAgent):
                    pass
        except asyncio.InvalidStateError:  # it was ended while we spoke
            pass
        except grpc.aio.AioRpcError as error:
            return error.code()
        code: grpc.StatusCode = await call.code()
        return code


async def run(sessions: list[tuple[pb.Hello | None, list[Any]]]) -> None:
    async with site() as place, contextlib.AsyncExitStack() as stack:
        # It never acks: a status need not wait for it.
        stack.enter_context(mock.patch.object(controller.api.system, "_STATUS_PATIENCE", 0.01))
        store = place.controller.store
        make = Maker(store.keys)
        ops = [
            make.tenant("acme"), make.host("h1", 1, vtep="192.0.2.1"), make.host("h2", 2, vtep="192.0.2.2"),
            make.network(NET, 1), make.port(P1, NET, ["10.0.0.5"], host="h1"),
            make.port(P2, NET, ["10.0.0.6"], host="h2"),
        ]  # fmt: skip
        await store.passed((await store.etcd.txn((), ops)).revision)
        honest = await stack.enter_async_context(FakeAgent("h1", "192.0.2.1").connected(place))
        status = place.controller.status
        await until(lambda: status.port(P1).state == port_pb2.PortStatus.STATE_ACTIVE)
        channel = await stack.enter_async_context(place.channel(place.ca.issue("admin")))
        system = system_pb2_grpc.SystemServiceStub(channel)

        async def look() -> None:
            """Whatever it has said of itself can be told."""
            for parent in (NET, ""):
                request = system_pb2.SyncRequest(parent=parent)
                request.timeout.FromMilliseconds(1)
                await system.Sync(request, timeout=5)
            await system.GetStatus(system_pb2.GetStatusRequest(), timeout=5)

        for hello, said in sessions:
            code = await talk(place, hello, said, look)
            assert code in FINE, f"{code}: {hello} {said}"
            await look()
        assert not honest.done.is_set()
        assert status.port(P1).state == port_pb2.PortStatus.STATE_ACTIVE
        assert store.graph.errors() == [] and not store.broken


@settings(max_examples=samples(8, many=200), suppress_health_check=list(HealthCheck))
@given(SESSIONS)
def test_an_agent_that_says_anything(sessions: list[tuple[pb.Hello | None, list[Any]]]) -> None:
    asyncio.run(run(sessions))
