"""Resource names: tenants/acme, tenants/acme/networks/web, hosts/h1. Pure."""

from __future__ import annotations

from controller.errors import invalid
from controller.fields import NAME, NAME_HELP

SPLIT = "trafficSplit"
"""The last part of a split's name: tenants/acme/networks/web/trafficSplit."""
OWNED = ("network", "router", "port", "rollout")
IN_TENANT = (*OWNED, "split")
"""Kinds whose objects are a tenant's; all but the split are named by the user."""
KINDS = ("tenant", "host", *OWNED)
_COLLECTIONS = {f"{kind}s": kind for kind in KINDS}
ANY = "-"


def full_name(kind: str, parent: str, ident: str) -> str:
    """tenants/acme + web → tenants/acme/networks/web."""
    return f"{parent}/{kind}s/{ident}" if kind in OWNED else f"{kind}s/{ident}"


def kind_of(name: str) -> str:
    """The kind of a resource name; "" if it is none."""
    parts = name.split("/")
    if len(parts) == 5 and parts[4] == SPLIT:
        return "split" if kind_of(network_of(name)) == "network" else ""
    owned = len(parts) == 4
    if len(parts) not in (2, 4) or not all(NAME.fullmatch(part) for part in parts[1::2]):
        return ""
    kind = _COLLECTIONS.get(parts[-2], "")
    return kind if kind and (kind in OWNED) == owned and (not owned or parts[0] == "tenants") else ""


def tenant_of(name: str) -> str:
    """tenants/acme/ports/p → tenants/acme; "" for a host."""
    return "/".join(name.split("/")[:2]) if name.startswith("tenants/") else ""


def split_of(network: str) -> str:
    """The split of a network: tenants/acme/networks/web → tenants/acme/networks/web/trafficSplit."""
    return f"{network}/{SPLIT}"


def network_of(split: str) -> str:
    """The network of a split."""
    return split.rpartition("/")[0]


def short(name: str) -> str:
    """The last part."""
    return name.rsplit("/", 1)[-1]


def typed(name: str) -> str:
    """As a person types it: tenants/acme/networks/web → acme/web."""
    return f"{short(tenant_of(name))}/{short(name)}"


def check_ident(value: str, field: str) -> str:
    """The last part of a new name. Raises Invalid."""
    if not value:
        raise invalid(field, f"is missing: {NAME_HELP}")
    if not NAME.fullmatch(value):
        raise invalid(field, f"{value[:80]!r} is not a name: {NAME_HELP}")
    return value


def check_name(kind: str, value: str, field: str) -> str:
    """A whole resource name of a kind. Raises Invalid."""
    if kind_of(value) != kind:
        parent = "tenants/TENANT" if kind in OWNED else ""
        form = split_of("tenants/TENANT/networks/NAME") if kind == "split" else full_name(kind, parent, "NAME")
        what = "is missing" if not value else f"{value[:200]!r} is not one"
        raise invalid(field, f"{what}: the name of a {kind} has the form {form}")
    return value


def check_parent(value: str, field: str) -> str:
    """tenants/acme. Raises Invalid."""
    if kind_of(value) != "tenant":
        what = "is missing" if not value else f"{value[:200]!r} is not one"
        raise invalid(field, f"{what}: a parent has the form tenants/TENANT")
    return value
