"""status: one screen for whoever wants to know whether all is well."""

from __future__ import annotations

import shutil
from typing import Any

import click

from tealnet.cli import output
from tealnet.cli.session import Session, pass_session

_FRAME = 14  # lines beside the hosts
_LEAST = 8


@click.command()
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "yaml"]), default="table")
@click.option("--all", "every", is_flag=True, help="Every host, also where they do not fit the screen.")
@pass_session
def status(session: Session, *, form: str, every: bool) -> None:
    """Is all well? Store, replicas, hosts, who is behind: one screen.

    \b
      teal status
      watch -n2 teal status

    Hosts that need attention stand first. Exit code 0 also when they do: `teal sync` is made for scripts.
    """
    found = session.client.status()
    if form != "table":
        output.dump(output.as_dict(found), form)
        return
    _summary(session, found)
    if found.etcd:
        click.echo()
        output.table(["STORE", "HEALTHY", "VERSION", "SIZE"], [_member(member) for member in found.etcd])
    if found.replicas:
        click.echo()
        output.table(
            ["REPLICA", "SESSIONS", "VERSION", "DOES CHORES"],
            [[r.id, str(r.sessions), r.version, "yes" if r.chores else ""] for r in found.replicas],
        )
    if found.hosts:
        click.echo()
        _hosts(found, every=every)


def _summary(session: Session, found: Any) -> None:
    if found.HasField("stale_since"):
        ago = output.ago(found.stale_since)
        click.secho(f"STALE: the store has not answered for {ago}; what follows is from before", fg="red")
    where = f"context {session.settings()['name']}, cluster {found.cluster}, revision {found.revision}"
    click.echo(where)
    counts = [(found.tenants, "tenant"), (found.networks, "network"), (found.routers, "router"), (found.ports, "port")]
    words = [f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts]
    states = {_state(count.state): count.count for count in found.port_states if count.count}
    detail = ", ".join(f"{count} {output.painted(state)}" for state, count in states.items())
    click.echo(", ".join(words) + (f": {detail}" if detail else ""))


def _state(number: int) -> str:
    from tealnet.v1 import port_pb2

    values = port_pb2.PortStatus.DESCRIPTOR.enum_types_by_name["State"].values_by_number
    return values[number].name.removeprefix("STATE_") if number in values else str(number)


def _member(member: Any) -> list[str]:
    name = member.endpoint + (" (leader)" if member.leader else "")
    size = member.db_size_bytes
    shown = f"{size / (1 << 20):.1f} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
    return [name, "yes" if member.healthy else "NO", member.version, shown]


def _hosts(found: Any, *, every: bool) -> None:
    hosts = sorted(found.hosts, key=lambda host: (not _needs_attention(host), output.in_order(host.name)))
    room = max(_LEAST, shutil.get_terminal_size().lines - _FRAME - len(found.etcd) - len(found.replicas))
    shown = hosts if every or len(hosts) <= room else hosts[:room]
    rows = [_host(host, found.revision) for host in shown]
    heads = ["HOST", "STATE", "VTEP", "PORTS", "FAILED", "UNACCOUNTED", "BEHIND BY", "ATTENTION"]
    # Columns that say nothing for any host only take room.
    kept = [i for i, head in enumerate(heads) if head in ("HOST", "STATE", "VTEP", "PORTS") or any(r[i] for r in rows)]
    output.table([heads[i] for i in kept], [[row[i] for i in kept] for row in rows])
    if len(shown) < len(hosts):
        worse = sum(1 for host in hosts[len(shown) :] if _needs_attention(host))
        click.echo(f"… and {len(hosts) - len(shown)} more, {worse} of them in need of attention (--all shows them)")
    for host in shown:
        for condition in host.status.conditions:
            click.secho(f"! {output.short(host.name)}: {condition.type}: {condition.text}", fg="yellow")
            if condition.remedy:
                click.echo(f"  what to do: {condition.remedy}")


def _needs_attention(host: Any) -> bool:
    from tealnet.v1 import host_pb2

    status = host.status
    well = status.state == host_pb2.Host.STATE_READY and not (status.failed or status.unaccounted)
    return not well or len(status.conditions) > 0


def _host(host: Any, revision: int) -> list[str]:
    status = host.status
    state = output.state_of(host)
    if status.since.seconds and state != "READY":
        state += f" for {output.ago(status.since)}"
    if host.drained:
        state += " (drained)"
    lag = max(0, revision - status.synced_revision) if status.synced_revision else 0
    return [
        output.short(host.name),
        state,
        host.vtep,
        str(status.ports),
        str(status.failed or ""),
        str(status.unaccounted or ""),
        f"{lag} revisions" if lag else "",
        ", ".join(condition.type for condition in status.conditions),
    ]
