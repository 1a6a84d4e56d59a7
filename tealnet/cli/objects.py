"""get, describe, delete: the same for every kind."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click

from tealnet import kinds
from tealnet.cli import output
from tealnet.cli.session import Failure, Session, errors, pass_session
from tealnet.kinds import Kind

F = Callable[..., Any]


class KindParam(click.ParamType[Kind]):
    """tenant(s), network(s) or net, router(s), port(s), host(s)."""

    name = "kind"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Kind:
        """The kind of a word."""
        if isinstance(value, Kind):
            return value
        found = kinds.BY_WORD.get(value)
        if found is None:
            self.fail(f"{value!r} is none of {', '.join(kind.plural for kind in kinds.KINDS)}", param, ctx)
        return found

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Offer the plural words."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(kind.plural) for kind in kinds.KINDS if kind.plural.startswith(incomplete)]


def output_option(function: F) -> F:
    """-o FORMAT."""
    return click.option(
        "-o", "--output", "form", type=click.Choice(output.FORMATS), default="table", help="How to print."
    )(function)


def tenant_option(function: F) -> F:
    """-t TENANT."""
    return click.option("-t", "--tenant", default="", help="The tenant; default: the context's, else all.")(function)


@click.command()
@click.argument("kind", type=KindParam())
@click.argument("names", nargs=-1)
@tenant_option
@output_option
@click.option("-l", "--selector", default="", help="Labels, e.g. app=web,tier!=db; ports also network=, host=, state=.")
@pass_session
def get(session: Session, *, kind: Kind, names: tuple[str, ...], tenant: str, form: str, selector: str) -> None:
    """Show objects: `teal get ports -t acme`, `teal get network web -o yaml`."""
    session.tenant = tenant or session.tenant
    with errors():
        if names:
            objects = [session.client.get(session.name_of(kind, name)) for name in names]
        else:
            parent = session.parent(required=False)
            objects = list(session.client.list_all(kind, parent=parent, filter_=selector))
    output.show(kind, objects, form)


@click.command()
@click.argument("kind", type=KindParam())
@click.argument("name")
@tenant_option
@pass_session
def describe(session: Session, *, kind: Kind, name: str, tenant: str) -> None:
    """Everything about one object: fields, state, conditions with remedies, events."""
    session.tenant = tenant or session.tenant
    with errors():
        full = session.name_of(kind, name)
        found = session.client.get(full)
        events = events_of(session, full)
    output.dump({"kind": kind.title, **output.as_dict(found)}, "yaml")
    for condition in getattr(getattr(found, "status", None), "conditions", ()):
        click.echo(f"! {condition.type}: {condition.text}\n  remedy: {condition.remedy}")
    if events:
        click.echo("events:")
        for event in events:
            click.echo(f"  {event.time.ToJsonString()}  {event.reason}  {event.text}")


def events_of(session: Session, name: str) -> list[Any]:
    """The events of an object, oldest first."""
    from tealnet.v1 import system_pb2

    request = system_pb2.ListEventsRequest(name=name, page_size=100)
    return list(session.client.call(session.client.system.ListEvents, request).events)


@click.command()
@click.argument("kind", type=KindParam())
@click.argument("names", nargs=-1, required=True)
@tenant_option
@click.option("--cascade", is_flag=True, help="Delete what it holds, too (tenants, networks); lists it first.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--wait/--no-wait", default=False, help="Wait until it is gone from the hosts.")
@click.option("--timeout", default=30.0, help="Seconds to wait.")
@pass_session
def delete(
    session: Session,
    *,
    kind: Kind,
    names: tuple[str, ...],
    tenant: str,
    cascade: bool,
    yes: bool,
    wait: bool,
    timeout: float,
) -> None:
    """Delete objects. What is referenced stays, and the error says by whom."""
    session.tenant = tenant or session.tenant
    with errors():
        for name in names:
            full = session.name_of(kind, name)
            if cascade and not yes:
                _confirm_cascade(session, kind, full)
            session.client.delete(full, force=cascade)
            click.echo(f"{kind.name}/{output.short(full)} deleted")
        if wait:
            wait_for(session, parent="", timeout=timeout)


def _confirm_cascade(session: Session, kind: Kind, full: str) -> None:
    if kind.name == "tenant":
        held = [
            item for k in (kinds.PORT, kinds.NETWORK, kinds.ROUTER) for item in session.client.list_all(k, parent=full)
        ]
    else:
        parent = full.rpartition("/networks/")[0]
        held = [p for p in session.client.list_all(kinds.PORT, parent=parent) if p.network == full]
    for item in held:
        click.echo(f"  {item.name}")
    click.confirm(f"delete {full} and the {len(held)} objects above?", abort=True)


def wait_for(session: Session, *, parent: str, timeout: float, revision: int = 0) -> None:
    """Wait until the data plane has it; says what it waited for. Exit codes 3 disconnected, 4 timeout, 5 failed."""
    started = time.monotonic()
    answer = session.client.sync(revision, parent=parent, timeout=timeout)
    took = time.monotonic() - started
    if answer.complete:
        click.echo(f"{answer.synced} of {answer.hosts} hosts know it ({took * 1000:.0f} ms)")
        return
    raise SyncFailure(answer)


class SyncFailure(Failure):
    """A Sync that is not complete: names who is behind, failed, disconnected or lost."""

    def __init__(self, answer: Any) -> None:
        lines = [f"{answer.synced} of {answer.hosts} hosts have revision {answer.revision}"]
        lines += [f"  {f.host}: {f.object} failed: {f.reason}: {f.text}" for f in answer.failed]
        lines += [f"  {lag.host} is behind (at revision {lag.revision})" for lag in answer.behind]
        lines += [f"  {host} is disconnected: its agent has no session" for host in answer.disconnected]
        lines += [
            f"  {host} is lost; `teal host fence {output.short(host)}` if it is gone for good" for host in answer.lost
        ]
        code = 5 if answer.failed else 4 if answer.behind else 3
        super().__init__("\n".join(lines), code=code)
