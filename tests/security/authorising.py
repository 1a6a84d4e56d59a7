"""What the authorisation matrix is made of: a site with two tenants, callers, requests about this or that tenant, and
the test's own idea of who may what, by the verb in a method's name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
from google.rpc import status_pb2
from grpc_status import rpc_status

from tealnet.core.pki import SKEW, make_csr
from tealnet.v1 import host_pb2, network_pb2, port_pb2, rollout_pb2, router_pb2, security_pb2, tenant_pb2
from tests.controller.running import Site, site
from tests.security.certificates import Plan, leaf, uris
from tests.security.reflected import Method, methods

# Of one length, so that answers about them must be equal byte by byte once the one name stands for the other.
ACME, GLOBEX, NOBODY = "acme", "globe", "nobod"
HOST_OF = {ACME: "hosts/h1", GLOBEX: "hosts/h2", NOBODY: "hosts/h9"}
"""The host that a tenant may use, and no other may; h9 is none."""
TIER_OF = {ACME: "policyTiers/t1", GLOBEX: "policyTiers/t2", NOBODY: "policyTiers/t9"}
"""The tier that binds a tenant, and no other; t9 is none."""
ZONE_OF = {ACME: "a", GLOBEX: "b", NOBODY: "c"}
OWNED = ("router", "network", "port", "security_group", "rollout", "split")
KINDS = ("tenant", "host", "policy_tier", *OWNED)
NAMES = {
    "router": "routers/main", "network": "networks/web", "port": "ports/p1", "security_group": "securityGroups/web",
    "rollout": "rollouts/r1", "split": "networks/cart/trafficSplit",
}  # fmt: skip
"""A tenant's object of each kind. The rollout runs on the network `shop`; nothing moves the weights of `cart`."""
SERVICES = {"SecurityGroup": "security_group", "PolicyTier": "policy_tier", "TrafficSplit": "split"}
"""Kinds that are not called as their services are."""

WITHOUT, GONE, GONE_HOST, STALE = "without", "tenant of the past", "host of the past", "older than the tenant"
CALLERS = (
    "admin", "controller",
    f"tenant/{ACME}/admin", f"tenant/{ACME}/viewer", f"tenant/{GLOBEX}/admin", f"tenant/{GLOBEX}/viewer",
    "host/h1", "host/h2", GONE, GONE_HOST, STALE, WITHOUT,
)  # fmt: skip


@dataclass
class Matrix:
    """A running site, its methods, and a channel for each caller."""

    place: Site
    methods: list[Method]
    channels: dict[str, grpc.aio.Channel]
    uids: dict[str, str] = field(default_factory=dict)  # by name of the object


@dataclass(frozen=True)
class Answer:
    """What came of a call."""

    code: grpc.StatusCode
    text: str = ""
    details: bytes = b""
    body: bytes = b""
    message: Any = None


def name_in(tenant: str, kind: str) -> str:
    """An object of a tenant (the tenant itself, its host, or the tier that binds it)."""
    match kind:
        case "tenant":
            return f"tenants/{tenant}"
        case "host":
            return HOST_OF[tenant]
        case "policy_tier":
            return TIER_OF[tenant]
        case _:
            return f"tenants/{tenant}/{NAMES[kind]}"


@asynccontextmanager
async def matrix() -> AsyncIterator[Matrix]:
    """Two tenants with one object of each kind, a third that is gone, and one whose name was used before."""
    async with site(embedded=True) as place, AsyncExitStack() as stack:

        async def channel(role: str) -> grpc.aio.Channel:
            return await stack.enter_async_context(place.channel(place.ca.issue(role, dns=["somebody"])))

        admin = await channel("admin")
        found = Matrix(place, await methods(admin), {"admin": admin})
        of_old = Plan(names=uris(f"spiffe://tealnet.local/tenant/{ACME}/admin"), begin=-SKEW - timedelta(seconds=2))
        stale = leaf(place.ca, of_old)
        await _fill(found)
        for role in CALLERS[1:8]:
            found.channels[role] = await channel(role)
        found.channels[GONE] = await channel("tenant/former/admin")
        found.channels[GONE_HOST] = await channel("host/former")
        found.channels[STALE] = await stack.enter_async_context(place.channel(stale))
        without = grpc.ssl_channel_credentials(place.ca.cert_pem)
        options = [("grpc.ssl_target_name_override", "controller"), ("grpc.use_local_subchannel_pool", 1)]
        found.channels[WITHOUT] = await stack.enter_async_context(
            grpc.aio.secure_channel(place.settings.listen[0], without, options)
        )
        yield found


