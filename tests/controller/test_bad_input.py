"""Every field of every request with wrong values: the right code, the path of the field, and nothing written."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from controller.etcd.types import prefix_end
from tealnet.v1 import host_pb2, network_pb2, port_pb2, router_pb2, tenant_pb2
from tests.controller import bad_values as bad
from tests.controller.bad_values import Wrong
from tests.controller.consistent import inconsistencies
from tests.controller.methods import METHODS
from tests.controller.running import Site, site
from tests.controller.test_api_random import method_of

BY_NAME = {name.rsplit("/", 1)[1]: name for name in METHODS}


@dataclass
class Place:
    """A site with something in it, and an admin's connection."""

    site: Site
    channel: grpc.aio.Channel

    async def send(self, request: Any) -> Any:
        """The answer; of a stream its first message."""
        method = method_of(request)
        answer = message_factory.GetMessageClass(METHODS[method].output_type)
        encode, decode = type(request).SerializeToString, answer.FromString
        if METHODS[method].server_streaming:
            stream = self.channel.unary_stream(method, request_serializer=encode, response_deserializer=decode)
            return await stream(request, timeout=20).read()
        unary = self.channel.unary_unary(method, request_serializer=encode, response_deserializer=decode)
        return await unary(request, timeout=20)

    async def refused(self, request: Any) -> tuple[grpc.StatusCode, set[str], str]:
        """Code, fields (without indexes of lists, and with them) and reason of a refusal."""
        try:
            answer = await self.send(request)
        except grpc.aio.AioRpcError as error:
            status = rpc_status.from_call(error) or status_pb2.Status()  # type: ignore[arg-type]
            return error.code(), set(_fields(status)), _reason(status)
        raise AssertionError(f"not refused: {request} → {answer}")

    async def everything(self) -> dict[bytes, bytes]:
        """All intents and all that they hold, events aside."""
        store = self.site.controller.store
        root = store.keys.watched[: -len(b"w/")]
        found: dict[bytes, bytes] = {}
        for part in (b"w/o/", b"w/n/", b"w/g/", b"w/t/", b"k/"):
            _, kvs = await store.etcd.scan(root + part, prefix_end(root + part))
            found |= {kv.key: kv.value for kv in kvs}
        return found


def _fields(status: status_pb2.Status) -> Iterator[str]:
    for detail in status.details:
        request = error_details_pb2.BadRequest()
        if detail.Unpack(request):
            for violation in request.field_violations:
                yield from (violation.field, re.sub(r"\[\d+\]", "", violation.field))


def _reason(status: status_pb2.Status) -> str:
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return ""


async def fill(place: Place) -> None:
    """What wrong values can run into."""
    every = {"kinds": [1, 2, 3]}
    for tenant in ("acme", "globex"):
        parent = f"tenants/{tenant}"
        await place.send(tenant_pb2.CreateTenantRequest(tenant_id=tenant, tenant={"placement": every}))
        await place.send(router_pb2.CreateRouterRequest(parent=parent, router_id="main"))
        web = {"cidrs": ["10.0.0.0/24", "fd00::/64"], "router": f"{parent}/routers/main"}
        await place.send(network_pb2.CreateNetworkRequest(parent=parent, network_id="web", network=web))
    db = {"cidrs": ["10.5.0.0/24"], "router": "tenants/acme/routers/main"}
    used = network_pb2.CreateNetworkRequest(parent="tenants/acme", network_id="db", network=db, request_id="used")
    await place.send(used)
    await place.send(host_pb2.CreateHostRequest(host_id="h1", host={"vtep": "192.0.2.1"}, request_id="used"))
    await place.send(host_pb2.CreateHostRequest(host_id="h2", host={"vtep": "192.0.2.2"}))
    await place.send(host_pb2.CreateHostRequest(host_id="full", host={"drained": True}))
    ports: list[tuple[str, dict[str, Any]]] = [
        ("acme/p1", {"addresses": ["10.0.0.50", "fd00::50"]}),
        ("acme/taken", {"addresses": ["10.0.0.100"], "mac": "02:00:00:00:00:64"}),
        ("acme/vm", {"addresses": ["10.0.0.60"], "attachment": {"kind": 3, "device": "tap7"}}),
        ("globex/p1", {"attachment": {"kind": 2, "path": "/run/netns/theirs"}}),
    ]
    for name, body in ports:
        tenant, ident = name.split("/")
        port = {"network": f"tenants/{tenant}/networks/web", "host": "hosts/h1"} | body
        await place.send(port_pb2.CreatePortRequest(parent=f"tenants/{tenant}", port_id=ident, port=port))


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with site() as running, running.channel(running.ca.issue("admin")) as channel:
        found = Place(running, channel)
        await fill(found)
        before = await found.everything()
        yield found
        assert await found.everything() == before
        assert await inconsistencies(running.controller.store) == []


def nested(path: str, value: Any) -> dict[str, Any]:
    """labels → {labels: value}, dns.servers → {dns: {servers: value}}; of a route the rest is right."""
    top, _, rest = path.partition(".")
    if top == "routes" and rest:
        return {"routes": [{"prefix": "10.77.0.0/16", "next_hop": "10.0.0.200"} | {rest: value}]}
    return {top: {rest: value}} if rest else {top: value}


async def expect(place: Place, request: Any, wrong: Wrong, path: str) -> None:
    code, fields, reason = await place.refused(request)
    told = f"{method_of(request)}: {path}: {code.name} {sorted(fields)} {reason}: {str(request)[:500]}"
    assert code is wrong.code, told
    said = wrong.said or path
    assert said in fields if "." in said or wrong.code is bad.INVALID else said == reason, told


