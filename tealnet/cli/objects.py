"""get and delete: the same for every kind."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from tealnet import kinds
from tealnet.cli import output
from tealnet.cli.explain import explain, is_unreachable
from tealnet.cli.options import (
    confirm,
    files_option,
    output_option,
    selector_option,
    tenant_option,
    wait_options,
    yes_option,
)
from tealnet.cli.policy import RULES, show_rules
from tealnet.cli.progress import Progress
from tealnet.cli.session import Failure, Session, pass_session
from tealnet.cli.targets import Target, complete_targets, targets_of, written
from tealnet.cli.waiting import wait_for
from tealnet.kinds import Kind

_PARALLEL = 16
_COUNTING = 5.0  # seconds that hosts may take to tell what their rules have counted


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="KIND [NAME]...", shell_complete=complete_targets)
@tenant_option
@selector_option
@output_option
@click.option("--counters", is_flag=True, help="Of rules: flows and counters, asked of the hosts.")
@pass_session
def get(session: Session, *, words: tuple[str, ...], tenant: str, form: str, selector: str, counters: bool) -> None:
    """Show objects of a kind, or some by name.

    \b
      teal get ports                       all that you may see
      teal get ports -t acme -l app=web    of a tenant, with a label
      teal get network acme/web -o yaml    one, whole
      teal get networks,routers            two kinds; `all` for every kind
      teal get ports -o name | xargs teal describe
      teal get rules -t acme --counters    security rules in force, their cost and what they count
      teal get rules port acme/web-1       what binds a port

    `wide` has more columns; `json` and `yaml` are lists unless one object is named, and `teal apply -f -` takes them;
    `name` prints resource names.
    """
    session.tenant = tenant
    if words[0].lower() in RULES:
        if selector or form == "name":
            raise click.UsageError("rules have no labels and no names: leave out -l and -o name")
        show_rules(session, words[1:], counters=counters, form=form, timeout=_COUNTING)
        return
    if counters:
        raise click.UsageError("--counters is for rules: teal get rules --counters")
    targets = targets_of(session, words)
    if targets[0].name:
        if selector:
            raise click.UsageError("-l chooses among all objects of a kind; leave out the names")
        items = [(target.kind, session.client.get(target.name)) for target in targets]
        if len(items) == 1:
            output.show_one(*items[0], form)
        else:
            output.show(_by_kind(items), form)
        return
    parent = session.parent(required=False)
    with Progress("reading"):
        found = [(t.kind, list(session.client.list_all(t.kind, parent=parent, filter_=selector))) for t in targets]
    output.show(found, form)


def _by_kind(items: Iterable[tuple[Kind, Any]]) -> list[tuple[Kind, list[Any]]]:
    grouped: dict[str, tuple[Kind, list[Any]]] = {}
    for kind, item in items:
        grouped.setdefault(kind.name, (kind, []))[1].append(item)
    return list(grouped.values())


@click.command()
@click.argument("words", nargs=-1, metavar="[KIND NAME...]", shell_complete=complete_targets)
@files_option(required=False)
@tenant_option
@selector_option
@click.option("--cascade", is_flag=True, help="Delete what it holds, too (tenants, networks); lists it first.")
@click.option("--ignore-missing", is_flag=True, help="What is not there is no error.")
@yes_option
@wait_options()
@pass_session
def delete(
    session: Session,
    *,
    words: tuple[str, ...],
    files: tuple[str, ...],
    tenant: str,
    selector: str,
    cascade: bool,
    ignore_missing: bool,
    yes: bool,
    wait: bool,
    timeout: float,
) -> None:
    """Delete objects. What is referenced stays, and the error says by whom.

    \b
      teal delete port acme/web-1 --wait   gone from its host, too
      teal delete ports -t acme -l app=web
      teal delete tenant acme --cascade    with all that it holds
      teal delete -f examples/             what stands in files, ports first

    The intent goes at once. With --wait: exit code 3, 4 or 5 as `teal sync` when hosts have not let go yet.
    """
    session.tenant = tenant
    chosen = _chosen(session, words, files, selector)
    names = [target.name for target in chosen]
    if cascade and not yes:
        _confirm_cascade(session, chosen)
    elif selector and names and not yes:
        _list(names)
        confirm(f"delete {counted(len(names), 'object')}?")
    if selector and not names:
        click.echo("nothing found, nothing deleted", err=True)
    parents = _sync_parents(session, chosen) if wait else []
    gone_is_fine = ignore_missing or bool(files)
    failed = delete_all(session, chosen, force=cascade, ignore_missing=gone_is_fine)
    if failed:
        raise Failure(
            f"{failed} of {len(chosen)} objects could not be deleted" if len(chosen) > 1 else "nothing was deleted"
        )
    if wait and chosen:
        click.echo(f"gone: {wait_for(session, parents=parents, timeout=timeout)}")


def _chosen(session: Session, words: tuple[str, ...], files: tuple[str, ...], selector: str) -> list[Target]:
    """What is to be deleted, in the order in which it can be."""
    if bool(words) == bool(files):
        raise click.UsageError("say either KIND NAME or -f FILE")
    if files:
        from tealnet.cli.apply import load

        return [Target(document.kind, document.name) for document in reversed(load(session, files))]
    targets = targets_of(session, words)
    if words[0].lower() == "all":
        targets = [target for target in targets if target.kind.written]
    targets = written(targets)
    if targets[0].name:
        if selector:
            raise click.UsageError("-l chooses among all objects of a kind; leave out the names")
        return sorted(targets, key=lambda target: -kinds.KINDS.index(target.kind))
    if not selector:
        raise Failure(f"which {targets[0].kind.plural}? Give names, or choose with -l LABELS", code=2)
    parent = session.parent(required=False)
    ordered = sorted((target.kind for target in targets), key=kinds.KINDS.index, reverse=True)
    return [
        Target(kind, item.name)
        for kind in ordered
        for item in session.client.list_all(kind, parent=parent, filter_=selector)
    ]


def delete_all(session: Session, targets: Sequence[Target], *, force: bool, ignore_missing: bool) -> int:
    """Delete, kind by kind, in parallel inside a kind; returns how many stay."""
    import grpc

    from tealnet.client import ApiError

    failed = 0
    client = session.client  # made before threads share it
    gone = threading.Event()

    def one(target: Target) -> tuple[bool, str]:
        if gone.is_set():
            return False, f"{output.title(target.name)} stays"
        try:
            client.delete(target.name, force=force and target.kind in (kinds.TENANT, kinds.NETWORK))
        except ApiError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return ignore_missing, (
                    f"{output.title(target.name)} is not there" if ignore_missing else explain(error, session)
                )
            if is_unreachable(error):
                gone.set()
            holds = error.reason == "IN_USE" and target.kind in (kinds.TENANT, kinds.NETWORK)
            way = "\n  --cascade deletes what it holds, too" if holds else ""
            return False, f"{output.title(target.name)} stays: {explain(error, session)}{way}"
        return True, f"{output.title(target.name)} deleted"

    order = [kind for kind in kinds.KINDS[::-1] if any(t.kind is kind for t in targets)]
    with Progress("deleting") as progress, ThreadPoolExecutor(_PARALLEL) as pool:
        for kind in order:
            batch = [target for target in targets if target.kind is kind]
            if kind is kinds.GROUP:
                untie(session, batch)
            for well, line in pool.map(one, batch):
                progress.say(line, err=not well)
                failed += not well
    return failed


def untie(session: Session, targets: Sequence[Target]) -> None:
    """Groups whose rules name each other can't go one by one: take the rules out of those that only these hold."""
    from tealnet.client import ApiError

    names = {target.name for target in targets}
    for target in targets if len(targets) > 1 else ():
        try:
            session.client.delete(target.name, validate_only=True)
        except ApiError as error:
            holders = [word for text in error.blockers for word in text.split() if word.startswith("tenants/")]
            if error.reason == "IN_USE" and holders and names.issuperset(holders):
                for name in dict.fromkeys(holders):
                    session.client.update(kinds.GROUP.message(name=name), mask=["ingress", "egress"])


