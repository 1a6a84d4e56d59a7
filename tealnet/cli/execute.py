"""exec PORT -- CMD: run a command where the workload lives."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from tealnet import kinds
from tealnet.cli import output
from tealnet.cli.objects import tenant_option
from tealnet.cli.session import Failure, Session, errors, pass_session


@click.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("port")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@tenant_option
@pass_session
def execute(session: Session, *, port: str, command: tuple[str, ...], tenant: str) -> None:
    """Run CMD in a port's namespace: `teal exec acme/web-1 -- ping 10.0.0.2`.

    On a lab from anywhere on this machine, else as root on the port's own host.
    """
    session.tenant = tenant or session.tenant
    with errors():
        found = session.client.get(session.name_of(kinds.PORT, port))
    path = namespace_path(found)
    lab = session.settings().get("lab")
    if lab:
        from tealnet.lab import Lab

        argv = Lab.load(lab).argv_in_netns(output.short(found.host), path, list(command))
    else:
        if os.geteuid() != 0:
            raise Failure(f"run this as root on {output.short(found.host)}, the port's host")
        if not os.path.exists(path):
            raise Failure(f"{path} is not on this machine; the port is on {output.short(found.host)}")
        argv = ["nsenter", f"--net={path}", "--", *command]
    sys.stdout.flush()
    os.execvp(argv[0], argv)


def namespace_path(port: Any) -> str:
    """The path of a port's namespace on its host."""
    if not port.host:
        raise Failure(f"{port.name} has no host yet; bind it with `teal move`")
    if port.attachment.device:
        raise Failure(f"{port.name} is attached to a device ({port.attachment.device}); it has no namespace to enter")
    if port.attachment.path:
        return str(port.attachment.path)
    return f"/run/netns/{output.tenant_of(port.name)}.{port.attachment.namespace or output.short(port.name)}"
