"""teal audit: who wrote what, by the audit logs of all replicas."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from tealnet.cli import output
from tealnet.cli.options import Seconds, tenant_option
from tealnet.cli.session import Failure, Session, pass_session
from tealnet.cli.targets import complete_targets, targets_of


class Moment(click.ParamType[datetime]):
    """So long ago (90s, 2h), or a time like 2026-11-01T12:00:00Z (or without Z: of this machine's zone)."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """As a time of UTC."""
        if isinstance(value, datetime):
            return value
        try:
            return datetime.fromisoformat(str(value)).astimezone(UTC)
        except ValueError:
            return datetime.now(UTC) - timedelta(seconds=Seconds().convert(value, param, ctx))


@click.command()
@click.argument("words", nargs=-1, metavar="[KIND NAME]", shell_complete=complete_targets)
@tenant_option
@click.option("--who", default="", metavar="ROLE", help="Only by this role: admin, tenant/acme, tenant/acme/admin.")
@click.option("--since", type=Moment(), metavar="TIME", help="Not older: 2h ago, or 2026-11-01T12:00:00Z.")
@click.option("--until", type=Moment(), metavar="TIME", help="Older than this.")
@click.option("--count", default=100, show_default=True, type=click.IntRange(1, 1000), help="The newest so many.")
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "yaml"]), default="table")
@pass_session
def audit(
    session: Session, *, words: tuple[str, ...], tenant: str, who: str, since: datetime | None,
    until: datetime | None, count: int, form: str,
) -> None:  # fmt: skip
    """Who wrote what, when, and what came of it: every call that writes, refused ones too. For admins.

    \b
      teal audit -t acme --since 2h
      teal audit port acme/web-1         also when it is gone
      teal audit --who tenant/globex --count 20

    All controllers that run are asked; what one that is gone has noted is in its own file.
    """
    from tealnet.v1 import admin_pb2

    session.tenant = tenant
    name = session.own_tenant()
    if words:
        (target, *more) = targets_of(session, words)
        if more or not target.name:
            raise Failure(f"one object, please: {' '.join(words)} NAME", code=2)
        name = target.name
    request = admin_pb2.ListAuditRequest(name=name, who=who, page_size=count)
    for field, moment in ((request.after, since), (request.before, until)):
        if moment is not None:
            field.FromDatetime(moment)
    found = session.client.call(session.client.admin.ListAudit, request)
    if form != "table":
        output.dump([output.as_dict(entry) for entry in found.entries], form)
    elif found.entries:
        output.table(["TIME", "WHO", "METHOD", "OBJECT", "RESULT", "REVISION"], map(_row, found.entries))
    else:
        click.echo("nothing was written", err=True)
    if found.silent_replicas:
        click.echo(f"without an answer: {', '.join(found.silent_replicas)}", err=True)


def _row(entry: Any) -> list[str]:
    return [
        output.moment(entry.time), entry.who or "-", entry.method, _about(entry), _result(entry), _revision(entry),
    ]  # fmt: skip


def _about(entry: Any) -> str:
    name = entry.objects[0] if entry.objects else entry.name
    shown = output.title(name) if name.startswith(("tenants/", "hosts/")) else name
    return f"{shown} and {len(entry.objects) - 1} more" if len(entry.objects) > 1 else shown


def _result(entry: Any) -> str:
    word = entry.result if entry.result == "OK" else f"{entry.result} {entry.reason}".rstrip()
    return f"{word} (not written)" if entry.validate_only else word


def _revision(entry: Any) -> str:
    return str(entry.revision) if entry.revision else ""
