"""watch, sync, status, events, version: what is going on."""

from __future__ import annotations

import click

from tealnet.cli import output
from tealnet.cli.objects import KindParam, events_of, tenant_option, wait_for
from tealnet.cli.session import Failure, Session, errors, pass_session
from tealnet.kinds import Kind


@click.command()
@click.argument("kinds", nargs=-1, type=KindParam())
@tenant_option
@click.option("-l", "--selector", default="", help="Label selector.")
@click.option("--spec-only", is_flag=True, help="Leave out changes of status alone.")
@click.option("--resume", default=0, help="Go on after this revision.")
@click.option("--count", default=0, help="End after so many changes.")
@pass_session
def watch(
    session: Session, *, kinds: tuple[Kind, ...], tenant: str, selector: str, spec_only: bool, resume: int, count: int
) -> None:
    """Follow changes: a line each, after all that there is."""
    from tealnet.v1 import system_pb2

    session.tenant = tenant or session.tenant
    parent = session.parent(required=False)
    request = system_pb2.WatchRequest(
        parent="" if parent == "tenants/-" else parent,
        kinds=[kind.name for kind in kinds],
        filter=selector,
        spec_only=spec_only,
        resume_revision=resume,
    )
    seen = 0
    with errors():
        for response in session.client.watch(request):
            word = system_pb2.WatchResponse.Type.Name(response.type).removeprefix("TYPE_")
            if word == "BOOKMARK":
                continue
            if word == "SYNCED":
                click.echo(f"{response.revision:>8}  SYNCED")
                continue
            which = response.object.WhichOneof("object")
            item = getattr(response.object, which)
            state = output.state_of(item) if which in ("port", "host") else ""
            click.echo(f"{response.revision:>8}  {word:<8}  {item.name}  {state}".rstrip())
            seen += 1
            if count and seen >= count:
                return


@click.command()
@click.argument("parent", default="")
@click.option("--revision", default=0, help="0 = everything up to now.")
@click.option("--timeout", default=10.0, help="Seconds.")
@pass_session
def sync(session: Session, *, parent: str, revision: int, timeout: float) -> None:
    """Wait until the data plane has everything. PARENT: tenants/acme, tenants/acme/networks/web … or nothing.

    Exit codes: 0 complete, 3 all live hosts but some disconnected, 4 timeout, 5 failures.
    """
    with errors():
        wait_for(session, parent=parent, timeout=timeout, revision=revision)


@click.command()
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "yaml"]), default="table")
@pass_session
def status(session: Session, *, form: str) -> None:
    """One screen: store, replicas, hosts, who is behind."""
    with errors():
        found = session.client.status()
    if form != "table":
        output.dump(output.as_dict(found), form)
        return
    click.echo(f"cluster {found.cluster} ({found.cluster_uid[:8]}) at revision {found.revision}")
    if found.HasField("stale_since"):
        click.secho(f"STALE since {found.stale_since.ToJsonString()}: the store does not answer", fg="red")
    click.echo(f"{found.tenants} tenants, {found.networks} networks, {found.routers} routers, {found.ports} ports")
    states = "  ".join(f"{_state(c.state)} {c.count}" for c in found.port_states if c.count)
    if states:
        click.echo(f"ports: {states}")
    click.echo()
    output.table(
        ["ETCD", "HEALTHY", "VERSION", "SIZE"],
        [
            [
                m.endpoint + (" (leader)" if m.leader else ""),
                "yes" if m.healthy else "NO",
                m.version,
                f"{m.db_size_bytes >> 10} KiB",
            ]
            for m in found.etcd
        ],
    )
    click.echo()
    output.table(
        ["REPLICA", "SESSIONS", "LOW WATER", "VERSION"],
        [
            [r.id + (" (chores)" if r.chores else ""), str(r.sessions), str(r.low_water), r.version]
            for r in found.replicas
        ],
    )
    click.echo()
    rows = []
    for host in found.hosts:
        lag = max(0, found.revision - host.status.synced_revision) if host.status.synced_revision else 0
        rows.append(
            [
                output.short(host.name),
                output.state_of(host),
                host.vtep,
                str(host.status.ports),
                str(host.status.failed or ""),
                str(host.status.unaccounted or ""),
                str(lag or ""),
                ",".join(c.type for c in host.status.conditions),
            ]
        )
    output.table(["HOST", "STATE", "VTEP", "PORTS", "FAILED", "UNACCOUNTED", "BEHIND", "CONDITIONS"], rows)


def _state(number: int) -> str:
    from tealnet.v1 import port_pb2

    return port_pb2.PortStatus.State.Name(port_pb2.PortStatus.State.ValueType(number)).removeprefix("STATE_")


@click.command()
@click.argument("name", default="")
@pass_session
def events(session: Session, *, name: str) -> None:
    """What happened to an object: `teal events tenants/acme/ports/web-1`, `teal events hosts/h1`; all without NAME."""
    from tealnet.kinds import kind_of

    if name:
        try:
            kind_of(name)
        except ValueError as error:
            raise Failure(str(error), code=2) from None
    with errors():
        found = events_of(session, name)
    output.table(
        ["TIME", "OBJECT", "REASON", "ACTOR", "TEXT"],
        [[e.time.ToJsonString(), e.name, e.reason, e.actor, e.text] for e in found],
    )


@click.command()
@pass_session
def version(session: Session) -> None:
    """Versions of this command and of the controller."""
    from importlib.metadata import version as package_version

    from tealnet.v1 import system_pb2

    click.echo(f"teal        {package_version('tealnet')}")
    try:
        with errors():
            found = session.client.call(session.client.system.GetVersion, system_pb2.GetVersionRequest())
        click.echo(f"controller  {found.version} (API {found.api})")
    except Failure as failure:
        click.echo(f"controller  not reachable: {failure.message}")
