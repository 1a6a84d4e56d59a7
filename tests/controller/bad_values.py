"""What must be refused, field by field, and how: the material of test_bad_input.

A row is (path, values that are wrong there). Unless a value says otherwise (`Wrong`), it is INVALID_ARGUMENT at that
path, or at an element of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from tealnet.v1 import admin_pb2, host_pb2, network_pb2, port_pb2, router_pb2, system_pb2, tenant_pb2

INVALID, ABSENT, EXISTS = StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND, StatusCode.ALREADY_EXISTS
BLOCKED, ABORTED = StatusCode.FAILED_PRECONDITION, StatusCode.ABORTED
EXHAUSTED, RANGE = StatusCode.RESOURCE_EXHAUSTED, StatusCode.OUT_OF_RANGE


@dataclass(frozen=True)
class Wrong:
    """A value and what it gets: `said` is a field of the answer, or (not INVALID_ARGUMENT) its reason."""

    value: Any
    code: StatusCode
    said: str = ""


LONG = "x" * 64
WEB, DB, THEIRS = "tenants/acme/networks/web", "tenants/acme/networks/db", "tenants/globex/networks/web"
P1 = "tenants/acme/ports/p1"
LABELS: list[Any] = [
    {"a b": "c"}, {"": "c"}, {"a/b/c": "d"}, {"a": "b c"}, {"a": "ü"}, {"k" * 64: "v"}, {"k": "v" * 64},
    {f"k{n}": "v" for n in range(65)},
]  # fmt: skip
DESCRIPTION: list[Any] = ["x" * 1025, "\x00", "a\x7f", "\x1b[31m"]
NAMES: list[Any] = ["tenants/acme/nonsense/x", "x", "tenants/acme", f"tenants/acme/networks/{LONG}"]
TIMES: list[Any] = [Timestamp(seconds=1), Timestamp(seconds=-5), Timestamp(seconds=2**40)]
NO_PREFIX: list[Any] = [["10.0.0.1/24"], ["10.0.0.0"], ["x"], [""], ["10.0.0.0/33"], ["fe80::%eth0/64"]]
NO_UNICAST: list[Any] = [["0.0.0.0/0"], ["127.0.0.0/8"], ["169.254.0.0/16"], ["224.0.0.0/8"], ["::/0"], ["ff00::/16"]]
NO_ADDRESS: list[Any] = [
    "x",
    "",
    "10.0.0.256",
    "fe80::1",
    "fe80::1%eth0",
    "127.0.0.1",
    "224.0.0.1",
    "::",
    "::ffff:10.0.0.5",
]

BODIES: dict[str, dict[str, list[Any]]] = {
    "tenant": {
        "name": NAMES,
        "labels": LABELS,
        "description": DESCRIPTION,
        "placement.host_selector": LABELS,
        "placement.kinds": [[0], [9], [1, 1], [2, 3, 2]],
        "quota.networks": [10_000_001, 2**32 - 1],
        "quota.routers": [10_000_001],
        "quota.ports": [2**32 - 1],
        "quota.rollouts": [2**32 - 1],
        "quota.security_groups": [2**32 - 1],
        "revoked_before": TIMES,
    },
    "host": {
        "name": NAMES,
        "labels": LABELS,
        "description": DESCRIPTION,
        "vtep": [*(v for v in NO_ADDRESS if v), "10.0.0.0/24", Wrong("192.0.2.2", BLOCKED, "VTEP_IN_USE")],
        "revoked_before": TIMES,
        "fenced": [True],  # set by FenceHost only
    },
    "router": {
        "name": NAMES,
        "labels": LABELS,
        "description": DESCRIPTION,
        "routes.prefix": [
            *(v[0] for v in (*NO_PREFIX, *NO_UNICAST)),
            Wrong("10.0.0.0/25", BLOCKED, "PREFIX_OVERLAP"),  # of a network that is attached
        ],
        "routes.next_hop": [*NO_ADDRESS, "10.77.0.9", "fd00::9", Wrong("10.0.0.1", BLOCKED, "NEXT_HOP_IS_GATEWAY")],
        "routes": [
            [{"prefix": f"10.{n >> 8}.{n & 255}.0/24", "next_hop": "10.0.0.9"} for n in range(257)],
            Wrong([{"prefix": "10.77.0.0/16", "next_hop": "10.0.0.9"}] * 2, INVALID, "router.routes[1].prefix"),
        ],
    },
    "network": {
        "name": NAMES,
        "labels": LABELS,
        "description": DESCRIPTION,
        "cidrs": [
            [], *NO_PREFIX, *NO_UNICAST, ["10.9.0.0/31"], ["fd00::/8"], ["fd00::/127"],
            ["10.9.0.0/24", "10.9.0.0/24"], ["10.9.0.0/24", "10.9.0.128/25"],
            [f"10.{n}.0.0/24" for n in range(100, 117)], Wrong(["10.5.0.0/23"], BLOCKED, "CIDR_OVERLAP"),
        ],
        "gateways": [
            *([v] for v in NO_ADDRESS), ["10.1.0.1"], ["10.0.0.0"], ["10.0.0.255"], ["10.0.0.7", "10.0.0.8"],
        ],
        "reserved_ranges": [
            ["x"], [""], ["10.0.0.9-10.0.0.2"], ["10.0.0.2-fd00::9"], ["10.1.0.2"], ["10.0.0.200-10.0.1.4"],
            ["10.0.0.2", "10.0.0.2"], ["10.0.0.2-10.0.0.9%eth0"], [f"10.0.0.{n}" for n in range(2, 70)],
        ],
        "router": [
            *NAMES, "tenants/globex/routers/main", Wrong("tenants/acme/routers/none", ABSENT, "network.router"),
        ],
        "mtu": [1, 575, 9001, 2**32 - 1, 1279],  # 1279: not with IPv6
        "dns.servers": [*([v] for v in NO_ADDRESS), ["10.0.0.53", "10.0.0.53"]],
        "dns": [{"servers": [f"10.0.0.{n}" for n in range(9)]}, {"search_domains": [f"a{n}" for n in range(9)]}],
        "dns.search_domains": [["-a"], [""], ["a b"], [f"{LONG}.org"], ["a" * 254], ["a.org", "a.org"]],
        "policy": [9],
        "address_quarantine": [Duration(seconds=-1), Duration(nanos=5), Duration(seconds=30 * 86400 + 1)],
        "colors": [["base"], ["A"], ["blue", "blue"], [f"c{n}" for n in range(9)], [""]],
        "initial_weights": [{"A": 1}, {"blue": 10_000_001}],
    },
    "port": {
        "name": NAMES,
        "labels": LABELS,
        "description": DESCRIPTION,
        "network": ["", *NAMES, THEIRS, Wrong("tenants/acme/networks/none", ABSENT, "port.network")],
        "host": ["h1", *NAMES, Wrong("hosts/none", ABSENT, "port.host"), Wrong("hosts/full", BLOCKED, "HOST_DRAINED")],
        "attachment.kind": [9],
        "attachment.namespace": ["a.b", "../x", "A", LONG, "a b", Wrong("taken", BLOCKED, "INTERFACE_IN_USE")],
        "attachment.interface": ["lo", "all", "a/b", "a" * 16, ".", "a b"],
        "attachment.path": ["/run/netns/x"],  # not for NETNS
        "attachment.device": ["tap0"],
        "addresses": [
            *([v] for v in NO_ADDRESS), ["10.0.0.0"], ["10.0.0.1"], ["10.0.0.255"], ["10.1.0.5"],
            ["10.0.0.5", "10.0.0.5"], [f"10.0.0.{n}" for n in range(10, 27)],
            Wrong(["10.0.0.100"], BLOCKED, "ADDRESS_IN_USE"),
        ],
        "mac": [
            "x", "02:00:00:00:01", "01:00:00:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "02:74:6e:00:00:01",
            "02:00:00:00:00:01:02", Wrong("02:00:00:00:00:64", BLOCKED, "MAC_IN_USE"),
        ],
        "allowed_addresses": [
            *NO_PREFIX, *NO_UNICAST, ["10.0.0.0/7"], ["10.0.0.0/24"], ["10.9.0.0/24", "10.9.0.0/24"],
            [f"10.9.{n}.0/24" for n in range(33)],
        ],
        "color": ["blue", "A"],
        "security_groups": [
            ["x"], [""], ["tenants/globex/securityGroups/default"],
            Wrong(["tenants/acme/securityGroups/none"], ABSENT, "port.security_groups"),
        ],
    },
}  # fmt: skip
"""Wrong values of an object's fields; for creating it and for changing it."""

