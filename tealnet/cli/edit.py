"""edit KIND NAME: an object in an editor, applied when it is saved; nobody else's change is overwritten."""

from __future__ import annotations

import click
import yaml

from tealnet.cli import output
from tealnet.cli.documents import BadDocument, Document, read_text
from tealnet.cli.options import tenant_option
from tealnet.cli.plan import editable, located
from tealnet.cli.session import Failure, Session, pass_session
from tealnet.cli.targets import complete_targets, one_target, written

_NAME = "(your edit)"


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="KIND NAME", shell_complete=complete_targets)
@tenant_option
@pass_session
def edit(session: Session, *, words: tuple[str, ...], tenant: str) -> None:
    """Change an object in your editor (VISUAL, EDITOR).

    \b
      teal edit network acme/web

    A line that you take out resets its field. If somebody else changes the object meanwhile, nothing is overwritten.
    """
    from tealnet.client import ApiError

    session.tenant = tenant
    (target,) = written([one_target(session, words)])
    before = session.client.get(target.name)
    original = f"kind: {target.kind.title}\n{editable(before)}"
    text, problem, tried = original, "", ""
    while True:
        head = f"# {output.title(target.name)}: save to change it, leave it as it is to change nothing.\n"
        head += "".join(f"# ! {line}\n" for line in problem.splitlines())
        try:
            edited = click.edit(head + text, extension=".yaml")
        except click.ClickException as error:
            raise Failure(f"the editor did not run: {error.message}; set EDITOR") from None
        text = "".join(line for line in (edited or "").splitlines(keepends=True) if not line.startswith("#"))
        if not edited or text.strip() in ("", original.strip(), tried):
            if problem:
                raise Failure(f"nothing was changed: {problem}")
            click.echo("nothing was changed", err=True)
            return
        tried = text.strip()
        try:
            document = _document(target.name, text)
            document.mask = _mask(original, text)
            document.body.etag = before.etag
            after = session.client.update(document.body, mask=document.mask)
        except BadDocument as error:
            problem = str(error)
        except ApiError as error:
            problem = located(session, document, error)
            if error.code.name == "ABORTED":
                raise Failure(f"{problem}\n  Somebody else changed it meanwhile; edit it again") from None
        else:
            click.echo(f"{output.title(target.name)} {'changed' if after.etag != before.etag else 'unchanged'}")
            return


def _document(name: str, text: str) -> Document:
    found = read_text(text, file=_NAME, tenant="")
    if len(found) != 1 or found[0].name != name:
        raise BadDocument(f"{_NAME}: one object, and its name stays {name}")
    return found[0]


def _mask(original: str, text: str) -> list[str]:
    before, after = yaml.safe_load(original) or {}, yaml.safe_load(text) or {}
    return [
        key
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key) and key not in ("name", "kind")
    ]
