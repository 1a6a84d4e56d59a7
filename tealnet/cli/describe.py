"""describe: everything about objects, for reading: fields, state, conditions with remedies, what holds on to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click

from tealnet import kinds
from tealnet.cli import output, rules
from tealnet.cli.options import tenant_option
from tealnet.cli.rollout_view import rows as rollout_rows
from tealnet.cli.session import Session, pass_session
from tealnet.cli.targets import Target, complete_targets, targets_of

_HIDDEN = {"name", "uid", "etag", "revision", "create_time", "update_time", "conditions", "state", "since", "last"}
_EVENTS = 20
_LISTED = 30
_MANY = 2**63 - 1  # where the API stops counting addresses
Rows = list[tuple[str, str]]


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="KIND NAME...", shell_complete=complete_targets)
@tenant_option
@pass_session
def describe(session: Session, *, words: tuple[str, ...], tenant: str) -> None:
    """Everything about objects: fields, state, conditions with remedies, events.

    \b
      teal describe port acme/web-1
      teal describe host h1
      teal describe network/acme/web
    """
    session.tenant = tenant
    for number, target in enumerate(_whole(session, targets_of(session, words))):
        if number:
            click.echo()
        show(session, target)


def _whole(session: Session, targets: Sequence[Target]) -> Iterator[Target]:
    """KIND alone means all of that kind."""
    for target in targets:
        if target.name:
            yield target
        else:
            parent = session.parent(required=False)
            for item in session.client.list_all(target.kind, parent=parent):
                yield Target(target.kind, item.name)


def show(session: Session, target: Target) -> None:
    """Print one object."""
    item = session.client.get(target.name)
    click.secho(output.title(item.name), bold=True)
    fields = rollout_rows(item) if target.kind is kinds.ROLLOUT else _fields(_shown(item))
    rows = [*_state(item), *fields, *_related(session, target)]
    times = [("created", item.create_time), ("changed", item.update_time)]
    rows += [(word, f"{output.moment(t)} ({output.ago(t)} ago)") for word, t in times if t.seconds]
    width = max((len(label) for label, _ in rows), default=0)
    for label, text in rows:
        shown = output.painted(text) if label == "state" else text
        click.echo(f"  {label.ljust(width)}  {shown}")
    _conditions(getattr(getattr(item, "status", None), "conditions", ()))
    _events(session, item.name)


def _state(item: Any) -> Rows:
    status = item if "state" in item.DESCRIPTOR.fields_by_name else getattr(item, "status", None)
    if status is None or "state" not in status.DESCRIPTOR.fields_by_name:
        return []
    state = output.enum_of(status, "state")
    fields = status.DESCRIPTOR.fields_by_name
    if "last" in fields and status.last:
        state += f" (was {output.enum_of(status, 'last')})"
    if "since" in fields and status.since.seconds:
        state += f" for {output.ago(status.since)}"
    return [("state", state)] if status.state else []


def _shown(item: Any) -> Any:
    """Without `revoked_before` where it only says that older certificates than the object do not count."""
    if (
        "revoked_before" in item.DESCRIPTOR.fields_by_name
        and item.revoked_before.seconds <= item.create_time.seconds + 1
    ):
        shown = type(item)()
        shown.CopyFrom(item)
        shown.ClearField("revoked_before")
        return shown
    return item


def _fields(item: Any, prefix: str = "") -> Rows:
    """Fields that are set, in the order of the protos; messages inside are flattened."""
    rows: Rows = []
    for descriptor, value in item.ListFields():
        if descriptor.name in _HIDDEN:
            continue
        label = prefix + descriptor.name.replace("_", " ")
        if descriptor.message_type is None:
            values = value if descriptor.is_repeated else [value]
            rows.append((label, " ".join(_scalar(descriptor, one) for one in values)))
        elif descriptor.message_type.GetOptions().map_entry:
            rows.append((label, " ".join(f"{key}={value[key]}" for key in sorted(value))))
        elif descriptor.is_repeated:
            rows += [(label if n == 0 else "", _message(one, descriptor.name)) for n, one in enumerate(value)]
        elif descriptor.message_type.full_name.startswith("google.protobuf."):
            rows.append((label, output.moment(value) if hasattr(value, "ToDatetime") else value.ToJsonString()))
        else:
            rows += _fields(value, "" if descriptor.name == "status" else f"{label} ")
    return rows


def _scalar(descriptor: Any, value: Any) -> str:
    if descriptor.enum_type is not None:
        values = descriptor.enum_type.values_by_number
        prefix = values[0].name.removesuffix("UNSPECIFIED")
        return str(values[value].name.removeprefix(prefix)) if value in values else str(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return output.named(text) if text.startswith(("tenants/", "hosts/")) else text


def _message(message: Any, field: str) -> str:
    match message.DESCRIPTOR.name:
        case "AddressUsage":
            total = message.total if message.total < _MANY else "2^63 or more"
            where = f"{message.cidr} {message.color}".strip()
            return (
                f"{where}: {message.used} of {total} in use, {message.reserved} reserved, "
                f"{message.quarantined} in quarantine"
            )
        case "SecurityRule" | "TierRule":
            note = f"  ({message.description})" if message.description else ""
            return rules.in_words(message, field) + note
        case "ColorStatus":
            return color_in_words(message)
        case "Drain":
            return f"{message.color} for {output.ago(message.begin)} of {message.timeout.ToSeconds()} s"
        case "StaticRoute":
            return f"{message.prefix} via {message.next_hop}"
    return ", ".join(f"{label} {text}" for label, text in _fields(message))


def color_in_words(status: Any) -> str:
    """blue OPEN: weight 95 (243 of 256 connections), 2 of 3 ports active"""
    share = f"weight {status.weight} ({status.slots} of 256 connections)" if status.weight else "no weight"
    ports = f"{status.active_ports} of {status.ports} ports active"
    return f"{status.color} {output.enum_of(status, 'state')}: {share}, {ports}"


def _related(session: Session, target: Target) -> Rows:
    """What lives in it."""
    client, kind, name = session.client, target.kind, target.name
    if kind is kinds.TENANT:
        found = {
            k.plural: [output.short(o.name) for o in client.list_all(k, parent=name)]
            for k in (kinds.NETWORK, kinds.ROUTER, kinds.GROUP, kinds.PORT, kinds.ROLLOUT)
        }
    elif kind is kinds.NETWORK:
        parent, _, ident = name.partition("/networks/")
        ports = client.list_all(kinds.PORT, parent=parent, filter_=f"network={ident}")
        found = {"members": [_port(port, output.short) for port in ports], "traffic": _traffic(session, name)}
    elif kind is kinds.GROUP:
        parent, _, ident = name.partition("/securityGroups/")
        ports = client.list_all(kinds.PORT, parent=parent, filter_=f"group={ident}")
        found = {"members": [_port(port, output.short) for port in ports]}
    elif kind is kinds.HOST:
        ports = client.list_all(kinds.PORT, filter_=f"host={output.short(name)}")
        found = {"carries": [_port(port, output.named) for port in ports]}
    else:
        return []
    rows: Rows = []
    for word, names in found.items():
        shown = names[:_LISTED] + ([f"and {len(names) - _LISTED} more"] if len(names) > _LISTED else [])
        if word in ("members", "carries", "traffic"):
            rows += [(word if n == 0 else "", text) for n, text in enumerate(shown)]
        elif names:
            rows.append((word, f"{len(names)}: {' '.join(shown)}"))
    return rows


def _traffic(session: Session, network: str) -> list[str]:
    """How a network's colors share connections; nothing without colors."""
    splits = session.client.list_all(
        kinds.SPLIT, parent="/".join(network.split("/")[:2]), filter_=f"network={output.short(network)}"
    )
    return [color_in_words(status) for split in splits for status in split.colors]


