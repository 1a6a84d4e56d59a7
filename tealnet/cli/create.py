"""create KIND NAME, one command per kind with the fields as options; and move."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict, Unpack

import click

from tealnet import kinds
from tealnet.cli import output
from tealnet.cli.group import Suggesting
from tealnet.cli.options import output_option, tenant_option, wait_options, weight_of
from tealnet.cli.session import Failure, Session, pass_session
from tealnet.cli.targets import complete_colors, complete_names
from tealnet.cli.waiting import wait_for
from tealnet.kinds import Kind

_hosts, _networks, _routers = complete_names(kinds.HOST), complete_names(kinds.NETWORK), complete_names(kinds.ROUTER)
_groups = complete_names(kinds.GROUP)
_ATTACH = {"netns": "NETNS", "netns-path": "NETNS_PATH", "device": "DEVICE"}
_COUNT = click.IntRange(0, 2**32 - 1)


@click.group(cls=Suggesting)
def create() -> None:
    """Create one tenant, network, router, security group, port, policy tier or host.

    \b
      teal create tenant acme
      teal create router main -t acme
      teal create network web -t acme --cidr 10.0.0.0/24 --cidr fd00::/64 --router main
      teal create group web -t acme --ingress 'tcp 80,443 from anyone' --egress any
      teal create port web-1 -t acme --network web --group web --host h1 --wait

    For many, and to change them later: `teal apply -f FILE`.
    """


def labels_option(function: Any) -> Any:
    """--label key=value, repeatable."""
    return click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label; repeatable.")(function)


def pairs_of(labels: tuple[str, ...]) -> dict[str, str]:
    """Labels as typed; refuses what has no `=`."""
    result: dict[str, str] = {}
    for label in labels:
        key, equals, value = label.partition("=")
        if not equals:
            raise click.BadParameter(f"{label!r} is not KEY=VALUE", param_hint="--label")
        result[key] = value
    return result


class Ending(TypedDict):
    """How a command ends: what it prints, and whether it waits."""

    form: str
    wait: bool
    timeout: float


def ending(function: Any) -> Any:
    """--output, --wait and --timeout."""
    return wait_options()(output_option(function))


def finish(session: Session, kind: Kind, name: str, body: Any, **end: Unpack[Ending]) -> None:
    """Create, print, wait. `name` is the whole resource name."""
    parent = "/".join(name.split("/")[:2]) if kind.owned else ""
    made = session.client.create(kind, ident=output.short(name), body=body, parent=parent)
    plain = end["form"] in ("table", "wide")
    if plain:
        click.echo(f"{output.title(made.name)} created")
    said = ""
    if end["wait"]:
        scope = "" if kind in (kinds.HOST, kinds.TIER) else made.name
        only = [made.name] if kind is kinds.PORT else []  # failures of others' ports are not this one's
        said = wait_for(session, parents=[scope], timeout=end["timeout"], revision=made.revision, only=only)
        made = session.client.get(made.name)
    if kind is kinds.PORT and plain:
        said = "; ".join(filter(None, [port_in_words(made), said]))
    if said:
        click.echo(said, err=not plain)
    if not plain:
        output.show_one(kind, made, end["form"])


def port_in_words(port: Any) -> str:
    """active on h1: 10.0.0.2 fd00::2"""
    addresses = " ".join(port.addresses)
    if not port.host:
        return f"{addresses}, on no host yet: `teal move {output.named(port.name)} --to HOST`"
    state = output.state_of(port) if port.status.state else "PENDING"
    return f"{state.lower()} on {output.short(port.host)}: {addresses}"


def owned(session: Session, kind: Kind, name: str, tenant: str) -> str:
    """The whole name of a new object; short names of others mean its own tenant from here on."""
    session.tenant = tenant
    full = session.name_of(kind, name)
    session.tenant = full.split("/")[1]
    return full


@create.command("tenant")
@click.argument("name")
@labels_option
@click.option("--host-label", "host_labels", multiple=True, metavar="KEY=VALUE", help="Only hosts with this label.")
@click.option("--attach", multiple=True, type=click.Choice(list(_ATTACH)), help="What it may attach. [netns]")
@click.option("--max-ports", default=0, type=_COUNT, help="Quota; 0: the controller's default.")
@click.option("--max-networks", default=0, type=_COUNT, help="Quota; 0: the controller's default.")
@click.option("--max-routers", default=0, type=_COUNT, help="Quota; 0: the controller's default.")
@click.option("--max-groups", default=0, type=_COUNT, help="Quota of security groups; 0: the controller's default.")
@click.option("--max-rollouts", default=0, type=_COUNT, help="Quota; 0: the controller's default.")
@click.option(
    "--issue-cert", type=click.Path(path_type=Path), metavar="DIR", help="Write a certificate of its admin there."
)
@click.option("--pki", type=click.Path(path_type=Path), metavar="DIR", help="Where ca.crt and ca.key are.")
@ending
@pass_session
def create_tenant(
    session: Session,
    *,
    name: str,
    labels: tuple[str, ...],
    host_labels: tuple[str, ...],
    attach: tuple[str, ...],
    max_ports: int,
    max_networks: int,
    max_routers: int,
    max_groups: int,
    max_rollouts: int,
    issue_cert: Path | None,
    pki: Path | None,
    **end: Unpack[Ending],
) -> None:
    """A tenant: owner and isolation boundary (admins only).

    \b
      teal create tenant acme
      teal create tenant acme --host-label rack=7 --attach netns --attach device --max-ports 50
      teal create tenant acme --pki ca --issue-cert acme
    """
    from tealnet.v1 import tenant_pb2

    full = session.name_of(kinds.TENANT, name)
    body = tenant_pb2.Tenant(labels=pairs_of(labels))
    if host_labels or attach:
        granted = [f"ATTACHMENT_KIND_{_ATTACH[a]}" for a in attach]
        body.placement.MergeFrom(tenant_pb2.Placement(kinds=granted, host_selector=pairs_of(host_labels)))
    quota = tenant_pb2.Quota(
        ports=max_ports,
        networks=max_networks,
        routers=max_routers,
        security_groups=max_groups,
        rollouts=max_rollouts,
    )
    if quota.ListFields():
        body.quota.CopyFrom(quota)
    if issue_cert and not pki:
        raise click.UsageError("--issue-cert needs --pki DIR, the folder with ca.crt and ca.key")
    finish(session, kinds.TENANT, full, body, **end)
    if issue_cert and pki:
        _issue(pki, output.short(full), issue_cert)


def _issue(pki: Path, tenant: str, directory: Path) -> None:
    from tealnet.core.pki import Ca, PkiError

    try:
        cert, key = Ca.load(pki).issue(f"tenant/{tenant}/admin").save(directory, f"tenant-{tenant}-admin")
    except PkiError as error:
        raise Failure(f"the tenant was created, but no certificate: {error}") from None
    click.echo(f"{cert}\n{key} (keep it secret)")


@create.command("network")
@click.argument("name")
@tenant_option
@click.option("--cidr", "cidrs", multiple=True, required=True, help="v4 or v6 prefix; repeatable.")
@click.option("--gateway", "gateways", multiple=True, metavar="ADDRESS", help="Instead of a CIDR's first address.")
@click.option("--reserve", "reserved", multiple=True, help="Never given out: ADDRESS, A-B or a prefix.")
@click.option("--router", default="", help="The router (routing domain) to attach to.", shell_complete=_routers)
@click.option("--mtu", default=0, type=_COUNT, help="Of the workloads' interfaces; 0: the controller's default.")
@click.option("--dns", multiple=True, metavar="ADDRESS", help="DNS server; repeatable.")
@click.option(
    "--policy",
    type=click.Choice(["enforce", "off"]),
    default="enforce",
    help="off: all ports trust each other. [enforce]",
)
@click.option(
    "--color", "colors", multiple=True, help="A color: blue, green, …; repeatable. `teal color -h` says more."
)
@click.option(
    "--weight", "weights", multiple=True, metavar="COLOR=WEIGHT", help="How traffic begins; default: all to the first."
)
@labels_option
@ending
@pass_session
def create_network(
    session: Session,
    *,
    name: str,
    tenant: str,
    cidrs: tuple[str, ...],
    gateways: tuple[str, ...],
    reserved: tuple[str, ...],
    router: str,
    mtu: int,
    dns: tuple[str, ...],
    policy: str,
    colors: tuple[str, ...],
    weights: tuple[str, ...],
    labels: tuple[str, ...],
    **end: Unpack[Ending],
) -> None:
    """A network: v4 and v6 prefixes of a tenant. Other tenants may have the same.

    \b
      teal create network acme/web --cidr 10.0.0.0/24 --cidr fd00::/64 --router main
      teal create network acme/web --cidr 10.0.0.0/24 --color blue --color green
    """
    from tealnet.v1 import network_pb2

    full = owned(session, kinds.NETWORK, name, tenant)
    body = network_pb2.Network(
        cidrs=cidrs,
        gateways=gateways,
        reserved_ranges=reserved,
        mtu=mtu,
        labels=pairs_of(labels),
        policy=f"POLICY_{policy.upper()}",
        colors=colors,
    )
    for word in weights:
        color, weight = weight_of(word, hint="--weight")
        body.initial_weights[color] = weight
    if router:
        body.router = session.name_of(kinds.ROUTER, router)
    body.dns.servers.extend(dns)
    finish(session, kinds.NETWORK, full, body, **end)


@create.command("router")
@click.argument("name")
@tenant_option
@click.option("--route", "routes", multiple=True, metavar="PREFIX=NEXT_HOP", help="Static route; repeatable.")
@labels_option
@ending
@pass_session
def create_router(
    session: Session, *, name: str, tenant: str, routes: tuple[str, ...], labels: tuple[str, ...], **end: Unpack[Ending]
) -> None:
    """A router: the networks attached to it reach each other.

    \b
      teal create router acme/main --route 192.168.0.0/16=10.0.0.254
    """
    from tealnet.v1 import router_pb2

    full = owned(session, kinds.ROUTER, name, tenant)
    body = router_pb2.Router(labels=pairs_of(labels))
    for route in routes:
        prefix, equals, hop = route.partition("=")
        if not equals:
            raise click.BadParameter(f"{route!r} is not PREFIX=NEXT_HOP", param_hint="--route")
        body.routes.add(prefix=prefix, next_hop=hop)
    finish(session, kinds.ROUTER, full, body, **end)


@create.command("port")
@click.argument("name")
@tenant_option
@click.option("--network", required=True, help="The network.", shell_complete=_networks)
@click.option(
    "--color",
    default="",
    help="Of a network with colors: which; needed if it has several.",
    shell_complete=complete_colors,
)
@click.option("--host", default="", help="The host; left out: on none yet.", shell_complete=_hosts)
@click.option("--address", "addresses", multiple=True, help="Instead of an automatic one; repeatable.")
@click.option("--mac", default="", help="Instead of the derived one.")
@click.option("--allowed", multiple=True, metavar="PREFIX", help="Further source that it may send from; repeatable.")
@click.option("--group", "groups", multiple=True, help="Security group; repeatable. [default]", shell_complete=_groups)
@click.option("--namespace", default="", help="Workload namespace; default: the port's name.")
@click.option("--interface", default="", help="Interface inside it. [eth0]")
@click.option("--path", default="", help="Attach to an existing namespace, by path (needs a grant).")
@click.option("--device", default="", help="Attach an existing device of the host (needs a grant).")
@labels_option
@ending
@pass_session
def create_port(
    session: Session,
    *,
    name: str,
    tenant: str,
    network: str,
    color: str,
    host: str,
    addresses: tuple[str, ...],
    mac: str,
    allowed: tuple[str, ...],
    groups: tuple[str, ...],
    namespace: str,
    interface: str,
    path: str,
    device: str,
    labels: tuple[str, ...],
    **end: Unpack[Ending],
) -> None:
    """A port: the attachment of a workload to a network, on a host.

    \b
      teal create port acme/web-1 --network web --host h1 --wait
      teal create port acme/db-web --network web --host h1 --namespace db-1 --interface eth1
      teal create port acme/web-1g --network web --color green --address 10.0.0.5 --host h2    a twin of a blue one
    """
    from tealnet.v1 import port_pb2

    if path and device:
        raise click.UsageError("--path and --device exclude each other")
    full = owned(session, kinds.PORT, name, tenant)
    kind = "NETNS_PATH" if path else "DEVICE" if device else "NETNS"
    body = port_pb2.Port(
        network=session.name_of(kinds.NETWORK, network),
        color=color,
        host=session.name_of(kinds.HOST, host) if host else "",
        attachment=port_pb2.Attachment(
            kind=f"ATTACHMENT_KIND_{kind}", namespace=namespace, interface=interface, path=path, device=device
        ),
        addresses=addresses,
        mac=mac,
        allowed_addresses=allowed,
        security_groups=[session.name_of(kinds.GROUP, group) for group in groups],
        labels=pairs_of(labels),
    )
    finish(session, kinds.PORT, full, body, **end)


@create.command("host")
@click.argument("name")
@click.option("--vtep", default="", metavar="ADDRESS", help="Tunnel address; left out: pinned at first contact.")
@labels_option
@ending
@pass_session
def create_host(session: Session, *, name: str, vtep: str, labels: tuple[str, ...], **end: Unpack[Ending]) -> None:
    """A host that has its certificate already. For one that is to join with a token: `teal host add`.

    \b
      teal create host h4 --vtep 192.0.2.4 --label rack=7
    """
    from tealnet.v1 import host_pb2

    body = host_pb2.Host(vtep=vtep, labels=pairs_of(labels))
    finish(session, kinds.HOST, session.name_of(kinds.HOST, name), body, **end)


@click.command()
@click.argument("name", metavar="PORT", shell_complete=complete_names(kinds.PORT))
@tenant_option
@click.option("--to", "host", required=True, metavar="HOST", help="Where it goes.", shell_complete=_hosts)
@wait_options(default=True)
@pass_session
def move(session: Session, *, name: str, tenant: str, host: str, wait: bool, timeout: float) -> None:
    """Move a port to another host, make before break; also binds one that has no host yet.

    \b
      teal move acme/web-2 --to h3
    """
    from tealnet.v1 import port_pb2

    full = owned(session, kinds.PORT, name, tenant)
    before = session.client.get(full)
    moved = session.client.update(port_pb2.Port(name=full, host=session.name_of(kinds.HOST, host)), mask=["host"])
    if moved.host == before.host:
        click.echo(f"{output.title(full)} is on {output.short(moved.host)} already")
        return
    origin = f"from {output.short(before.host)} " if before.host else ""
    click.echo(f"{output.title(full)} moves {origin}to {output.short(moved.host)}")
    if wait:
        said = wait_for(session, parents=[full], timeout=timeout, revision=moved.revision, only=[full])
        click.echo(f"{port_in_words(session.client.get(full))}; {said}")