BY_PATH = {"kind": 2}  # NETNS_PATH
BY_DEVICE = {"kind": 3}
ATTACHMENTS: list[tuple[dict[str, Any], Wrong]] = [
    (BY_PATH, Wrong(None, INVALID, "port.attachment.path")),
    (BY_PATH | {"path": "x"}, Wrong(None, INVALID, "port.attachment.path")),
    (BY_PATH | {"path": "/run/netns/../x"}, Wrong(None, INVALID, "port.attachment.path")),
    (BY_PATH | {"path": "/proc/1/ns/net"}, Wrong(None, INVALID, "port.attachment.path")),
    (BY_PATH | {"path": "/run/netns/globex.p1"}, Wrong(None, INVALID, "port.attachment.path")),
    (BY_PATH | {"path": "/" + "x" * 255}, Wrong(None, INVALID, "port.attachment.path")),
    (BY_PATH | {"path": "/run/netns/x", "namespace": "x"}, Wrong(None, INVALID, "port.attachment.namespace")),
    (BY_PATH | {"path": "/run/netns/theirs"}, Wrong(None, BLOCKED, "NAMESPACE_IN_USE")),
    (BY_DEVICE, Wrong(None, INVALID, "port.attachment.device")),
    (BY_DEVICE | {"device": "a" * 16}, Wrong(None, INVALID, "port.attachment.device")),
    (BY_DEVICE | {"device": "eth0"}, Wrong(None, INVALID, "port.attachment.device")),
    (BY_DEVICE | {"device": "br-int"}, Wrong(None, INVALID, "port.attachment.device")),
    (BY_DEVICE | {"device": "tap0", "interface": "eth0"}, Wrong(None, INVALID, "port.attachment.interface")),
    (BY_DEVICE | {"device": "tap7"}, Wrong(None, BLOCKED, "INTERFACE_IN_USE")),
]

