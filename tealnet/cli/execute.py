"""exec PORT -- CMD: run a command where the workload lives."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from tealnet import kinds
from tealnet.cli import output
from tealnet.cli.options import tenant_option
from tealnet.cli.session import Failure, Session, pass_session
from tealnet.cli.targets import complete_names


@click.command("exec", context_settings={"allow_interspersed_args": False})
@tenant_option
@click.argument("port", shell_complete=complete_names(kinds.PORT))
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_session
def execute(session: Session, *, port: str, command: tuple[str, ...], tenant: str) -> None:
    """Run a command where a port's workload lives: in its network namespace.

    \b
      teal exec acme/web-1 -- ping -c3 10.0.0.20
      teal exec acme/web-1 -- ip addr

    In a lab from anywhere on its machine, else on the port's own host; as root. Its exit code is the command's.
    """
    session.tenant = tenant
    words = command[1:] if command[:1] == ("--",) else command
    if not words:
        raise click.UsageError("which command? For example: teal exec acme/web-1 -- ip addr")
    found = session.client.get(session.name_of(kinds.PORT, port))
    path = namespace_path(found)
    host, lab = output.short(found.host), session.settings().get("lab")
    if os.geteuid() != 0:
        raise Failure("entering a namespace needs root: use sudo")
    if lab:
        from tealnet.lab import Lab

        argv = Lab.load(lab).argv_in_netns(host, path, list(words))
        there = Lab.load(lab).host(host).run(["test", "-e", path]).returncode == 0
    else:
        there = os.path.exists(path)
        argv = ["nsenter", f"--net={path}", "--", *words]
    if not there:
        where = f"on {host}" if lab else f"on this machine; is this {host}?"
        raise Failure(f"no namespace {path} {where}\n  {output.title(found.name)} is {output.state_of(found)} there")
    session.client.close()
    sys.stdout.flush()
    os.execvp(argv[0], argv)


def namespace_path(port: Any) -> str:
    """The path of a port's namespace on its host."""
    if not port.host:
        raise Failure(
            f"{output.title(port.name)} has no host yet; `teal move {output.named(port.name)} --to HOST` binds it"
        )
    if port.attachment.device:
        device = port.attachment.device
        raise Failure(f"{output.title(port.name)} is attached to the device {device}; it has no namespace to enter")
    if port.attachment.path:
        return str(port.attachment.path)
    return f"/run/netns/{output.tenant_of(port.name)}.{port.attachment.namespace or output.short(port.name)}"