def counted(count: int, word: str) -> str:
    """1 object, 2 objects"""
    return f"{count} {word}{'' if count == 1 else 's'}"


def _list(names: Iterable[str]) -> None:
    for name in names:
        click.echo(f"  {output.title(name)}", err=True)


def _confirm_cascade(session: Session, targets: Sequence[Target]) -> None:
    """List what would go along, then ask."""
    held: list[str] = []
    for target in targets:
        if target.kind is kinds.TENANT:
            of_kinds = (kinds.ROLLOUT, kinds.PORT, kinds.NETWORK, kinds.ROUTER, kinds.GROUP)
            held += [item.name for kind in of_kinds for item in session.client.list_all(kind, parent=target.name)]
        elif target.kind is kinds.NETWORK:
            tenant, _, ident = target.name.partition("/networks/")
            held += [p.name for p in session.client.list_all(kinds.PORT, parent=tenant, filter_=f"network={ident}")]
    chosen = [target.name for target in targets]
    also = [name for name in dict.fromkeys(held) if name not in chosen]
    _list(chosen + also)
    along = f", with the {counted(len(also), 'object')} above" if also else ""
    what = output.title(chosen[0]) if len(chosen) == 1 else f"these {len(chosen)} objects"
    confirm(f"delete {what}{along}?")


def _sync_parents(session: Session, targets: Sequence[Target]) -> list[str]:
    """What to wait for once they are gone: what the ports' networks concern, else everything that the caller sees."""
    from tealnet.client import ApiError

    found = set()
    for target in targets:
        if target.kind is not kinds.PORT:
            return [""]
        try:
            found.add(session.client.get(target.name).network)
        except ApiError:
            continue  # deleting it will say what is wrong
    return sorted(found) if len(found) == 1 else [""]
