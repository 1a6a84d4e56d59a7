"""watch, sync, events, version: what is going on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click

from tealnet import kinds
from tealnet.cli import output
from tealnet.cli.describe import events_of
from tealnet.cli.options import Seconds, selector_option, tenant_option
from tealnet.cli.session import Failure, Session, load_config, pass_session
from tealnet.cli.targets import complete_targets, kind_of_word, kinds_completion, one_target, targets_of
from tealnet.cli.waiting import wait_for

_CHANGING = {
    kinds.SPLIT.name: ("colors",),  # what ports make of the weights, and told with them
    kinds.ROLLOUT.name: ("status", "history"),  # `teal rollout watch` shows them
}
_UNTOLD = {"etag", "revision", "update_time", "status.since", "uid"}


@click.command()
@click.argument("words", nargs=-1, metavar="[KIND]...", shell_complete=kinds_completion)
@tenant_option
@selector_option
@click.option("--spec-only", is_flag=True, help="Leave out changes of state alone.")
@click.option("--resume", default=0, type=click.IntRange(0), metavar="REVISION", help="Go on after this revision.")
@click.option("--count", default=0, type=click.IntRange(0), help="End after so many changes.")
@click.option("-o", "--output", "form", type=click.Choice(["table", "json"]), default="table", help="How to print.")
@pass_session
def watch(
    session: Session,
    *,
    words: tuple[str, ...],
    tenant: str,
    selector: str,
    spec_only: bool,
    resume: int,
    count: int,
    form: str,
) -> None:
    """Follow changes, after all that there is: a line each, until Ctrl-C.

    \b
      teal watch ports -t acme
      teal watch hosts --count 1       with --resume: wait for one change
      teal watch -o json | jq .        a line of JSON for each change

    Goes on by itself when the connection or the controller goes away for a while; nothing is missed.
    """
    from tealnet.follow import follow
    from tealnet.v1 import system_pb2

    session.tenant = tenant
    chosen = [kind_of_word(one) for word in words for one in word.split(",") if one != "all"]
    request = system_pb2.WatchRequest(
        parent=session.own_tenant(), kinds=[kind.name for kind in chosen], filter=selector,
        spec_only=spec_only, resume_revision=resume,
    )  # fmt: skip

    def cut(error: Any) -> None:
        click.echo(f"the watch was cut ({error.code.name}: {error.message}); going on", err=True)

    seen = 0
    told: dict[str, dict[str, Any]] = {}
    for response in follow(session.client, request, cut=cut):
        for line in _as_json(response) if form == "json" else _as_text(response, told):
            click.echo(line)
        sys.stdout.flush()
        seen += response.HasField("object")
        if count and seen >= count:
            return


def _as_json(response: Any) -> Iterator[str]:
    from tealnet.v1 import system_pb2

    word = system_pb2.WatchResponse.Type.Name(response.type).removeprefix("TYPE_")
    line: dict[str, Any] = {"type": word, "revision": response.revision}
    if which := response.object.WhichOneof("object"):
        line["object"] = {"kind": kinds.BY_WORD[which].title, **output.as_dict(getattr(response.object, which))}
    yield json.dumps(line, ensure_ascii=False)


def _as_text(response: Any, told: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Time, revision, what happened to which object, and what is different."""
    from tealnet.v1 import system_pb2

    word = system_pb2.WatchResponse.Type.Name(response.type).removeprefix("TYPE_")
    head = f"{datetime.now():%T}  {response.revision:>8}  "
    if word == "SYNCED":
        yield f"{head}-- that is all there is; changes follow --"
    which = response.object.WhichOneof("object")
    if which is None:
        return
    item = getattr(response.object, which)
    before = told.pop(item.name, None)
    shown = output.as_dict(item)
    for changing in _CHANGING.get(which, ()):
        shown.pop(changing, None)
    now = _flat(shown)
    if word != "DELETED":
        told[item.name] = now
    if word == "MODIFIED" and before is not None:
        what = ", ".join(_differences(before, now)) or "(nothing that is shown)"
        if which == kinds.ROLLOUT.name and now == before:
            return  # what its hosts count, every second
    elif word == "DELETED":
        what = ""
    else:
        what = _summary(which, item)
    color = {"ADDED": "green", "MODIFIED": "yellow", "DELETED": "red"}.get(word)
    yield f"{head}{click.style(word.ljust(8), fg=color)}  {output.title(item.name)}  {what}".rstrip()