OUTPUT_ONLY = {"uid", "etag", "revision", "create_time", "update_time", "state", "segments", "status", "networks"}
"""What only the server sets; whatever stands there in a request changes nothing. (An etag is for updates.)"""
ANYTHING = {"drained"}
"""Fields in which nothing is wrong: yes or no."""


def create(kind: str, ident: str, **body: Any) -> Any:
    """The request that creates an object as right as it gets, with these fields."""
    match kind:
        case "tenant":
            return tenant_pb2.CreateTenantRequest(tenant_id=ident, tenant=body)
        case "host":
            return host_pb2.CreateHostRequest(host_id=ident, host=body)
        case "router":
            return router_pb2.CreateRouterRequest(parent="tenants/acme", router_id=ident, router=body)
        case "network":
            whole = {"cidrs": ["10.0.0.0/24", "fd00::/64"]} | body
            return network_pb2.CreateNetworkRequest(parent="tenants/acme", network_id=ident, network=whole)
        case _:
            return port_pb2.CreatePortRequest(
                parent="tenants/acme", port_id=ident, port={"network": WEB, "host": "hosts/h1"} | body
            )


def update(kind: str, name: str, *mask: str, **body: Any) -> Any:
    """The request that changes an object's fields."""
    module = {"tenant": tenant_pb2, "host": host_pb2, "router": router_pb2, "network": network_pb2, "port": port_pb2}
    message = getattr(module[kind], f"Update{kind.capitalize()}Request")
    return message(**{kind: {"name": name} | body, "update_mask": FieldMask(paths=mask)})


OBJECTS = {
    "tenant": "tenants/acme", "host": "hosts/h1", "router": "tenants/acme/routers/main", "network": WEB, "port": P1,
}  # fmt: skip
IDENTS: list[Any] = ["", "A", "-a", "a-", "a_b", LONG, "a/b", "ü"]
PARENTS: list[Any] = ["", "acme", "tenants/", "tenants/A", "hosts/h1", WEB, Wrong("tenants/none", ABSENT, "NOT_FOUND")]
REQUEST_IDS: list[Any] = ["a b", "-a", "a" * 64, "ü", Wrong("used", INVALID, "request_id")]
MASKS: list[Any] = [["nonsense"], ["uid"], ["*", "labels"], [""], ["status"], ["description.x"]]
MISSING: list[Any] = ["", "x", "tenants/acme/ports/", "hosts"]


def _by_kind(kind: str) -> dict[str, dict[str, list[Any]]]:
    capital, name = kind.capitalize(), OBJECTS[kind]
    parent: dict[str, list[Any]] = {} if kind in ("tenant", "host") else {"parent": PARENTS}
    gone = Wrong(name[:-1] + "x", ABSENT, "NOT_FOUND")
    read: dict[str, list[Any]] = {
        "read.consistency": [9],
        "read.min_revision": [-1, Wrong(2**62, RANGE, "REVISION_AHEAD")],
    }
    pages: dict[str, list[Any]] = {"page_size": [-1], "page_token": ["x", "!!!!", "ü"], "filter": ["=x", "x" * 2001]}
    return {
        f"Create{capital}": parent | {f"{kind}_id": IDENTS, "request_id": REQUEST_IDS},
        f"Get{capital}": {"name": [*MISSING, gone]} | read,
        f"List{capital}s": parent | pages | read,
        f"Update{capital}": {"update_mask": MASKS, "request_id": REQUEST_IDS},
        f"Delete{capital}": {"name": [*MISSING, gone], "etag": [Wrong("old", ABORTED, "ETAG_MISMATCH")]}
        | {"request_id": REQUEST_IDS},
    }  # fmt: skip


