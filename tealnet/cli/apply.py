"""apply and diff: files of documents against the controller (order, partial failure, plan, prune)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click
import yaml

from tealnet import kinds
from tealnet.cli import output
from tealnet.cli.documents import SET_LABEL, BadDocument, Document, read_files
from tealnet.cli.objects import tenant_option, wait_for
from tealnet.cli.session import Failure, Session, errors, explain, pass_session

_PARALLEL = 16


@click.command()
@click.option("-f", "--file", "files", multiple=True, required=True, help="File, directory or - ; repeatable.")
@tenant_option
@click.option("--dry-run", is_flag=True, help="Only say what would happen.")
@click.option("--prune", is_flag=True, help="Delete objects of the set that stand in no document; needs --set.")
@click.option("--set", "set_name", default="", help=f"Name of the set: objects get the label {SET_LABEL}.")
@click.option("--yes", is_flag=True, help="Do not ask before pruning.")
@click.option("--wait/--no-wait", default=False, help="Wait until the data plane has it.")
@click.option("--timeout", default=60.0, help="Seconds to wait.")
@pass_session
def apply(
    session: Session,
    *,
    files: tuple[str, ...],
    tenant: str,
    dry_run: bool,
    prune: bool,
    set_name: str,
    yes: bool,
    wait: bool,
    timeout: float,
) -> None:
    """Make the controller's objects as the documents say. A field that a document does not name is left alone.

    Exit codes: 0 all done, 1 something failed (each with file:line), 2 usage.
    """
    if prune and not set_name:
        raise click.UsageError("--prune needs --set NAME: only objects of that set are ever pruned")
    session.tenant = tenant or session.tenant
    documents = load(session, files)
    if set_name:
        for document in documents:
            document.body.labels[SET_LABEL] = set_name
            if "labels" not in document.mask:
                document.mask.append(f"labels.{SET_LABEL}")
    if dry_run:
        failed = _print_plan(plan(session, documents), documents)
        if prune:
            for item in _absent(session, documents, set_name):
                click.echo(f"{item.name} would be deleted")
        if failed:
            raise Failure(f"{failed} of {len(documents)} documents would fail")
        return
    failed = _apply_all(session, documents)
    if prune and not failed:
        _prune(session, _absent(session, documents, set_name), yes=yes)
    if failed:
        raise Failure(f"{failed} of {len(documents)} documents failed or were skipped")
    if wait:
        with errors():
            wait_for(session, parent="", timeout=timeout)


@click.command()
@click.option("-f", "--file", "files", multiple=True, required=True, help="File, directory or - ; repeatable.")
@tenant_option
@pass_session
def diff(session: Session, *, files: tuple[str, ...], tenant: str) -> None:
    """Show what `apply` would change. Exit code 0 nothing, 1 something."""
    session.tenant = tenant or session.tenant
    documents = load(session, files)
    results = plan(session, documents)
    changed = 0
    for document, result in zip(documents, results, strict=True):
        if result.HasField("error") or result.action == result.ACTION_FAIL:
            click.echo(f"{document.where}: {document.name}: {_error_text(document, result.error)}", err=True)
            changed += 1
            continue
        before, after = _yaml(result.before), _yaml(result.after)
        lines = list(
            difflib.unified_diff(before, after, f"{document.name} (now)", f"{document.name} ({document.where})")
        )
        changed += bool(lines)
        for line in lines:
            color = {"+": "green", "-": "red"}.get(line[0])
            click.secho(line.rstrip("\n"), fg=color)
    if changed:
        raise click.exceptions.Exit(1)


def load(session: Session, files: tuple[str, ...]) -> list[Document]:
    """The documents in the order of their creation. Raises Failure with exit code 2."""
    tenant = session.tenant or session.settings().get("tenant") or ""
    try:
        documents = read_files(files, tenant=tenant)
    except BadDocument as error:
        raise Failure(str(error), code=2) from None
    if not documents:
        raise Failure("no documents found", code=2)
    return sorted(documents, key=lambda d: kinds.KINDS.index(d.kind))


def plan(session: Session, documents: list[Document]) -> list[Any]:
    """The server's word on each document, against the world plus the documents before it."""
    from google.protobuf import field_mask_pb2

    from tealnet.v1 import system_pb2

    request = system_pb2.PlanRequest()
    for document in documents:
        item = request.items.add()
        getattr(item.object, document.kind.name).CopyFrom(document.body)
        item.update_mask.CopyFrom(field_mask_pb2.FieldMask(paths=document.mask))
    with errors():
        return list(session.client.call(session.client.system.Plan, request).results)