def _port(port: Any, name: Any) -> str:
    where = f" on {output.short(port.host)}" if name is output.short and port.host else ""
    color = f" {port.color}" if port.color else ""
    return f"{name(port.name)}{color} {' '.join(port.addresses)} {output.state_of(port)}{where}"


def _conditions(conditions: Sequence[Any]) -> None:
    for condition in conditions:
        since = f" for {output.ago(condition.since)}" if condition.since.seconds else ""
        click.secho(f"  ! {condition.type}{since}: {condition.text}", fg="yellow")
        if condition.remedy:
            click.echo(f"    what to do: {condition.remedy}")


def events_of(session: Session, name: str) -> list[Any]:
    """The events of an object ("": of all), oldest first."""
    from tealnet.v1 import system_pb2

    request = system_pb2.ListEventsRequest(name=name, page_size=1000)
    return list(session.client.call(session.client.system.ListEvents, request).events)


def _events(session: Session, name: str) -> None:
    from tealnet.client import ApiError

    try:
        events = [event for event in events_of(session, name) if event.name in (name, kinds.split_of(name))]
    except ApiError:  # a tenant sees hosts, but not what happened to them
        return
    if events:
        click.secho("events of the last day:", bold=True)
    for event in events[-_EVENTS:]:
        actor = f" ({event.actor})" if event.actor else ""
        click.echo(f"  {output.moment(event.time)}  {event.reason}  {event.text}{actor}")
