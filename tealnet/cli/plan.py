"""What would be: the server's word on documents, against the world plus the documents before each; diff prints it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import click
import yaml

from tealnet import kinds
from tealnet.cli import output
from tealnet.cli.documents import Document, bare_first
from tealnet.cli.explain import explain
from tealnet.cli.options import files_option, tenant_option
from tealnet.cli.progress import Progress
from tealnet.cli.session import Failure, Session, pass_session

TROUBLE = 2
_MOST = 1000  # documents per call
_WORDS = {"create": "would be created", "update": "would be changed", "unchanged": "unchanged"}


def plan(session: Session, documents: Sequence[Document]) -> list[Any]:
    """One PlanResult per document, in order. More documents than one call takes are not planned together."""
    from google.protobuf import field_mask_pb2

    from tealnet.v1 import system_pb2

    if len(documents) > _MOST:
        raise Failure(f"{len(documents)} documents: a plan takes at most {_MOST}; give fewer files", code=TROUBLE)
    request = system_pb2.PlanRequest()
    bare, planned = {document.name: document for document in bare_first(documents)}, []
    first = next((n for n, document in enumerate(documents) if document.kind is kinds.GROUP), 0)
    for document in (*documents[:first], *bare.values(), *documents[first:]):
        planned.append(document)
        item = request.items.add()
        getattr(item.object, document.kind.field).CopyFrom(document.body)
        item.update_mask.CopyFrom(field_mask_pb2.FieldMask(paths=document.mask))
    with Progress("planning"):
        results = list(session.client.call(session.client.system.Plan, request).results)
    begun = {d.name: r for d, r in zip(planned, results, strict=True) if d is bare.get(d.name)}
    whole = [(d, r) for d, r in zip(planned, results, strict=True) if d is not bare.get(d.name)]
    return [_joined(begun[d.name], r) if d.name in begun else r for d, r in whole]


def _joined(begun: Any, result: Any) -> Any:
    """What two steps on one object come to: made without its rules, then with them."""
    if result.action == result.ACTION_FAIL or begun.action == begun.ACTION_FAIL:
        return result if result.action == result.ACTION_FAIL else begun
    if begun.action != begun.ACTION_UNCHANGED:
        result.action = begun.action
    result.ClearField("before")
    if begun.HasField("before"):
        result.before.CopyFrom(begun.before)
    return result


def print_plan(session: Session, documents: Sequence[Document]) -> int:
    """A line per document; returns how many would fail."""
    bad: dict[str, str] = {}
    counts: dict[str, int] = {}
    for document, result in zip(documents, plan(session, documents), strict=True):
        word = result.Action.Name(result.action).removeprefix("ACTION_").lower()
        if blocked := sorted(document.needs() & bad.keys()):
            bad[document.name] = document.title
            click.echo(f"{document.title} would be skipped: {bad[blocked[0]]} fails ({document.where})", err=True)
        elif word == "fail":
            bad[document.name] = document.title
            click.echo(f"{document.title} would fail: {refusal(session, document, result.error)}", err=True)
        else:
            click.echo(f"{document.title} {_WORDS.get(word, word)}")
            counts[word] = counts.get(word, 0) + 1
    return len(bad)


def refusal(session: Session, document: Document, error: Any) -> str:
    """A planned document's error in words."""
    import grpc

    from tealnet.client import error_of

    codes = {code.value[0]: code for code in grpc.StatusCode}
    code = codes.get(error.code, grpc.StatusCode.UNKNOWN)
    return located(session, document, error_of(code, error.message, list(error.details)))


def located(session: Session, document: Document, error: Any) -> str:
    """file:line: what is wrong there."""
    where = document.line_of(error.violations[0][0]) if error.violations else document.where
    return f"{where}: {explain(error, session)}"


@click.command()
@files_option()
@tenant_option
@pass_session
def diff(session: Session, *, files: tuple[str, ...], tenant: str) -> None:
    """Show what `teal apply` would change, as a diff.

    \b
      teal diff -f examples/

    Exit codes, as those of diff(1): 0 nothing would change, 1 something would, 2 a document is wrong or refused.
    """
    from tealnet.cli.apply import load

    session.tenant = tenant
    documents = load(session, files)
    changed = failed = 0
    for document, result in zip(documents, plan(session, documents), strict=True):
        if result.action == result.ACTION_FAIL:
            click.echo(f"{document.title} would fail: {refusal(session, document, result.error)}", err=True)
            failed += 1
        elif result.action != result.ACTION_UNCHANGED:
            changed += 1
            _print_diff(document, result)
    if failed:
        raise Failure(f"{failed} of {len(documents)} documents would fail", code=TROUBLE)
    if changed:
        raise click.exceptions.Exit(1)


def _print_diff(document: Document, result: Any) -> None:
    if not result.HasField("before") and "revoked_before" not in document.mask:
        after = getattr(result.after, document.kind.field)
        if "revoked_before" in after.DESCRIPTOR.fields_by_name:
            after.ClearField("revoked_before")  # the time of the creation, whenever that will be
    before, after = _yaml(result.before), _yaml(result.after)
    old = f"{document.title} (now)" if before else "/dev/null"
    lines = list(difflib.unified_diff(before, after, old, f"{document.title} ({document.where})"))
    for line in lines:
        color = {"+": "green", "-": "red", "@": "cyan"}.get(line[0])
        click.secho(line.rstrip("\n"), fg=color)
    if not lines:
        click.echo(f"{document.title} would be changed in fields that are not shown")


def _yaml(item: Any) -> list[str]:
    which = item.WhichOneof("object")
    if which is None:
        return []
    return editable(getattr(item, which)).splitlines(keepends=True)


def editable(item: Any) -> str:
    """An object as YAML, without what only the server sets."""
    data = output.as_dict(item)
    for key in ("etag", "revision", "update_time", "create_time", "uid", "status", "segments", "networks", "state"):
        data.pop(key, None)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
