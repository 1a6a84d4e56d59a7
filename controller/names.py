"""Resource names: tenants/acme, tenants/acme/networks/web, hosts/h1. Pure."""

from __future__ import annotations

from controller.errors import invalid
from controller.fields import NAME, NAME_HELP
from controller.keys import COLLECTIONS, OWNED

SPLIT = "trafficSplit"
"""The last part of a split's name: tenants/acme/networks/web/trafficSplit."""
IN_TENANT = (*OWNED, "split")
"""Kinds whose objects are a tenant's; all but the split are named by the user."""
_KINDS = {collection: kind for kind, collection in COLLECTIONS.items()}
_FIELDS = {"group": "security_group", "tier": "policy_tier"}
ANY = "-"
DEFAULT_GROUP = "default"


def full_name(kind: str, parent: str, ident: str) -> str:
    """tenants/acme + web → tenants/acme/networks/web."""
    own = f"{COLLECTIONS[kind]}/{ident}"
    return f"{parent}/{own}" if kind in OWNED else own


def field_of(kind: str) -> str:
    """What an object of a kind is called in messages: network, security_group."""
    return _FIELDS.get(kind, kind)


def kind_of_field(field: str) -> str:
    """The reverse of `field_of`."""
    return next((kind for kind, name in _FIELDS.items() if name == field), field)


def word_of(kind: str) -> str:
    """A kind as users say it: network, securityGroup."""
    return COLLECTIONS[kind][:-1] if kind in COLLECTIONS else kind


def default_group(tenant: str) -> str:
    """The name of the group of ports that name none."""
    return full_name("group", tenant, DEFAULT_GROUP)


def kind_of(name: str) -> str:
    """The kind of a resource name; "" if it is none."""
    parts = name.split("/")
    if len(parts) == 5 and parts[4] == SPLIT:
        return "split" if kind_of(network_of(name)) == "network" else ""
    owned = len(parts) == 4
    if not (owned or len(parts) == 2) or not NAME.fullmatch(parts[1]) or (owned and not NAME.fullmatch(parts[3])):
        return ""
    kind = _KINDS.get(parts[-2], "")
    return kind if kind and (kind in OWNED) == owned and (not owned or parts[0] == "tenants") else ""


def tenant_of(name: str) -> str:
    """tenants/acme/ports/p → tenants/acme; "" for a host or a policy tier."""
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


def no_colors(network: str) -> str:
    """Why a network has no split, and what to do."""
    return f"{network} has no colors: `teal color add {typed(network)} COLOR` gives it some"


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
        raise invalid(field, f"{what}: the name of a {word_of(kind)} has the form {form}")
    return value


def check_parent(value: str, field: str) -> str:
    """tenants/acme. Raises Invalid."""
    if kind_of(value) != "tenant":
        what = "is missing" if not value else f"{value[:200]!r} is not one"
        raise invalid(field, f"{what}: a parent has the form tenants/TENANT")
    return value
