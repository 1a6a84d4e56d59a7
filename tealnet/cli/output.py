"""Objects on the screen: table, wide, json, yaml, name."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click
import yaml

from tealnet.kinds import Kind, split_of

FORMATS = ("table", "wide", "json", "yaml", "name")
Cell = Callable[[Any], str]


def short(name: str) -> str:
    """The last part of a resource name; of a split its network's."""
    return _plain(name).rpartition("/")[2]


def _plain(name: str) -> str:
    """A split is named like its network."""
    return name.removesuffix(split_of(""))


def tenant_of(name: str) -> str:
    """The tenant's id of an owned object."""
    parts = name.split("/")
    return parts[1] if len(parts) > 1 else ""


def named(name: str) -> str:
    """As a person types it: tenants/acme/ports/web-1 → acme/web-1, hosts/h1 → h1."""
    parts = _plain(name).split("/")
    return f"{parts[1]}/{parts[3]}" if len(parts) == 4 else short(name)


def title(name: str) -> str:
    """With its kind: port acme/web-1, host h1."""
    kind = "split" if _plain(name) != name else name.split("/")[-2].removesuffix("s")
    return f"{kind} {named(name)}"


def in_order(name: str) -> list[str | int]:
    """A key by which h2 stands before h10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def enum_of(message: Any, field: str) -> str:
    """An enum's value without its prefix: STATE_ACTIVE → ACTIVE."""
    descriptor = message.DESCRIPTOR.fields_by_name[field].enum_type
    value: str = descriptor.values_by_number[getattr(message, field)].name
    first: str = descriptor.values_by_number[0].name
    return value.removeprefix(first.removesuffix("UNSPECIFIED"))


def state_of(message: Any) -> str:
    """A port's or host's state with its reason."""
    state = enum_of(message.status, "state")
    reason = getattr(message.status, "reason", "")
    return f"{state} ({reason})" if reason else state


def host_state(host: Any) -> str:
    """A host's state, and whether it takes new ports."""
    return state_of(host) + (" (drained)" if host.drained else "")


def _labels(message: Any) -> str:
    return _pairs(message.labels)


def _pairs(labels: Any) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _conditions(message: Any) -> str:
    return ",".join(condition.type for condition in message.status.conditions)


def _used(network: Any) -> str:
    return " ".join(f"{a.used}/{a.total}" for a in network.status.addresses)


def weights(split: Any) -> str:
    """blue=95 green=5, in the order of the network's colors."""
    order = [color.color for color in split.colors] or sorted(split.weights)
    return " ".join(f"{color}={split.weights[color]}" for color in order)


SOMETIMES = ("COLOR", "COLORS")
"""Columns that are left out where no object has anything in them."""