def _print_plan(results: Iterable[Any], documents: list[Document]) -> int:
    failed = 0
    for document, result in zip(documents, results, strict=True):
        word = result.Action.Name(result.action).removeprefix("ACTION_").lower()
        if word == "fail":
            failed += 1
            click.echo(f"{document.title} would fail: {_error_text(document, result.error)}", err=True)
        else:
            words = {"create": "would be created", "update": "would be changed", "unchanged": "unchanged"}
            click.echo(f"{document.title} {words.get(word, word)}")
    return failed


def _error_text(document: Document, error: Any) -> str:
    import grpc

    from tealnet.client import error_of

    codes = {code.value[0]: code for code in grpc.StatusCode}
    return _located(
        document, error_of(codes.get(error.code, grpc.StatusCode.UNKNOWN), error.message, list(error.details))
    )


def _located(document: Document, error: Any) -> str:
    where = document.line_of(error.violations[0][0]) if error.violations else document.where
    return f"{where}: {explain(error)}"


def _apply_all(session: Session, documents: list[Document]) -> int:
    """Kind by kind, in parallel inside a kind; a failed document fails its dependents, others go on."""
    from tealnet.client import ApiError

    bad: dict[str, str] = {}
    _ = session.client  # made before threads share it

    def one(document: Document) -> tuple[str, str]:
        blocked = sorted(document.needs() & bad.keys())
        if blocked:
            return "skipped", f"skipped: {bad[blocked[0]]} failed ({document.where})"
        try:
            return "", _put(session, document)
        except ApiError as error:
            return "failed", f"failed: {_located(document, error)}"

    with ThreadPoolExecutor(_PARALLEL) as pool:
        for kind in kinds.KINDS:
            batch = [d for d in documents if d.kind is kind]
            for document, (problem, text) in zip(batch, pool.map(one, batch), strict=True):
                click.echo(f"{document.title} {text}", err=bool(problem))
                if problem:
                    bad[document.name] = document.title
    return len(bad)


def _put(session: Session, document: Document) -> str:
    import grpc

    from tealnet.client import ApiError

    client = session.client
    try:
        before = client.get(document.name)
    except ApiError as error:
        if error.code is not grpc.StatusCode.NOT_FOUND:
            raise
        client.create(document.kind, ident=document.ident, body=document.body, parent=document.parent)
        return "created"
    after = client.update(document.body, mask=_plain_mask(document, before))
    return "unchanged" if after.etag == before.etag else "changed"


def _plain_mask(document: Document, before: Any) -> list[str]:
    """One label of a map is set by sending all labels as they are, plus it."""
    special = f"labels.{SET_LABEL}"
    if special not in document.mask:
        return document.mask
    wanted = document.body.labels[SET_LABEL]
    document.body.labels.update(before.labels)
    document.body.labels[SET_LABEL] = wanted
    return [path for path in document.mask if path != special] + ["labels"]


def _absent(session: Session, documents: list[Document], set_name: str) -> list[Any]:
    named = {document.name for document in documents}
    with errors():
        return [
            item
            for kind in reversed(kinds.KINDS)
            for item in session.client.list_all(kind, filter_=f"{SET_LABEL}={set_name}")
            if item.name not in named
        ]


def _prune(session: Session, items: list[Any], *, yes: bool) -> None:
    if not items:
        return
    for item in items:
        click.echo(f"  {item.name}")
    if not yes:
        click.confirm(f"delete these {len(items)} objects of the set?", abort=True)
    with errors():
        for item in items:
            session.client.delete(item.name)
            click.echo(f"{item.name} deleted")


def _yaml(item: Any) -> list[str]:
    which = item.WhichOneof("object")
    if which is None:
        return []
    data = output.as_dict(getattr(item, which))
    for key in ("etag", "revision", "update_time", "create_time", "uid", "status"):
        data.pop(key, None)
    return yaml.safe_dump(data, sort_keys=True, allow_unicode=True).splitlines(keepends=True)
