"""host add|describe|drain|undrain|fence|unfence|accept, and `hosts`."""

from __future__ import annotations

import click

from tealnet import kinds
from tealnet.cli import output
from tealnet.cli.create import labels_option, pairs_of
from tealnet.cli.describe import show
from tealnet.cli.group import Suggesting
from tealnet.cli.options import Seconds, confirm, output_option, selector_option, yes_option
from tealnet.cli.session import Session, pass_session
from tealnet.cli.targets import Target, complete_names

host_argument = click.argument("name", metavar="HOST", shell_complete=complete_names(kinds.HOST))
_JOIN_PORT = 7444
_DAY = 86400.0


@click.group(cls=Suggesting)
def host() -> None:
    """Machines with an agent: let them join, look at them, take them out.

    \b
      teal host add h4 --vtep 192.0.2.4    prints what to run on the machine
      teal host describe h4
      teal host drain h4                   takes no new ports; lists those to move
    """


@click.command("hosts")
@selector_option
@output_option
@pass_session
def hosts(session: Session, *, selector: str, form: str) -> None:
    """All hosts with their state: short for `teal get hosts`.

    \b
      teal hosts
      teal hosts -o wide -l rack=7
    """
    output.show([(kinds.HOST, list(session.client.list_all(kinds.HOST, filter_=selector)))], form)


@host.command("add")
@click.argument("name", metavar="HOST")
@click.option("--vtep", default="", metavar="ADDRESS", help="Tunnel address; left out: pinned at first contact.")
@click.option(
    "--ttl", type=Seconds(longest=_DAY), default=3600.0, metavar="TIME", help="How long the token lives: 30m, 2h. [1h]"
)
@labels_option
@pass_session
def add(session: Session, *, name: str, vtep: str, ttl: float, labels: tuple[str, ...]) -> None:
    """Let a machine join: prints what to run on it.

    \b
      teal host add h4 --vtep 192.0.2.4 --label rack=7

    Makes the host and a one-time token. A host that exists gets a new token.
    """
    import grpc

    from tealnet.client import ApiError
    from tealnet.v1 import host_pb2

    full = session.name_of(kinds.HOST, name)
    ident = output.short(full)
    try:
        session.client.create(kinds.HOST, ident=ident, body=host_pb2.Host(vtep=vtep, labels=pairs_of(labels)))
        click.echo(f"host {ident} created")
    except ApiError as error:
        if error.code is not grpc.StatusCode.ALREADY_EXISTS:
            raise
        click.echo(f"host {ident} exists already; this is a new token for it")
    request = host_pb2.CreateJoinTokenRequest(name=full)
    request.ttl.FromSeconds(int(ttl))
    token = session.client.call(session.client.hosts.CreateJoinToken, request)
    server = str(session.settings()["server"]).split(",")[0]
    address = "CONTROLLER" if server.startswith("unix:") else server.rpartition(":")[0]
    click.echo(f"run on {ident}, as root, until {output.moment(token.expire_time)} (the token works once):\n")
    click.echo(
        f"  teal-agent join --host {ident} --server {address}:{_JOIN_PORT} \\\n"
        f"    --token {token.token} \\\n    --ca-sha256 {token.ca_sha256}\n"
    )
    click.echo(
        f"{_JOIN_PORT} is the default port of the controller's join listener (its setting join_listen)", err=True
    )


@host.command("describe")
@host_argument
@pass_session
def host_describe(session: Session, *, name: str) -> None:
    """Everything about a host: state, conditions, ports, events.

    \b
      teal host describe h1
    """
    show(session, Target(kinds.HOST, session.name_of(kinds.HOST, name)))


@host.command("drain")
@host_argument
@pass_session
def drain(session: Session, *, name: str) -> None:
    """Take no new ports on a host; lists those still there.

    \b
      teal host drain h1
      teal host undrain h1    takes it back
    """
    from tealnet.v1 import host_pb2

    full = session.name_of(kinds.HOST, name)
    answer = session.client.call(session.client.hosts.DrainHost, host_pb2.DrainHostRequest(name=full))
    click.echo(f"host {output.short(full)} takes no new ports; {len(answer.ports) or 'none'} still there")
    for port in answer.ports:
        click.echo(f"  {output.title(port)}")
    if answer.ports:
        click.echo("move them with `teal move PORT --to HOST`", err=True)


def _update(session: Session, name: str, **fields: bool) -> str:
    from tealnet.v1 import host_pb2

    full = session.name_of(kinds.HOST, name)
    session.client.update(host_pb2.Host(name=full, **fields), mask=list(fields))  # type: ignore[arg-type]
    return output.short(full)


@host.command("undrain")
@host_argument
@pass_session
def undrain(session: Session, *, name: str) -> None:
    """Take new ports on a host again.

    \b
      teal host undrain h1
    """
    click.echo(f"host {_update(session, name, drained=False)} takes new ports")


@host.command("fence")
@host_argument
@yes_option
@pass_session
def fence(session: Session, *, name: str, yes: bool) -> None:
    """Treat a silent host as gone.

    \b
      teal host fence h4
      teal host unfence h4    takes it back

    Its certificate is refused, its endpoints are withdrawn, what waits for it is freed. The machine itself may forward
    still: switch it off first if you can.
    """
    from tealnet.v1 import host_pb2

    full = session.name_of(kinds.HOST, name)
    found = session.client.get(full)
    if not yes:
        ports = f"its {found.status.ports} ports are" if found.status.ports != 1 else "its port is"
        confirm(
            f"fence {output.short(full)} ({output.state_of(found)})? Its agent is refused, {ports} unreachable then"
        )
    session.client.call(session.client.hosts.FenceHost, host_pb2.FenceHostRequest(name=full))
    click.echo(f"host {output.short(full)} is fenced")


@host.command("unfence")
@host_argument
@pass_session
def unfence(session: Session, *, name: str) -> None:
    """Let a fenced host come back.

    \b
      teal host unfence h4 && teal host add h4

    Its certificate has been revoked: it needs a new one.
    """
    ident = _update(session, name, fenced=False)
    click.echo(f"host {ident} may come back; it needs a new certificate: `teal host add {ident}`")


@host.command("accept")
@click.argument("name", metavar="[HOST]", default="", shell_complete=complete_names(kinds.HOST))
@click.option("--all", "all_", is_flag=True, help="Every host that waits for it.")
@pass_session
def accept(session: Session, *, name: str, all_: bool) -> None:
    """Let a host go on after its store was restored or replaced.

    \b
      teal host accept h4
      teal host accept --all

    Also lets it drop ports that are unaccounted for: on the host, not in the store, deleted by nobody.
    """
    if all_ == bool(name):
        raise click.UsageError("give a host's name or --all")
    answer = session.client.accept("hosts/-" if all_ else session.name_of(kinds.HOST, name))
    for accepted in answer.hosts:
        click.echo(f"{output.title(accepted)} accepted")
    if not answer.hosts:
        click.echo("no host waits for it", err=True)