COLUMNS: dict[str, tuple[tuple[tuple[str, Cell], ...], tuple[tuple[str, Cell], ...]]] = {
    "tenant": (
        (("NAME", lambda o: short(o.name)), ("STATE", lambda o: enum_of(o, "state")), ("LABELS", _labels)),
        (("UID", lambda o: o.uid), ("DESCRIPTION", lambda o: o.description)),
    ),
    "network": (
        (
            ("TENANT", lambda o: tenant_of(o.name)),
            ("NAME", lambda o: short(o.name)),
            ("CIDRS", lambda o: " ".join(o.cidrs)),
            ("ROUTER", lambda o: short(o.router)),
            ("COLORS", lambda o: " ".join(o.colors)),
            ("MTU", lambda o: str(o.mtu or "default")),
            ("PORTS", lambda o: str(o.status.ports)),
            ("CONDITIONS", _conditions),
        ),
        (
            ("USED", _used),
            ("POLICY", lambda o: enum_of(o, "policy")),
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
    "securityGroup": (
        (
            ("TENANT", lambda o: tenant_of(o.name)),
            ("NAME", lambda o: short(o.name)),
            ("INGRESS", lambda o: str(len(o.ingress))),
            ("EGRESS", lambda o: str(len(o.egress))),
            ("PORTS", lambda o: str(o.status.ports)),
            ("MODE", lambda o: enum_of(o, "mode")),
        ),
        (
            ("ON CHANGE", lambda o: enum_of(o, "on_change")),
            ("UID", lambda o: o.uid),
            ("DESCRIPTION", lambda o: o.description),
        ),
    ),
    "policyTier": (
        (
            ("NAME", lambda o: short(o.name)),
            ("POSITION", lambda o: enum_of(o, "position")),
            ("PRIORITY", lambda o: str(o.priority)),
            ("TENANTS", lambda o: _pairs(o.tenant_selector) or "all"),
            ("INGRESS", lambda o: str(len(o.ingress))),
            ("EGRESS", lambda o: str(len(o.egress))),
            ("MODE", lambda o: enum_of(o, "mode")),
        ),
        (
            ("ON CHANGE", lambda o: enum_of(o, "on_change")),
            ("UID", lambda o: o.uid),
            ("DESCRIPTION", lambda o: o.description),
        ),
    ),
    "port": (
        (
            ("TENANT", lambda o: tenant_of(o.name)),
            ("NAME", lambda o: short(o.name)),
            ("NETWORK", lambda o: short(o.network)),
            ("COLOR", lambda o: o.color),
            ("HOST", lambda o: short(o.host)),
            ("ADDRESSES", lambda o: " ".join(o.addresses)),
            ("STATE", state_of),
        ),
        (
            ("GROUPS", lambda o: " ".join(map(short, o.security_groups))),
            ("CONDITIONS", _conditions),
            ("MAC", lambda o: o.mac),
            ("ATTACHMENT", lambda o: _attachment(o.attachment)),
            ("DEVICE", lambda o: o.status.device),
            ("UID", lambda o: o.uid),
        ),
    ),
    "split": (
        (
            ("TENANT", lambda o: tenant_of(o.name)),
            ("NAME", lambda o: short(o.name)),
            ("WEIGHTS", weights),
            ("DRAINING", lambda o: " ".join(drain.color for drain in o.drains)),
            ("CLOSED", lambda o: " ".join(o.closed)),
            ("EPOCH", lambda o: str(o.revision)),
        ),
        (("AFFINITY", lambda o: enum_of(o, "affinity")), ("UID", lambda o: o.uid)),
    ),
    "rollout": (
        (
            ("TENANT", lambda o: tenant_of(o.name)),
            ("NAME", lambda o: short(o.name)),
            ("NETWORKS", lambda o: " ".join(short(n) for n in o.networks)),
            ("MOVE", lambda o: f"{o.origin}→{o.target}"),
            ("STATE", lambda o: enum_of(o, "state")),
            ("STEP", lambda o: f"{o.step}/{len(o.steps)}"),
            ("WHY", lambda o: o.reason),
            ("CONDITIONS", _conditions),
        ),
        (
            ("BEHIND", lambda o: " ".join(short(h) for h in o.status.behind)),
            ("TEXT", lambda o: o.text),
            ("UID", lambda o: o.uid),
        ),
    ),
    "host": (
        (
            ("NAME", lambda o: short(o.name)),
            ("STATE", host_state),
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
    kind = enum_of(attachment, "kind")
    where = attachment.device or attachment.path or attachment.namespace
    return f"{kind} {where}{':' + attachment.interface if attachment.interface else ''}".strip()


def as_dict(message: Any) -> dict[str, Any]:
    """A message as plain data: field names as in the protos, enum values without their prefix, as in documents."""
    from google.protobuf import json_format

    result: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    _tidy(message.DESCRIPTOR, result)
    return result


def _tidy(descriptor: Any, data: dict[str, Any]) -> None:
    """Short words of enums; maps in the order of their keys, which protobuf gives in another one each time."""
    for name, field in descriptor.fields_by_name.items():
        value, kind = data.get(name), field.message_type
        if value is None:
            continue
        if field.enum_type is not None:
            prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
            # A value that this release does not know is a number.
            short_ones = [str(one).removeprefix(prefix) if isinstance(one, str) else one for one in _listed(value)]
            data[name] = short_ones if isinstance(value, list) else short_ones[0]
        elif kind is not None and kind.GetOptions().map_entry:
            data[name] = dict(sorted(value.items()))
        elif kind is not None:
            for one in _listed(value):
                if isinstance(one, dict):
                    _tidy(kind, one)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def show(found: Sequence[tuple[Kind, Sequence[Any]]], form: str) -> None:
    """Print objects, kind by kind. JSON and YAML are always one list, and what `teal apply -f -` takes."""
    if form == "name":
        for _, objects in found:
            for item in objects:
                click.echo(item.name)
    elif form in ("json", "yaml"):
        dump([{"kind": kind.title, **as_dict(item)} for kind, objects in found for item in objects], form)
    else:
        shown = [(kind, objects) for kind, objects in found if objects]
        if not shown:
            click.echo(f"no {' or '.join(kind.plural for kind, _ in found)} found", err=True)
        for number, (kind, objects) in enumerate(shown):
            if number:
                click.echo()
            plain, more = COLUMNS[kind.name]
            columns = [
                (head, cell)
                for head, cell in (plain + more if form == "wide" else plain)
                if head not in SOMETIMES or any(cell(item) for item in objects)
            ]
            heads = [head for head, _ in columns]
            if len(found) > 1:
                heads[heads.index("NAME")] = kind.title.upper()
            rows = sorted(objects, key=lambda item: in_order(item.name))
            table(heads, [[cell(item) for _, cell in columns] for item in rows])


def show_one(kind: Kind, item: Any, form: str) -> None:
    """Print one object; JSON and YAML without a list around it."""
    if form in ("json", "yaml"):
        dump({"kind": kind.title, **as_dict(item)}, form)
    else:
        show([(kind, [item])], form)


def dump(data: Any, form: str) -> None:
    """Plain data as JSON or YAML."""
    if form == "json":
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)


def line(message: Any) -> str:
    """A message as one line of JSON."""
    return json.dumps(as_dict(message), ensure_ascii=False)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Aligned columns; plain text that can be cut and grepped, with colors on a terminal."""
    body = [[str(cell) for cell in row] for row in rows]
    color = sys.stdout.isatty()
    widths = [max(len(row[i]) for row in [list(head), *body]) for i in range(len(head))]
    for number, row in enumerate([list(head), *body]):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        last = max((i for i, cell in enumerate(row) if cell), default=0)
        cells = [cells[i] if i < last else cell for i, cell in enumerate(row[: last + 1])]
        if color and number:
            cells = [painted(cell) for cell in cells]
        line = "  ".join(cells)
        click.echo(click.style(line, bold=True) if color and not number else line)


_COLORS = {
    **dict.fromkeys(("SUCCEEDED", "ACTIVE", "READY", "created", "added"), "green"),
    **dict.fromkeys(("PENDING", "UPDATING", "DISCONNECTED", "UNBOUND", "DELETING", "changed"), "yellow"),
    **dict.fromkeys(("FAILED", "LOST", "FOREIGN_HISTORY", "UNKNOWN", "FENCED", "NO", "failed"), "red"),
    **dict.fromkeys(("ROLLED_BACK", "ROLLING_BACK"), "red"),
}


def painted(text: str) -> str:
    """A state in its color; other text as it is."""
    color = _COLORS.get(text.split(" ", 1)[0])
    return click.style(text, fg=color) if color else text


def ago(stamp: Any) -> str:
    """A protobuf Timestamp as the time that has passed: 12 s, 5 min, 3 h, 2 d."""
    seconds = max(0.0, datetime.now(UTC).timestamp() - stamp.ToNanoseconds() / 1e9)
    for limit, unit, word in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {word}"
    return f"{seconds / 86400:.0f} d"


def moment(stamp: Any) -> str:
    """A protobuf Timestamp in this machine's time zone, to the second."""
    return f"{datetime.fromtimestamp(stamp.ToNanoseconds() / 1e9):%F %T}"
