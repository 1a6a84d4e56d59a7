"""Random messages to every method, by every role: never INTERNAL or UNKNOWN, never a half-written object."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any
from unittest import mock

import grpc
import grpc.aio
from google.protobuf import message_factory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import controller.api.system
from tealnet.core.pki import make_csr
from tealnet.v1 import host_pb2, network_pb2, port_pb2, router_pb2, security_pb2, split_pb2, tenant_pb2
from tests.controller.consistent import inconsistencies
from tests.controller.methods import METHODS
from tests.controller.randomly import messages
from tests.controller.running import Site, site
from tests.samples import samples

ROLES = ("admin", "tenant/acme/admin", "tenant/acme/viewer", "tenant/globex/admin", "host/h1", "host/h2")
FINE = set(grpc.StatusCode) - {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED}

WEB, MAIN = "tenants/acme/networks/web", "tenants/acme/routers/main"
GROUP = "tenants/acme/securityGroups/web"
RIGHT: list[Any] = [
    tenant_pb2.CreateTenantRequest(tenant_id="globex"),
    tenant_pb2.UpdateTenantRequest(tenant={"name": "tenants/acme"}),
    host_pb2.CreateHostRequest(host_id="h2"),
    host_pb2.UpdateHostRequest(host={"name": "hosts/h1"}),
    router_pb2.CreateRouterRequest(parent="tenants/acme", router_id="r"),
    router_pb2.UpdateRouterRequest(router={"name": MAIN}),
    network_pb2.CreateNetworkRequest(parent="tenants/acme", network_id="db", network={"cidrs": ["10.0.1.0/24"]}),
    network_pb2.UpdateNetworkRequest(network={"name": WEB}),
    network_pb2.UpdateNetworkRequest(network={"name": WEB, "colors": ["blue", "green"]}),
    network_pb2.UpdateNetworkRequest(network={"name": WEB, "colors": ["blue"]}),
    network_pb2.UpdateNetworkRequest(network={"name": WEB}, update_mask={"paths": ["colors"]}),
    split_pb2.SetWeightsRequest(
        parent="tenants/acme", networks=[{"network": WEB, "weights": {"blue": 3, "green": 1}}], force=True
    ),
    split_pb2.GetTrafficSplitRequest(name=f"{WEB}/trafficSplit"),
    port_pb2.CreatePortRequest(parent="tenants/acme", port_id="p2", port={"network": WEB}),
    port_pb2.CreatePortRequest(parent="tenants/acme", port_id="p4", port={"network": WEB, "color": "green"}),
    port_pb2.UpdatePortRequest(port={"name": "tenants/acme/ports/p1"}),
    port_pb2.DeletePortRequest(name="tenants/acme/ports/p1"),
    port_pb2.BatchCreatePortsRequest(parent="tenants/acme", requests=[{"port_id": "p3", "port": {"network": WEB}}]),
    network_pb2.DeleteNetworkRequest(name=WEB, force=True),
    router_pb2.DeleteRouterRequest(name=MAIN),
    host_pb2.DrainHostRequest(name="hosts/h1"),
    host_pb2.CreateJoinTokenRequest(name="hosts/h1"),
    host_pb2.JoinRequest(host_id="h1", token="x"),
    host_pb2.RenewCertificateRequest(csr_pem=make_csr("host/h1", "tealnet.local").csr_pem),
    tenant_pb2.DeleteTenantRequest(name="tenants/globex", force=True),
    security_pb2.CreateSecurityGroupRequest(parent="tenants/acme", security_group_id="db"),
    security_pb2.UpdateSecurityGroupRequest(security_group={"name": GROUP}),
    security_pb2.DeleteSecurityGroupRequest(name=GROUP),
    security_pb2.CreatePolicyTierRequest(policy_tier_id="base", policy_tier={"position": 1}),
    security_pb2.UpdatePolicyTierRequest(policy_tier={"name": "policyTiers/base"}),
    tenant_pb2.DeleteTenantRequest(name="tenants/acme", force=True),
]
"""Requests that are right; random fields are merged into them."""


def method_of(request: Any) -> str:
    return next(name for name, method in METHODS.items() if method.input_type is request.DESCRIPTOR)


@st.composite
def nearly_right(draw: st.DrawFn) -> tuple[str, Any]:
    right = draw(st.sampled_from(RIGHT))
    request = type(right)()
    request.CopyFrom(right)
    request.MergeFrom(draw(messages(right.DESCRIPTOR, percent=draw(st.sampled_from([0, 10, 30])))))
    return method_of(request), request


ANYTHING = st.one_of(*(st.tuples(st.just(name), messages(m.input_type)) for name, m in METHODS.items()))
BY = st.one_of(st.just("admin"), st.sampled_from(ROLES))
CALLS = st.tuples(BY, st.one_of(nearly_right(), nearly_right(), ANYTHING))


async def seed(place: Site, channel: Any) -> None:
    """What a message may hit upon."""
    web = network_pb2.Network(cidrs=["10.0.0.0/24", "fd00::/64"], router="tenants/acme/routers/main")
    port = port_pb2.Port(network="tenants/acme/networks/web", host="hosts/h1")
    for request in (
        tenant_pb2.CreateTenantRequest(tenant_id="acme", tenant=tenant_pb2.Tenant(placement={"kinds": [1, 2, 3]})),
        host_pb2.CreateHostRequest(host_id="h1", host=host_pb2.Host(vtep="192.0.2.1")),
        router_pb2.CreateRouterRequest(parent="tenants/acme", router_id="main"),
        network_pb2.CreateNetworkRequest(parent="tenants/acme", network_id="web", network=web),
        port_pb2.CreatePortRequest(parent="tenants/acme", port_id="p1", port=port),
        security_pb2.CreateSecurityGroupRequest(parent="tenants/acme", security_group_id="web"),
    ):
        assert await send(channel, method_of(request), request) is grpc.StatusCode.OK


async def send(channel: Any, method: str, request: Any) -> grpc.StatusCode:
    """The status of a call; of a stream's first message."""
    answer = message_factory.GetMessageClass(METHODS[method].output_type)
    encode, decode = type(request).SerializeToString, answer.FromString
    brief = method.endswith(("Sync", "Watch"))
    try:
        if METHODS[method].server_streaming:
            stream = channel.unary_stream(method, request_serializer=encode, response_deserializer=decode)
            call = stream(request, timeout=0.2)
            await call.read()
            call.cancel()
        else:
            unary = channel.unary_unary(method, request_serializer=encode, response_deserializer=decode)
            await unary(request, timeout=0.2 if brief else 20)
    except grpc.aio.AioRpcError as error:
        assert brief or error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED, method
        return error.code()
    return grpc.StatusCode.OK


async def run(calls: list[tuple[str, tuple[str, Any]]]) -> None:
    async with site() as place, contextlib.AsyncExitStack() as stack:
        # No host is there: a status need not wait for it.
        stack.enter_context(mock.patch.object(controller.api.system, "_STATUS_PATIENCE", 0.01))
        admin = await stack.enter_async_context(place.channel(place.ca.issue("admin")))
        await seed(place, admin)
        others = (role for role in ROLES if role != "admin")
        channels = {role: await stack.enter_async_context(place.channel(place.ca.issue(role))) for role in others} | {
            "admin": admin
        }
        stranger = await stack.enter_async_context(place.stranger())
        for role, (method, request) in calls:
            channel = stranger if "/tealnet.v1.JoinService/" in method else channels[role]
            code = await send(channel, method, request)
            assert code in FINE, f"{method} answered {code} to {role}: {request}"
        assert await inconsistencies(place.controller.store) == []


@settings(max_examples=samples(10, many=200), suppress_health_check=list(HealthCheck))
@given(st.lists(CALLS, min_size=60, max_size=120))
def test_random_messages(calls: list[tuple[str, tuple[str, Any]]]) -> None:
    asyncio.run(run(calls))
