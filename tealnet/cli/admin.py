"""teal admin: backup and restore of the store, its space and its alarms, and the check of everything."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import click

from tealnet.cli import output
from tealnet.cli.group import Suggesting
from tealnet.cli.options import Seconds, confirm, yes_option
from tealnet.cli.session import Failure, Session, pass_session
from tealnet.v1 import admin_pb2

_HASH = 32  # etcd appends the SHA-256 of a snapshot to it


@click.group(cls=Suggesting)
def admin() -> None:
    """Look after the store.

    \b
      teal admin backup tealnet-backup.db
      teal admin defrag
      teal admin alarms
      teal admin check
    """


@admin.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@pass_session
def backup(session: Session, *, file: Path, force: bool) -> None:
    """Save a snapshot of the whole store, secrets included.

    \b
      teal admin backup /srv/backup/tealnet-$(date +%F).db

    The file appears whole and checked, or not at all; only its owner may read it. It is etcd's own format.
    """
    if file.exists() and not force:
        raise Failure(f"{file} exists; --force overwrites it")
    draft = file.with_name(file.name + ".part")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            for answer in session.client.stream(session.client.admin.Backup, admin_pb2.BackupRequest()):
                out.write(answer.part)
            out.flush()
            os.fsync(out.fileno())
        _check(draft)
        draft.replace(file)
    except OSError as error:
        raise Failure(f"{error.filename or file}: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)
    click.echo(f"{file}: {file.stat().st_size >> 10} KiB")


@admin.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False), help="Settings of the controller: its data_dir."
)
@yes_option
def restore(*, file: Path, config: str | None, yes: bool) -> None:
    """Put a backup in the place of the embedded etcd's data. On the controller's machine, while it does not run.

    \b
      systemctl stop tealnet-controller
      teal admin restore /srv/backup/tealnet-2026-11-01.db --config /etc/tealnet/controller.yaml
      systemctl start tealnet-controller
      teal host accept --all

    The former data stays beside the new one. Every host sees that the history is another one and changes nothing until
    it is accepted. What was written since the backup is gone: ports made since then are reported as unaccounted.
    """
    _check(file)
    if not yes:
        confirm(f"Restore {file}? What was written since then is gone.")
    words = [sys.executable, "-m", "controller", "--restore", str(file.absolute())]
    done = subprocess.run([*words, "--config", config] if config else words)
    if done.returncode:
        raise Failure("nothing was restored", code=done.returncode)


@admin.command()
@click.option("--compact", is_flag=True, help="First forget the history, of which half an hour is kept otherwise.")
@pass_session
def defrag(session: Session, *, compact: bool) -> None:
    """Give back the space of deleted keys.

    \b
      teal admin defrag
      teal admin defrag --compact        of a store that is full

    One member of etcd after the other; each serves nothing meanwhile.
    """
    request = admin_pb2.DefragmentRequest(compact=compact)
    found = session.client.call(session.client.admin.Defragment, request, timeout=600)
    rows = [[m.endpoint, _kib(m.before_bytes), _kib(m.after_bytes), m.error or "done"] for m in found.members]
    output.table(["STORE", "BEFORE", "AFTER", ""], rows)
    if any(member.error for member in found.members):
        raise Failure("not all members were defragmented")


@admin.command()
@click.option("--disarm", is_flag=True, help="Switch them off; their cause must be gone.")
@pass_session
def alarms(session: Session, *, disarm: bool) -> None:
    """Alarms of etcd.

    \b
      teal admin alarms
      teal admin defrag --compact && teal admin alarms --disarm

    With NOSPACE it takes no writes until space was given back and the alarm is disarmed.
    """
    api = session.client.admin
    if disarm:
        found = session.client.call(api.DisarmAlarms, admin_pb2.DisarmAlarmsRequest()).alarms
    else:
        found = session.client.call(api.ListAlarms, admin_pb2.ListAlarmsRequest()).alarms
    if not found:
        click.echo("no alarms")
        return
    output.table(["MEMBER", "ALARM", ""], [[a.member, a.kind, "disarmed" if disarm else "on"] for a in found])


@admin.command()
@click.option("--repair", is_flag=True, help="Carry out the repairs that are named; no object is deleted or changed.")
@click.option("--timeout", type=Seconds(longest=60), default=10.0, metavar="TIME", help="How long to ask hosts. [10s]")
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "yaml"]), default="table")
@pass_session
def check(session: Session, *, repair: bool, timeout: float, form: str) -> None:
    """Compare the store with itself and with what every host has.

    \b
      teal admin check
      teal admin check --repair

    Objects, unique keys, references, quota slots and statuses must fit together, and hosts must have what the store
    says. Everything runs on meanwhile. What has no repair is for a person to decide. Exit codes: 0 nothing is left,
    1 findings, 3 hosts without an answer.
    """
    request = admin_pb2.CheckRequest(repair=repair)
    request.timeout.FromNanoseconds(int(timeout * 1e9))
    found = session.client.call(session.client.admin.Check, request, timeout=timeout + 60)
    if form != "table":
        output.dump(output.as_dict(found), form)
    elif found.findings:
        rows = [[f.kind, f.subject, f.text, _repair(f)] for f in found.findings]
        output.table(["FINDING", "WHERE", "WHAT", "REPAIR"], rows)
    if found.more:
        click.echo(f"and {found.more} more", err=True)
    counted = f"{found.intents} objects, {found.keys} keys and {found.hosts} hosts compared at {found.revision}"
    left = found.more + sum(not f.repaired for f in found.findings)
    click.echo(f"{counted}: {left or 'nothing'} {'left ' if repair else ''}to mend", err=form != "table")
    if left:
        sys.exit(1)
    if found.silent_hosts:
        raise Failure(f"not compared: {', '.join(map(output.named, found.silent_hosts))}", code=3)


def _repair(finding: admin_pb2.Finding) -> str:
    return f"{finding.repair}{': done' if finding.repaired else ''}" if finding.repair else "-"


def _kib(size: int) -> str:
    return f"{size >> 10} KiB" if size else ""


def _check(file: Path) -> None:
    """Raises Failure unless it is a whole snapshot."""
    digest, left = hashlib.sha256(), file.stat().st_size - _HASH
    with file.open("rb") as content:
        while left > 0 and (part := content.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
        if left or content.read(_HASH) != digest.digest():
            raise Failure(f"{file} is not a whole snapshot of etcd: its hash does not fit")