def _summary(kind: str, item: Any) -> str:
    columns = output.COLUMNS[kind][0]
    cells = [cell(item) for head, cell in columns if head not in ("TENANT", "NAME", "PORTS", "FAILED", "MTU")]
    return "  ".join(cell for cell in cells if cell)


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{path}.")
        elif path not in _UNTOLD:
            flat[path] = value
    return flat


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for path in dict.fromkeys([*now, *before]):
        old, new = before.get(path), now.get(path)
        if old != new:
            yield f"{path.removeprefix('status.')} {_value(old)} → {_value(new)}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join(_value(one) for one in value) + "]"
    text = "-" if value is None else str(value).removeprefix("STATE_")
    return output.named(text) if text.startswith(("tenants/", "hosts/")) else text


@click.command()
@click.argument("words", nargs=-1, metavar="[KIND NAME]", shell_complete=complete_targets)
@tenant_option
@click.option("--revision", default=0, type=click.IntRange(0), help="Up to this revision; default: up to now.")
@click.option("--timeout", type=Seconds(), default=10.0, metavar="TIME", help="How long to wait: 10s, 2m. [10s]")
@pass_session
def sync(session: Session, *, words: tuple[str, ...], tenant: str, revision: int, timeout: float) -> None:
    """Wait until the hosts have everything on their devices, or say who has not.

    \b
      teal sync                    all hosts
      teal sync tenant acme        hosts that carry something of the tenant
      teal sync network acme/web

    Exit codes: 0 complete, 3 all but disconnected or lost hosts, 4 not in time, 5 a host could not apply something.
    """
    session.tenant = tenant
    parent = session.own_tenant()
    if words:
        target = one_target(session, words)
        if target.kind is kinds.HOST:
            raise Failure(
                "a sync is about a tenant, network, router or port; `teal describe host` shows a host", code=2
            )
        parent = target.name
    click.echo(wait_for(session, parents=[parent], timeout=timeout, revision=revision))


@click.command()
@click.argument("words", nargs=-1, metavar="[KIND NAME]", shell_complete=complete_targets)
@tenant_option
@click.option("--count", default=100, show_default=True, type=click.IntRange(1, 1000), help="The newest so many.")
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "yaml"]), default="table")
@pass_session
def events(session: Session, *, words: tuple[str, ...], tenant: str, count: int, form: str) -> None:
    """What happened to an object in the last 24 hours: who, what, when.

    \b
      teal events port acme/web-1    also when it is gone
      teal events host h1            also refused sessions of its agent
      teal events                    everything (admins)
    """
    session.tenant = tenant
    name = session.own_tenant()
    if words:
        (target, *more) = targets_of(session, words)
        if more or not target.name:
            raise Failure(f"one object, please: {' '.join(words)} NAME", code=2)
        name = target.name
    found = events_of(session, name)[-count:]
    if form != "table":
        output.dump([output.as_dict(event) for event in found], form)
        return
    if not found:
        click.echo("no events in the last 24 hours", err=True)
        return
    rows = [[output.moment(e.time), _about(e.name), e.reason, e.actor, e.text] for e in found]
    output.table(["TIME", "OBJECT", "REASON", "BY", "WHAT"], rows)


def _about(name: str) -> str:
    return output.title(name) if name.startswith(("tenants/", "hosts/")) else name or "cluster"


@click.command()
@pass_session
def version(session: Session) -> None:
    """Versions of this command and of the controller.

    \b
      teal version
    """
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as package_version

    from tealnet.cli.explain import explain
    from tealnet.client import ApiError
    from tealnet.v1 import system_pb2

    try:
        own = package_version("tealnet")
    except PackageNotFoundError:  # run from a checkout
        own = "(a checkout)"
    click.echo(f"teal        {own}")
    if not session.chosen(load_config()):
        click.echo("controller  (no context chosen)")
        return
    try:
        found = session.client.call(session.client.system.GetVersion, system_pb2.GetVersionRequest())
    except ApiError as error:
        click.echo("controller  not reachable")
        raise Failure(explain(error, session)) from None
    click.echo(f"controller  {found.version} (API {found.api})")