def as_wrong(value: Any) -> Wrong:
    return value if isinstance(value, Wrong) else Wrong(value, bad.INVALID)


@pytest.mark.parametrize("kind", bad.BODIES)
async def test_fields_of_new_objects(place: Place, kind: str) -> None:
    for path, values in bad.BODIES[kind].items():
        for wrong in map(as_wrong, values):
            body = nested(path, wrong.value)
            if wrong.said in ("PREFIX_OVERLAP", "NEXT_HOP_IS_GATEWAY"):
                continue  # of networks that are attached, and to a new router none is
            if wrong.said == "CIDR_OVERLAP":
                body["router"] = "tenants/acme/routers/main"
            await expect(place, bad.create(kind, "new", **body), wrong, f"{kind}.{path}")
    if kind == "port":
        for attachment, wrong in bad.ATTACHMENTS:
            await expect(place, bad.create(kind, "new", attachment=attachment), wrong, "")
    ident = bad.OBJECTS[kind].rsplit("/", 1)[1]
    await expect(place, bad.create(kind, ident), Wrong(None, bad.EXISTS, "ALREADY_EXISTS"), "name")


@pytest.mark.parametrize("kind", bad.BODIES)
async def test_fields_that_change(place: Place, kind: str) -> None:
    name = bad.OBJECTS[kind]
    for path, values in bad.BODIES[kind].items():
        if path == "name":
            for value in bad.MISSING:
                await expect(place, bad.update(kind, value, "labels"), as_wrong(None), f"{kind}.name")
            continue
        for wrong in map(as_wrong, values):
            if (kind, path) == ("port", "network"):
                if not wrong.value:
                    continue  # nothing is said
                wrong = as_wrong(wrong.value)  # it cannot be changed at all
            mask = "routes" if path.startswith("routes") else path
            request = bad.update(kind, name, mask, **nested(path, wrong.value))
            await expect(place, request, wrong, f"{kind}.{path}")
    if kind == "port":
        for attachment, wrong in bad.ATTACHMENTS:
            await expect(place, bad.update(kind, name, "attachment", attachment=attachment), wrong, "")
    stale = bad.update(kind, name, "description", etag="old", description="y")
    await expect(place, stale, Wrong(None, bad.ABORTED, "ETAG_MISMATCH"), "etag")
    gone = bad.update(kind, f"{name[:-1]}x", "description", description="y")
    await expect(place, gone, Wrong(None, bad.ABSENT, "NOT_FOUND"), "name")


@pytest.mark.parametrize("method", bad.REQUESTS)
async def test_other_fields_of_requests(place: Place, method: str) -> None:
    for path, values in bad.REQUESTS[method].items():
        for wrong in map(as_wrong, values):
            request = bad.right(method)
            top, _, rest = path.partition(".")
            target = getattr(request, top) if rest else request
            put(target, rest or top, wrong.value)
            await expect(place, request, wrong, path)


def put(message: Any, field: str, value: Any) -> None:
    """Set a field of any kind."""
    message.ClearField(field)
    if field == "update_mask":
        message.update_mask.paths.extend(value)
    elif isinstance(value, Message):
        getattr(message, field).CopyFrom(value)
    elif isinstance(value, list):
        if value and isinstance(value[0], dict):
            for item in value:
                getattr(message, field).add(**item)
        else:
            getattr(message, field).extend(value)
    else:
        setattr(message, field, value)


async def test_what_only_the_server_sets_changes_nothing(place: Place) -> None:
    """An object that was read can be sent back as it is, whatever stands in those fields."""
    for kind, name in bad.OBJECTS.items():
        get = bad.right(f"Get{kind.capitalize()}")
        was = await place.send(get)
        request = bad.update(kind, name)
        body = getattr(request, kind)
        body.CopyFrom(was)
        body.uid, body.revision = "0" * 32, 7
        body.create_time.seconds = body.update_time.seconds = 9
        if kind == "network":
            body.segments[0].vni = 77
        now = await place.send(request)
        assert (now.uid, now.revision, now.create_time) == (was.uid, was.revision, was.create_time)


def fields_of(descriptor: Any, prefix: str = "") -> Iterator[str]:
    """Paths of all fields that a caller may set, into messages of ours."""
    for field in descriptor.fields:
        if not prefix and field.name in bad.OUTPUT_ONLY | bad.ANYTHING:
            continue
        own = field.message_type is not None and field.message_type.full_name.startswith("tealnet.")
        if own and not field.message_type.GetOptions().map_entry:
            yield from fields_of(field.message_type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def test_no_field_is_left_out() -> None:
    """A field that is new must have wrong values here."""
    messages: dict[str, Any] = {
        "tenant": tenant_pb2.Tenant, "host": host_pb2.Host, "router": router_pb2.Router,
        "network": network_pb2.Network, "port": port_pb2.Port,
    }  # fmt: skip
    for kind, message in messages.items():
        assert set(fields_of(message.DESCRIPTOR)) <= bad.BODIES[kind].keys(), kind
    elsewhere = {
        verb for verb, name in BY_NAME.items() if name.split("/")[1].removeprefix("tealnet.v1.") in bad.ELSEWHERE
    }
    asked = BY_NAME.keys() - bad.UNASKED - bad.OWN_TESTS - elsewhere
    assert asked == bad.REQUESTS.keys()
    for method in asked:
        known = {path.partition(".")[0] for path in bad.REQUESTS[method]} | bad.SWITCHES | messages.keys()
        names = {field.name for field in METHODS[BY_NAME[method]].input_type.fields}
        assert names <= known, f"{method}: {names - known}"
