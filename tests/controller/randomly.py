"""Random messages of any type, with words in them that get past the first check now and then."""

from __future__ import annotations

from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import strategies as st

# Words that get a random message past the first check, so that the later ones see something, too.
NAMES = [
    "", "acme", "globex", "web", "p1", "p2", "h1", "main", "-", "Acme", "a" * 64, "tenants/acme", "tenants/-",
    "tenants/globex",
    "tenants/acme/networks/web", "tenants/acme/networks/db", "tenants/acme/routers/main", "tenants/acme/ports/p1",
    "tenants/acme/networks/web/trafficSplit", "tenants/acme/networks/web/x", "blue", "green", "base",
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
    "color": ["blue", "green", ""],
    "colors": ["blue", "green", "red"],
    "closed": ["blue"],
    "security_groups": ["tenants/acme/securityGroups/web", "tenants/acme/securityGroups/db"],
    "remote_group": ["tenants/acme/securityGroups/web", "tenants/acme/securityGroups/db", "web", ""],
    "remote_cidr": ["10.0.0.0/8", "::/0", ""],
    "protocol": ["tcp", "icmp", "any", "47"],
    "ports": ["80", "8000-8099"],
    "source": ["tenants/acme/ports/p1"],
    "target": ["tenants/acme/ports/p1"],
}
KEYS = {"weights": ["blue", "green"], "initial_weights": ["blue", "green"]}
"""By the map's name: what may well be right as a key."""
NUMBERS = {
    FieldDescriptor.TYPE_INT32: st.sampled_from([0, 1, -1, 5, 2**31 - 1, -(2**31)]),
    FieldDescriptor.TYPE_INT64: st.sampled_from([0, 1, -1, 5, 2**62, 2**63 - 1, -(2**63)]),
    FieldDescriptor.TYPE_UINT32: st.sampled_from([0, 1, 2, 1300, 2**32 - 1]),
    FieldDescriptor.TYPE_UINT64: st.sampled_from([0, 1, 2**64 - 1]),
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
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
            label = st.one_of(st.sampled_from(KEYS.get(field.name, ["a"])), TEXT)
            value = scalar(field.message_type.fields_by_name["value"])
            getattr(message, field.name).update(draw(st.dictionaries(label, value, max_size=2)))
            continue
        one = scalar(field) if field.message_type is None else messages(field.message_type, depth + 1, percent)
        if field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(one, max_size=2)))
        elif field.message_type is None:
            setattr(message, field.name, draw(one))
        elif depth < 4:
            getattr(message, field.name).CopyFrom(draw(one))
    return message