REQUESTS: dict[str, dict[str, list[Any]]] = {
    method: fields for kind in OBJECTS for method, fields in _by_kind(kind).items()
} | {
    # A network of another tenant than the port's is wrong before anybody asks whether that tenant is there.
    "CreatePort": _by_kind("port")["CreatePort"]
    | {"parent": [*(v for v in PARENTS if isinstance(v, str)), Wrong("tenants/none", INVALID, "port.network")]},
    "BatchCreatePorts": {
        "parent": [p for p in PARENTS if p != Wrong("tenants/none", ABSENT, "NOT_FOUND")],
        "requests": [[], [{"port_id": f"p{n}"} for n in range(1001)]],
        "request_id": REQUEST_IDS[:4],
    },
    "BatchUpdatePorts": {
        "parent": [p for p in PARENTS if p != Wrong("tenants/none", ABSENT, "NOT_FOUND")],
        "requests": [[], [{"port": {"name": f"tenants/acme/ports/p{n}"}} for n in range(1001)]],
        "request_id": REQUEST_IDS[:4],
    },
    "AcceptHost": {"name": [*MISSING, Wrong("hosts/none", ABSENT, "NOT_FOUND")]},
    "FenceHost": {"name": [*MISSING, "hosts/-", Wrong("hosts/none", ABSENT, "NOT_FOUND")]},
    "DrainHost": {"name": [*MISSING, "hosts/-", Wrong("hosts/none", ABSENT, "NOT_FOUND")]},
    "CreateJoinToken": {
        "name": [*MISSING, Wrong("hosts/none", ABSENT, "NOT_FOUND")],
        "ttl": [Duration(seconds=59), Duration(seconds=86401), Duration(seconds=-1), Duration(nanos=1)],
    },
    "Sync": {
        "revision": [-1],
        "parent": ["x", "hosts/h1", "tenants/A", Wrong("tenants/none", ABSENT, "NOT_FOUND")],
        "timeout": [Duration(seconds=-1), Duration(seconds=3601)],
    },
    "Watch": {
        "parent": ["x", "tenants/A"],
        "kinds": [["x"], ["port", "Port"]],
        "filter": ["=x"],
        "resume_revision": [-1, Wrong(2**62, RANGE, "REVISION_AHEAD")],
    },
    "ListEvents": {"name": ["x", "tenants/A"], "page_size": [-1]},
    "Plan": {"items": [[{}] * 2001]},
    "Check": {"timeout": [Duration(seconds=-1), Duration(seconds=61)]},
    "ListAudit": {
        "name": ["x", "tenants/A"],
        "who": [],
        "after": TIMES[1:],
        "before": TIMES[1:],
        "page_size": [-1, 1001],
    },
}
"""Wrong values of the other fields of requests, by method."""
UNASKED = {
    "GetStatus",
    "GetVersion",
    "Backup",
    "Defragment",
    "ListAlarms",
    "DisarmAlarms",
}  # nothing can be wrong in them
OWN_TESTS = {"Join", "RenewCertificate"}  # tests/controller/test_write_batch.py: whoever is wrong is told nothing
ELSEWHERE = ("SecurityGroupService", "PolicyTierService", "PolicyService", "TrafficSplitService", "RolloutService")
"""Services whose rooms have tests of their own for this: test_security_check, test_policy_api, test_write_colors, …"""
SWITCHES = {"validate_only", "force", "atomic", "spec_only", "repair"}  # yes or no


def right(method: str) -> Any:
    """A request of a method in which nothing is wrong yet."""
    name = next((kind for kind in OBJECTS if method.removesuffix("s").endswith(kind.capitalize())), "")
    verb = method.removesuffix("s").removesuffix(name.capitalize()) if name else method
    module: Any = {
        "tenant": tenant_pb2,
        "host": host_pb2,
        "router": router_pb2,
        "network": network_pb2,
        "port": port_pb2,
    }
    match verb:
        case "Create":
            return create(name, "new")
        case "Update":
            return update(name, OBJECTS[name], "description", description="x")
        case "Get" | "Delete" | "Accept" | "Fence" | "Drain":
            return getattr(module[name], f"{method}Request")(name=OBJECTS[name])
        case "List":
            request = getattr(module[name], f"{method}Request")()
            if "parent" in request.DESCRIPTOR.fields_by_name:
                request.parent = "tenants/acme"
            return request
        case "BatchCreate":
            return port_pb2.BatchCreatePortsRequest(parent="tenants/acme", requests=[{"port_id": "new"}])
        case "BatchUpdate":
            one = {"port": {"name": OBJECTS["port"]}}
            return port_pb2.BatchUpdatePortsRequest(parent="tenants/acme", requests=[one])
        case "CreateJoinToken":
            return host_pb2.CreateJoinTokenRequest(name="hosts/h1")
        case "Check" | "ListAudit":
            return getattr(admin_pb2, f"{method}Request")()
        case _:
            return getattr(system_pb2, f"{method}Request")()
