"""Random messages to every method: never INTERNAL or UNKNOWN, never a half-written object."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tealnet.v1 import host_pb2, network_pb2, port_pb2, router_pb2, security_pb2, system_pb2, tenant_pb2
from tests.controller.consistent import inconsistencies
from tests.controller.running import Site, site

MODULES = (tenant_pb2, host_pb2, network_pb2, router_pb2, port_pb2, security_pb2, system_pb2)
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if service.name != "JoinService"
}
FINE = set(grpc.StatusCode) - {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED}

# Words that get a random message past the first check, so that the later ones see something, too.
NAMES = [
    "", "acme", "globex", "web", "p1", "p2", "h1", "main", "-", "Acme", "a" * 64, "tenants/acme", "tenants/-",
    "tenants/globex",
    "tenants/acme/networks/web", "tenants/acme/networks/db", "tenants/acme/routers/main", "tenants/acme/ports/p1",
    "tenants/acme/ports/p2", "tenants/acme/securityGroups/web", "tenants/acme/securityGroups/default",
    "policyTiers/base", "hosts/h1", "hosts/h2", "hosts/-", "tenants/acme/ports/", "tenants//ports/x",
]  # fmt: skip
VALUES = [
    "10.0.0.0/24", "10.0.1.0/24", "10.0.0.0/16", "fd00::/64", "10.0.0.5", "10.0.0.6", "10.0.0.1", "fd00::5",
    "192.0.2.7",
    "10.0.0.2-10.0.0.9", "0.0.0.0/0", "255.255.255.255", "::", "02:00:00:00:00:01", "eth0", "tap0", "/run/netns/cni-1",
    "/proc/1/ns/net", "a=b", "state=ACTIVE", "x!=y,z", "\x00", "\ud7ff", "..", "%2F", "labels", "*", "cidrs", "host",
    "addresses", "attachment.namespace", "labels.a/b", "dns.servers", "routes", "description", "placement.kinds",
]  # fmt: skip
TEXT = st.one_of(st.sampled_from(NAMES), st.sampled_from(VALUES), st.text(max_size=20))
FITTING = {  # by the field's name: what may well be right there
    "cidrs": ["10.0.0.0/24", "10.0.1.0/24", "fd00::/64", "10.0.0.0/25"],
    "gateways": ["10.0.0.1", "10.0.0.254", "fd00::1"],
    "addresses": ["10.0.0.5", "10.0.0.6", "fd00::5"],
    "allowed_addresses": ["10.9.0.0/24"],
    "reserved_ranges": ["10.0.0.2-10.0.0.9"],
    "prefix": ["10.8.0.0/16", "10.0.1.0/24"],
    "next_hop": ["10.0.0.5", "10.0.0.6"],
    "mac": ["02:00:00:00:00:01"],
    "vtep": ["192.0.2.1", "192.0.2.7"],
    "network": ["tenants/acme/networks/web", "tenants/acme/networks/db"],
    "router": ["tenants/acme/routers/main", ""],
    "host": ["hosts/h1", "hosts/h2", ""],
    "parent": ["tenants/acme", "tenants/-"],
    "description": ["text"],
    "etag": [""],
    "uid": [""],
    "request_id": ["", "one"],
    "page_token": [""],
    "filter": ["a=b"],
    "interface": ["eth0", "eth1"],
    "namespace": ["p1", "p2"],
    "device": ["tap0"],
    "path": ["/run/netns/cni-1"],
    "servers": ["10.0.0.53"],
    "search_domains": ["example.org"],
    "security_groups": ["tenants/acme/securityGroups/web", "tenants/acme/securityGroups/db"],
    "remote_group": ["tenants/acme/securityGroups/web", "tenants/acme/securityGroups/db", "web", ""],
    "remote_cidr": ["10.0.0.0/8", "::/0", ""],
    "protocol": ["tcp", "icmp", "any", "47"],
    "ports": ["80", "8000-8099"],
    "color": ["", "blue"],
    "source": ["tenants/acme/ports/p1"],
    "target": ["tenants/acme/ports/p1"],
}
NUMBERS = {
    FieldDescriptor.TYPE_INT32: st.sampled_from([0, 1, -1, 5, 2**31 - 1, -(2**31)]),
    FieldDescriptor.TYPE_INT64: st.sampled_from([0, 1, -1, 5, 2**62, 2**63 - 1, -(2**63)]),
    FieldDescriptor.TYPE_UINT32: st.sampled_from([0, 1, 2, 1300, 2**32 - 1]),
    FieldDescriptor.TYPE_UINT64: st.sampled_from([0, 1, 2**64 - 1]),
}


def scalar(field: Any) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([*field.enum_type.values_by_number, 77])
    if field.type == field.TYPE_STRING:
        fitting = FITTING.get(field.name)
        return st.one_of(st.sampled_from(fitting), st.sampled_from(fitting), TEXT) if fitting else TEXT
    if field.type == field.TYPE_BYTES:
        return st.binary(max_size=20)
    if field.type == field.TYPE_BOOL:
        return st.booleans()
    return NUMBERS[field.type]


@st.composite
def messages(draw: st.DrawFn, descriptor: Any, depth: int = 0, percent: int = 70) -> Any:
    """A message of a type, with `percent` of its fields."""
    message: Any = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if field.full_name.startswith("google.protobuf.Any") or draw(st.integers(0, 99)) >= percent:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            label = st.one_of(st.just("a"), TEXT)
            values = field.message_type.fields_by_name["value"]
            value = label if values.type == values.TYPE_STRING else scalar(values)
            getattr(message, field.name).update(draw(st.dictionaries(label, value, max_size=1)))
            continue
        one = scalar(field) if field.message_type is None else messages(field.message_type, depth + 1, percent)
        if field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(one, max_size=2)))
        elif field.message_type is None:
            setattr(message, field.name, draw(one))
        elif depth < 4:
            getattr(message, field.name).CopyFrom(draw(one))
    return message


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
    port_pb2.CreatePortRequest(parent="tenants/acme", port_id="p2", port={"network": WEB}),
    port_pb2.UpdatePortRequest(port={"name": "tenants/acme/ports/p1"}),
    port_pb2.DeletePortRequest(name="tenants/acme/ports/p1"),
    port_pb2.BatchCreatePortsRequest(parent="tenants/acme", requests=[{"port_id": "p3", "port": {"network": WEB}}]),
    network_pb2.DeleteNetworkRequest(name=WEB, force=True),
    router_pb2.DeleteRouterRequest(name=MAIN),
    host_pb2.DrainHostRequest(name="hosts/h1"),
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
CALLS = st.one_of(nearly_right(), nearly_right(), ANYTHING)


async def seed(place: Site) -> Any:
    """What a message may hit upon."""
    channel = place.channel(place.ca.issue("admin"))
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
    return channel


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


async def run(calls: list[tuple[str, Any]]) -> None:
    async with site() as place:
        channel = await seed(place)
        for method, request in calls:
            code = await send(channel, method, request)
            assert code in FINE, f"{method} answered {code} to {request}"
        assert await inconsistencies(place.controller.store) == []
        await channel.close()


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(CALLS, min_size=60, max_size=120))
def test_random_messages(calls: list[tuple[str, Any]]) -> None:
    asyncio.run(run(calls))
