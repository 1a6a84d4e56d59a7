"""apply: files of documents against the controller: order, partial failure, plan, prune."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from tealnet import kinds
from tealnet.cli import output
from tealnet.cli.documents import SET_LABEL, BadDocument, Document, bare_first, read_files
from tealnet.cli.explain import explain, is_unreachable
from tealnet.cli.objects import counted, delete_all
from tealnet.cli.options import confirm, files_option, tenant_option, wait_options, yes_option
from tealnet.cli.plan import located, print_plan
from tealnet.cli.progress import Progress
from tealnet.cli.session import Failure, Session, pass_session
from tealnet.cli.targets import Target
from tealnet.cli.waiting import wait_for

_PARALLEL = 16
_TENANTS = 8  # so many are waited for one by one


@click.command()
@files_option()
@tenant_option
@click.option("--dry-run", is_flag=True, help="Only say what would happen; the controller checks everything.")
@click.option("--set", "set_name", default="", metavar="NAME", help=f"Mark all objects: label {SET_LABEL}=NAME.")
@click.option("--prune", is_flag=True, help="Delete what has the mark of --set and stands in no document.")
@yes_option
@wait_options()
@pass_session
def apply(
    session: Session,
    *,
    files: tuple[str, ...],
    tenant: str,
    dry_run: bool,
    set_name: str,
    prune: bool,
    yes: bool,
    wait: bool,
    timeout: float,
) -> None:
    """Make objects as documents say: YAML or JSON, in any order, as often as you like.

    \b
      teal apply -f examples/ --wait
      teal apply -f shop.yaml --dry-run
      teal apply -f site/ --set site --prune       git is right: what it no longer holds goes
      teal get networks -o yaml | teal apply -f -

    \b
      kind: Network
      tenant: acme
      name: web
      cidrs: [10.0.0.0/24]
      router: main          short names mean the document's own tenant

    A field that a document does not name is left alone; `field: null` resets it. With an `etag` the object is changed
    only if nobody else did meanwhile. A document that fails takes along those that refer to it; the others go on.

    Exit codes: 0 all done, 1 something failed (each with file:line), 2 usage; with --wait also those of `teal sync`.
    """
    if prune and not set_name:
        raise click.UsageError("--prune needs --set NAME: only what bears that mark is ever deleted")
    session.tenant = tenant
    documents = load(session, files)
    if set_name:
        _mark(documents, set_name)
    if dry_run:
        _dry_run(session, documents, prune_set=set_name if prune else "")
        return
    failed = apply_all(session, documents)
    if failed:
        hint = "; nothing was pruned" if prune else ""
        raise Failure(f"{failed} of {len(documents)} documents failed or were skipped{hint}")
    if prune:
        _prune(session, _absent(session, documents, set_name), yes=yes)
    if wait:
        click.echo(wait_for(session, parents=_parents(documents), timeout=timeout, revision=session.client.revision))


def load(session: Session, files: Sequence[str]) -> list[Document]:
    """The documents in the order of their creation. Raises Failure with exit code 2."""
    try:
        documents = read_files(files, tenant=session.own_tenant())
    except BadDocument as error:
        lines = str(error).splitlines()
        text = "\n  ".join(["documents are wrong, nothing was done", *lines]) if len(lines) > 1 else lines[0]
        raise Failure(text, code=2) from None
    if not documents:
        raise Failure(f"no documents in {', '.join(files)}", code=2)
    return sorted(documents, key=lambda d: kinds.KINDS.index(d.kind))


def _mark(documents: Sequence[Document], set_name: str) -> None:
    for document in documents:
        document.body.labels[SET_LABEL] = set_name
        if "labels" not in document.mask:
            document.mask.append(f"labels.{SET_LABEL}")


def _dry_run(session: Session, documents: Sequence[Document], *, prune_set: str) -> None:
    failed = print_plan(session, documents)
    if prune_set:
        for item in _absent(session, documents, prune_set):
            click.echo(f"{output.title(item.name)} would be deleted")
    if failed:
        raise Failure(f"{failed} of {len(documents)} documents would fail")


def apply_all(session: Session, documents: Sequence[Document]) -> int:
    """Kind by kind, in parallel inside a kind; a failed document fails its dependents, others go on.

    Prints a line for each and a sum; returns how many failed or were skipped. Raises Failure when the controller is
    out of reach: the rest would only fail with the same words.
    """
    from tealnet.client import ApiError

    lost: list[str] = []  # why there is no connection, once there is none
    bad: dict[str, str] = {}
    counts: Counter[str] = Counter()
    started = time.monotonic()
    _ = session.client  # made before threads share it

    def one(document: Document) -> tuple[str, str, str]:
        blocked = sorted(document.needs() & bad.keys())
        if blocked:
            return "skipped", f"skipped: {bad[blocked[0]]} failed ({document.where})", ""
        if lost:
            return "lost", "", ""
        try:
            done = put(session, document)
            return done, done, notice(session, document)
        except ApiError as error:
            if is_unreachable(error):
                lost.append(explain(error, session))
                return "lost", "", ""
            return "failed", f"failed: {located(session, document, error)}", ""

    with Progress("applying") as progress, ThreadPoolExecutor(_PARALLEL) as pool:
        made: set[str] = set()
        for kind in kinds.KINDS:
            batch = [d for d in documents if d.kind is kind]
            made.update(pool.map(lambda d: _make_bare(session, d), bare_first(batch)))
            for document, (outcome, text, more) in zip(batch, pool.map(one, batch), strict=True):
                if document.name in made and outcome in ("changed", "unchanged"):
                    outcome = text = "created"
                if outcome == "lost":
                    raise Failure(
                        f"{lost[0]}\n  {counts.total()} of {len(documents)} documents were dealt with before; "
                        "run it again: what is there already stays as it is"
                    )
                wrong = outcome in ("skipped", "failed")
                progress.say(f"{document.title} {output.painted(text) if not wrong else text}", err=wrong)
                if more:
                    progress.say(more, err=True)
                counts[outcome] += 1
                progress.step(f"applying: {counts.total()} of {len(documents)}")
                if wrong:
                    bad[document.name] = document.title
    if len(documents) > 1:
        summary = ", ".join(f"{count} {word}" for word, count in counts.items())
        click.echo(f"{summary} ({time.monotonic() - started:.1f} s)", err=True)
    return len(bad)


def _make_bare(session: Session, bare: Document) -> str:
    """Create what is not there yet, and return its name; what is wrong with it is said when it is put whole."""
    from tealnet.client import ApiError

    try:
        session.client.create(bare.kind, ident=bare.ident, body=bare.body, parent=bare.parent)
    except ApiError:
        return ""
    return bare.name


def put(session: Session, document: Document) -> str:
    """Create or update one object: created, changed or unchanged. Raises ApiError."""
    import grpc

    from tealnet.client import ApiError

    client = session.client
    try:
        before = client.get(document.name)
    except ApiError as error:
        if error.code is not grpc.StatusCode.NOT_FOUND:
            raise
        try:
            client.create(document.kind, ident=document.ident, body=document.body, parent=document.parent)
            return "created"
        except ApiError as late:
            if late.code is not grpc.StatusCode.ALREADY_EXISTS:
                raise
        before = client.get(document.name)  # somebody else has just created it
    after = client.update(document.body, mask=document.mask) if document.mask else before
    return "unchanged" if after.etag == before.etag else "changed"


def notice(session: Session, document: Document) -> str:
    """What a person should know about a document that was applied; mostly nothing. Raises ApiError."""
    from tealnet.client import ApiError

    wanted = {color: weight for color, weight in getattr(document.body, "initial_weights", {}).items() if weight}
    if document.kind is not kinds.NETWORK or not wanted:
        return ""
    try:
        split = session.client.get(kinds.split_of(document.name))
    except ApiError:
        return ""
    now = {color: weight for color, weight in split.weights.items() if weight}
    total, total_now = sum(wanted.values()), sum(now.values())
    if all(wanted.get(c, 0) * total_now == now.get(c, 0) * total for c in wanted | now):
        return ""
    return (
        f"  note: the weights of {output.named(document.name)} are {output.weights(split)}, not the initial_weights of "
        f"{document.line_of('initial_weights')}:\n  those count when a network gets its first colors; later "
        "`teal color set-weights` moves traffic"
    )


def _parents(documents: Sequence[Document]) -> list[str]:
    """What to wait for: the tenants that the documents are about, or everything."""
    if any(document.kind is kinds.TIER for document in documents):
        return [""]
    tenants = sorted({"/".join(d.name.split("/")[:2]) for d in documents if d.kind.owned or d.kind is kinds.TENANT})
    return tenants if 0 < len(tenants) <= _TENANTS else [""]


def _absent(session: Session, documents: Sequence[Document], set_name: str) -> list[Any]:
    named = {document.name for document in documents}
    return [
        item
        for kind in reversed(kinds.KINDS)
        if kind.written
        for item in session.client.list_all(kind, filter_=f"{SET_LABEL}={set_name}")
        if item.name not in named
    ]


def _prune(session: Session, items: Sequence[Any], *, yes: bool) -> None:
    if not items:
        return
    if not yes:
        for item in items:
            click.echo(f"  {output.title(item.name)}", err=True)
        confirm(f"delete {counted(len(items), 'object')} that no document holds any more?")
    targets = [Target(kinds.kind_of(item.name), item.name) for item in items]
    stay = delete_all(session, targets, force=False, ignore_missing=True)
    if stay:
        raise Failure(f"{stay} of {len(items)} objects could not be deleted")