async def _fill(found: Matrix) -> None:
    await _make(found, tenant_pb2.CreateTenantRequest(tenant_id="former"))
    await _make(found, host_pb2.CreateHostRequest(host_id="former"))
    for tenant in (ACME, GLOBEX):
        zone = ZONE_OF[tenant]
        placement = tenant_pb2.Placement(host_selector={"zone": zone})
        body = tenant_pb2.Tenant(labels={"zone": zone}, placement=placement)
        await _make(found, tenant_pb2.CreateTenantRequest(tenant_id=tenant, tenant=body))
        name = HOST_OF[tenant]
        number = name[-1]
        host = host_pb2.Host(vtep=f"192.0.2.{number}", labels={"zone": zone}, description=f"secret of {tenant}")
        await _make(found, host_pb2.CreateHostRequest(host_id=name.split("/")[1], host=host))
        parent = f"tenants/{tenant}"
        await _make(found, router_pb2.CreateRouterRequest(parent=parent, router_id="main"))
        network = network_pb2.Network(cidrs=["10.0.0.0/24", "fd00::/64"], router=name_in(tenant, "router"))
        await _make(found, network_pb2.CreateNetworkRequest(parent=parent, network_id="web", network=network))
        port = port_pb2.Port(network=name_in(tenant, "network"), host=name, description=f"secret of {tenant}")
        await _make(found, port_pb2.CreatePortRequest(parent=parent, port_id="p1", port=port))
        for colored in ("shop", "cart"):
            network = network_pb2.Network(cidrs=["10.0.0.0/24"], colors=["blue", "green"])
            await _make(found, network_pb2.CreateNetworkRequest(parent=parent, network_id=colored, network=network))
            port = port_pb2.Port(network=f"{parent}/networks/{colored}", host=name, color="green")
            await _make(found, port_pb2.CreatePortRequest(parent=parent, port_id=f"green-{colored}", port=port))
        for kind, request in (
            ("security_group", security_pb2.CreateSecurityGroupRequest(parent=parent, security_group_id="web")),
            ("policy_tier", security_pb2.CreatePolicyTierRequest(policy_tier_id=TIER_OF[tenant].split("/")[1])),
            ("rollout", rollout_pb2.CreateRolloutRequest(parent=parent, rollout_id="r1")),
        ):
            made = getattr(request, kind)
            _plan(made, kind, tenant, network="shop")
            made.description = f"secret of {tenant}"
            await _make(found, request)
    for gone in ("tenants/former", "hosts/former"):
        kind = gone.split("/")[0][:-1]
        request_type = tenant_pb2.DeleteTenantRequest if kind == "tenant" else host_pb2.DeleteHostRequest
        await _make(found, request_type(name=gone))


async def _make(found: Matrix, request: Any) -> None:
    verb = request.DESCRIPTOR.name.removesuffix("Request")
    method = next(m for m in found.methods if m.name == verb)
    answer = await method.call(found.channels["admin"])(request)
    if hasattr(answer, "uid"):
        found.uids[answer.name] = answer.uid


# ---- requests


def kind_of(method: Method) -> str:
    """The kind that a service is about; "" for one that is about all."""
    word = method.service.removesuffix("Service")
    kind = SERVICES.get(word, word.lower())
    return kind if kind in KINDS else ""


def requests(method: Method, tenant: str) -> list[Any]:
    """Right requests about a tenant's objects; several where one method takes any kind. They change little."""
    if any(f.name == "items" for f in method.takes.fields):
        found = []
        for kind in KINDS:
            if kind == "split":  # no document makes one
                continue
            request = method.request()
            body(getattr(request.items.add().object, kind), kind, tenant, name=name_in(tenant, kind))
            found.append(request)
        return found
    return [_request(method.request(), kind_of(method), tenant, verb=method.name)]


def _request(request: Any, kind: str, tenant: str, *, verb: str) -> Any:
    new = verb.startswith(("Create", "BatchCreate"))
    for descriptor in request.DESCRIPTOR.fields:
        match descriptor.name:
            case "name":
                request.name = name_in(tenant, kind or "tenant")
            case "parent":
                request.parent = f"tenants/{tenant}"
            case "csr_pem":
                request.csr_pem = make_csr("host/h1", "tealnet.local").csr_pem
            case "validate_only":
                request.validate_only = True
            case "timeout":
                request.timeout.FromMilliseconds(50)
            case "source" | "target":
                setattr(request, descriptor.name, name_in(tenant, "port"))
            case "port" if not kind:
                request.port = 80
            case "networks":
                network = name_in(tenant, "split").removesuffix("/trafficSplit")
                request.networks.add(network=network, weights={"blue": 1, "green": 1})
            case "force" if verb == "SetWeights":
                request.force = True
            case "requests":
                inner = _request(request.requests.add(), kind, tenant, verb=verb)
                inner.validate_only = False
            case other if other == f"{kind}_id":
                setattr(request, other, "fresh")
            case other if other == kind:
                body(getattr(request, kind), kind, tenant, name="" if new else name_in(tenant, kind))
    return request


