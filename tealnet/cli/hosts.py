"""host add|describe|drain|fence|accept, and `hosts`."""

from __future__ import annotations

import click

from tealnet import kinds
from tealnet.cli import output
from tealnet.cli.create import labels_option, pairs_of
from tealnet.cli.objects import describe, output_option
from tealnet.cli.session import Session, errors, pass_session


@click.group()
def host() -> None:
    """Machines with an agent."""


@click.command("hosts")
@output_option
@pass_session
def hosts(session: Session, *, form: str) -> None:
    """All hosts with their state."""
    with errors():
        found = list(session.client.list_all(kinds.HOST))
    output.show(kinds.HOST, found, form)


@host.command("add")
@click.argument("name")
@click.option("--vtep", default="", help="Tunnel address; empty = pinned at first contact.")
@click.option("--ttl", default=3600, help="Seconds that the token lives.")
@labels_option
@pass_session
def add(session: Session, *, name: str, vtep: str, ttl: int, labels: tuple[str, ...]) -> None:
    """Create a host and a one-time join token; prints what to run on the machine."""
    import grpc

    from tealnet.client import ApiError
    from tealnet.v1 import host_pb2

    with errors():
        try:
            session.client.create(kinds.HOST, ident=name, body=host_pb2.Host(vtep=vtep, labels=pairs_of(labels)))
            click.echo(f"host/{name} created")
        except ApiError as error:
            if error.code is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            click.echo(f"host/{name} exists; a new token:")
        request = host_pb2.CreateJoinTokenRequest(name=f"hosts/{name}")
        request.ttl.FromSeconds(ttl)
        token = session.client.call(session.client.hosts.CreateJoinToken, request)
    server = session.settings()["server"]
    click.echo("on the machine, run (the join listener's port is 7444 by default):\n")
    click.echo(
        f"  teal-agent join --host {name} --server {server.rpartition(':')[0] or server}:7444 \\\n"
        f"    --token {token.token} \\\n    --ca-sha256 {token.ca_sha256}\n"
    )
    click.echo(f"the token works once, until {token.expire_time.ToJsonString()}")


@host.command("describe")
@click.argument("name")
@click.pass_context
def host_describe(ctx: click.Context, *, name: str) -> None:
    """Fields, state, conditions with remedies, events."""
    ctx.invoke(describe, kind=kinds.HOST, name=name, tenant="")


@host.command("drain")
@click.argument("name")
@pass_session
def drain(session: Session, *, name: str) -> None:
    """Take no new ports on a host; lists those still there."""
    from tealnet.v1 import host_pb2

    with errors():
        full = session.name_of(kinds.HOST, name)
        answer = session.client.call(session.client.hosts.DrainHost, host_pb2.DrainHostRequest(name=full))
    click.echo(f"host/{name} takes no new ports; {len(answer.ports)} still there")
    for port in answer.ports:
        click.echo(f"  {port}")


@host.command("fence")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def fence(session: Session, *, name: str, yes: bool) -> None:
    """Treat a silent host as gone: refuse its certificate, withdraw its endpoints, free what waits for it."""
    from tealnet.v1 import host_pb2

    if not yes:
        click.confirm(f"fence {name}? Its certificate will be refused and its ports withdrawn from others", abort=True)
    with errors():
        full = session.name_of(kinds.HOST, name)
        session.client.call(session.client.hosts.FenceHost, host_pb2.FenceHostRequest(name=full))
    click.echo(f"host/{name} fenced")


@host.command("accept")
@click.argument("name", default="")
@click.option("--all", "all_", is_flag=True, help="Every host that waits for it.")
@pass_session
def accept(session: Session, *, name: str, all_: bool) -> None:
    """Let a host go on whose store has another history, or drop its unaccounted ports."""
    if all_ == bool(name):
        raise click.UsageError("give a host's name or --all")
    with errors():
        answer = session.client.accept("hosts/-" if all_ else session.name_of(kinds.HOST, name))
    for accepted in answer.hosts:
        click.echo(f"{accepted} accepted")
    if not answer.hosts:
        click.echo("nothing to accept")
