"""Objects on the screen: table, wide, json, yaml, name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
import yaml

from tealnet.kinds import Kind

FORMATS = ("table", "wide", "json", "yaml", "name")
Cell = Callable[[Any], str]


def short(name: str) -> str:
    """The last part of a resource name."""
    return name.rpartition("/")[2]


def tenant_of(name: str) -> str:
    """The tenant's id of an owned object."""
    parts = name.split("/")
    return parts[1] if len(parts) > 1 else ""


def _enum(message: Any, field: str) -> str:
    """An enum's value without its prefix: STATE_ACTIVE → ACTIVE."""
    descriptor = message.DESCRIPTOR.fields_by_name[field].enum_type
    value: str = descriptor.values_by_number[getattr(message, field)].name
    first: str = descriptor.values_by_number[0].name
    return value.removeprefix(first.removesuffix("UNSPECIFIED"))


def state_of(message: Any) -> str:
    """A port's or host's state with its reason."""
    state = _enum(message.status, "state")
    reason = getattr(message.status, "reason", "")
    return f"{state} ({reason})" if reason else state


def _labels(message: Any) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(message.labels.items()))


def _conditions(message: Any) -> str:
    return ",".join(condition.type for condition in message.status.conditions)


def _used(network: Any) -> str:
    return " ".join(f"{a.used}/{a.total}" for a in network.status.addresses)


COLUMNS: dict[str, tuple[tuple[tuple[str, Cell], ...], tuple[tuple[str, Cell], ...]]] = {
    "tenant": (
        (("NAME", lambda o: short(o.name)), ("STATE", lambda o: _enum(o, "state")), ("LABELS", _labels)),
        (("UID", lambda o: o.uid), ("DESCRIPTION", lambda o: o.description)),
    ),
    "network": (
        (
            ("TENANT", lambda o: tenant_of(o.name)),
            ("NAME", lambda o: short(o.name)),
            ("CIDRS", lambda o: " ".join(o.cidrs)),
            ("ROUTER", lambda o: short(o.router)),
            ("MTU", lambda o: str(o.mtu)),
            ("PORTS", lambda o: str(o.status.ports)),
            ("CONDITIONS", _conditions),
        ),
        (
            ("USED", _used),
            ("GATEWAYS", lambda o: " ".join(o.gateways)),
            ("VNI", lambda o: " ".join(str(s.vni) for s in o.segments if s.vni)),
            ("UID", lambda o: o.uid),
        ),
    ),
    "router": (
        (
            ("TENANT", lambda o: tenant_of(o.name)),
            ("NAME", lambda o: short(o.name)),
            ("NETWORKS", lambda o: " ".join(short(n) for n in o.networks)),
            ("ROUTES", lambda o: " ".join(f"{r.prefix}→{r.next_hop}" for r in o.routes)),
        ),
        (("UID", lambda o: o.uid),),
    ),
    "port": (
        (
            ("TENANT", lambda o: tenant_of(o.name)),
            ("NAME", lambda o: short(o.name)),
            ("NETWORK", lambda o: short(o.network)),
            ("HOST", lambda o: short(o.host)),
            ("ADDRESSES", lambda o: " ".join(o.addresses)),
            ("STATE", state_of),
        ),
        (
            ("MAC", lambda o: o.mac),
            ("ATTACHMENT", lambda o: _attachment(o.attachment)),
            ("DEVICE", lambda o: o.status.device),
            ("UID", lambda o: o.uid),
        ),
    ),
    "host": (
        (
            ("NAME", lambda o: short(o.name)),
            ("STATE", state_of),
            ("VTEP", lambda o: o.vtep),
            ("PORTS", lambda o: str(o.status.ports)),
            ("FAILED", lambda o: str(o.status.failed or "")),
            ("DATAPATH", lambda o: o.status.datapath),
            ("CONDITIONS", _conditions),
        ),
        (
            ("MTU", lambda o: str(o.status.underlay_mtu or "")),
            ("SYNCED", lambda o: str(o.status.synced_revision or "")),
            ("AGENT", lambda o: o.status.agent_version),
            ("OVS", lambda o: o.status.ovs_version),
            ("LABELS", _labels),
            ("UID", lambda o: o.uid),
        ),
    ),
}


def _attachment(attachment: Any) -> str:
    kind = _enum(attachment, "kind")
    where = attachment.device or attachment.path or attachment.namespace
    return f"{kind} {where}{':' + attachment.interface if attachment.interface else ''}"


def as_dict(message: Any) -> dict[str, Any]:
    """A message as plain data, field names as in the protos."""
    from google.protobuf import json_format

    result: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return result


def show(kind: Kind, objects: Sequence[Any], form: str) -> None:
    """Print objects of one kind."""
    if form == "name":
        for item in objects:
            click.echo(item.name)
    elif form in ("json", "yaml"):
        data: Any = [{"kind": kind.title, **as_dict(item)} for item in objects]
        dump(data[0] if len(data) == 1 else data, form)
    else:
        plain, more = COLUMNS[kind.name]
        columns = plain + more if form == "wide" else plain
        table([head for head, _ in columns], [[cell(item) for _, cell in columns] for item in objects])


def dump(data: Any, form: str) -> None:
    """Plain data as JSON or YAML."""
    if form == "json":
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Aligned columns; plain text, so that it can be cut and grepped."""
    body = [[str(cell) for cell in row] for row in rows]
    if not body:
        click.echo("nothing found", err=True)
        return
    widths = [max(len(row[i]) for row in [list(head), *body]) for i in range(len(head))]
    for number, row in enumerate([list(head), *body]):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(click.style(line, bold=True) if number == 0 and sys.stdout.isatty() else line)