def body(message: Any, kind: str, tenant: str, *, name: str) -> None:
    """An object with what it needs."""
    message.SetInParent()
    message.name = name
    if kind == "network":
        message.cidrs.extend(["10.0.0.0/24", "fd00::/64"] if name else ["10.1.0.0/24"])
        message.router = name_in(tenant, "router")
    if kind == "port":
        message.network, message.host = name_in(tenant, "network"), HOST_OF[tenant]
    _plan(message, kind, tenant, network="shop" if name else "cart")


def _plan(message: Any, kind: str, tenant: str, *, network: str) -> None:
    """What is to be done with packets; a rollout is one of `network`."""
    match kind:
        case "security_group":
            message.ingress.add(protocol="tcp", ports=["80"], remote_group=f"tenants/{tenant}/securityGroups/default")
        case "policy_tier":
            message.position = security_pb2.PolicyTier.POSITION_ABOVE
            message.tenant_selector["zone"] = ZONE_OF[tenant]
            message.ingress.add(protocol="tcp", ports=["22"], action=security_pb2.RULE_ACTION_DENY)
        case "rollout":
            message.networks.append(f"tenants/{tenant}/networks/{network}")
            message.target = "green"
            message.steps.add(weights={"green": 100})


# ---- calls


async def ask(method: Method, channel: grpc.aio.Channel, request: Any) -> Answer:
    """One call; of a stream its first answer. Several requests are asked in one stream."""
    try:
        if method.streams_in:
            call = method.call(channel)(iter([request]), timeout=5)
            first = await call.read()
            call.cancel()
        elif method.streams_out:
            call = method.call(channel)(request, timeout=5)
            first = await call.read()
            call.cancel()
        else:
            first = await method.call(channel)(request, timeout=5)
    except grpc.aio.AioRpcError as error:
        status: Any = rpc_status.from_call(error) or status_pb2.Status()  # type: ignore[arg-type]
        details = b"".join(sorted(detail.value for detail in status.details))
        return Answer(error.code(), error.details() or "", details)
    return _inner(first)


def _inner(first: Any) -> Answer:
    """A refusal that stands in the answer to a list of requests counts as one."""
    for result in getattr(first, "results", ()):
        if result.HasField("error"):
            error = result.error
            code = next(code for code in grpc.StatusCode if code.value[0] == error.code)
            return Answer(code, error.message, b"".join(sorted(d.value for d in error.details)))
    return Answer(grpc.StatusCode.OK, body=first.SerializeToString(deterministic=True), message=first)


# ---- the oracle

OK, DENIED, HIDDEN, UNKNOWN, CUT = "allowed", "denied", "not found", "unauthenticated", "no connection"
_READS = ("Get", "List", "Watch", "Sync", "Test")
_WRITES = (
    "Create", "Update", "Delete", "Batch", "Plan", "Set", "Pause", "Resume", "Advance", "Confirm", "Rollback",
)  # fmt: skip
_ABOUT_ALL = ("ListTenants", "ListHosts", "ListPolicyTiers", "GetStatus")


def expected(method: Method, caller: str, tenant: str, kind: str) -> str:
    """What must come of a call about `tenant`'s object of `kind`; whatever is not thought of here is denied."""
    role, _, rest = caller.partition("/")
    own, _, level = rest.partition("/")
    if caller == WITHOUT:
        return CUT
    if caller in (GONE, GONE_HOST, STALE):
        return UNKNOWN
    if not method.package.startswith("tealnet."):
        return OK  # health, reflection
    if method.name == "GetVersion":
        return OK
    if method.name.startswith("Renew"):
        return OK if role == "host" else DENIED
    if role == "admin":
        return OK
    if role != "tenant" or method.service == "AdminService":
        return DENIED
    if method.name.startswith(_READS):
        if method.name in _ABOUT_ALL:
            return OK
        return OK if own == tenant else HIDDEN
    if method.name.startswith(_WRITES) and kind in OWNED and level == "admin" and "Token" not in method.name:
        return OK if own == tenant else HIDDEN
    return DENIED


def outcome(answer: Answer) -> str:
    """An answer in the oracle's words. Allowed is also what is refused for another reason."""
    match answer.code:
        case grpc.StatusCode.PERMISSION_DENIED:
            return DENIED
        case grpc.StatusCode.NOT_FOUND:
            return HIDDEN
        case grpc.StatusCode.UNAUTHENTICATED:
            return UNKNOWN
        case grpc.StatusCode.UNAVAILABLE:
            return CUT
        case grpc.StatusCode.INTERNAL | grpc.StatusCode.UNKNOWN | grpc.StatusCode.UNIMPLEMENTED:
            return f"broken: {answer.code} {answer.text}"
        case _:
            return OK
