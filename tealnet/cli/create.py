"""create KIND NAME: one command per kind, with the fields as options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tealnet import kinds
from tealnet.cli import output
from tealnet.cli.objects import output_option, tenant_option, wait_for
from tealnet.cli.session import Session, errors, pass_session
from tealnet.kinds import Kind


@click.group()
def create() -> None:
    """Create a tenant, network, router, port or host."""


def labels_option(function: Any) -> Any:
    """--label key=value, repeatable."""
    return click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label; repeatable.")(function)


def wait_options(function: Any) -> Any:
    """--wait, --timeout, -o."""
    function = click.option("--wait/--no-wait", default=False, help="Wait until the data plane has it.")(function)
    function = click.option("--timeout", default=30.0, help="Seconds to wait.")(function)
    return output_option(function)


def pairs_of(labels: tuple[str, ...]) -> dict[str, str]:
    """Labels as typed; refuses what has no `=`."""
    result: dict[str, str] = {}
    for label in labels:
        key, equals, value = label.partition("=")
        if not equals:
            raise click.BadParameter(f"{label!r} is not KEY=VALUE", param_hint="--label")
        result[key] = value
    return result


def _finish(
    session: Session, kind: Kind, *, ident: str, body: Any, parent: str, form: str, wait: bool, timeout: float
) -> Any:
    with errors():
        made = session.client.create(kind, ident=ident, body=body, parent=parent)
        if form == "table":
            click.echo(f"{kind.name}/{ident} created")
        else:
            output.show(kind, [made], form)
        if wait:
            scope = made.name if kind is kinds.PORT or kind is kinds.NETWORK else ""
            wait_for(session, parent=scope, timeout=timeout, revision=made.revision)
            if kind is kinds.PORT:
                made = session.client.get(made.name)
                click.echo(f"{output.state_of(made)} on {output.short(made.host) or '-'}: {' '.join(made.addresses)}")
    return made


@create.command("tenant")
@click.argument("name")
@labels_option
@click.option("--host-label", "host_labels", multiple=True, metavar="KEY=VALUE", help="Only hosts with this label.")
@click.option(
    "--attach",
    "attach",
    multiple=True,
    type=click.Choice(["netns", "netns-path", "device"]),
    help="Granted attachments.",
)
@click.option("--max-ports", default=0, help="Quota; 0 = the controller's default.")
@click.option("--max-networks", default=0)
@click.option("--max-routers", default=0)
@click.option(
    "--issue-cert", type=click.Path(path_type=Path), help="Write a leaf for the tenant's admin to this folder."
)
@click.option("--pki", type=click.Path(path_type=Path), help="Folder with the CA's key, for --issue-cert.")
@wait_options
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
    issue_cert: Path | None,
    pki: Path | None,
    form: str,
    wait: bool,
    timeout: float,
) -> None:
    """A tenant: owner and isolation boundary (admins only)."""
    from tealnet.v1 import tenant_pb2

    words = {"netns": "NETNS", "netns-path": "NETNS_PATH", "device": "DEVICE"}
    body = tenant_pb2.Tenant(labels=pairs_of(labels))
    if host_labels or attach:
        body.placement.host_selector.update(pairs_of(host_labels))
        granted = tenant_pb2.Placement(kinds=[f"ATTACHMENT_KIND_{words[a]}" for a in attach])
        body.placement.MergeFrom(granted)
    if max_ports or max_networks or max_routers:
        body.quota.CopyFrom(tenant_pb2.Quota(ports=max_ports, networks=max_networks, routers=max_routers))
    if issue_cert and not pki:
        raise click.UsageError("--issue-cert needs --pki DIR, the folder with ca.crt and ca.key")
    _finish(session, kinds.TENANT, ident=name, body=body, parent="", form=form, wait=wait, timeout=timeout)
    if issue_cert and pki:
        from tealnet.core.pki import Ca

        Ca.load(pki).issue(f"tenant/{name}/admin").save(issue_cert, f"tenant-{name}")
        click.echo(f"certificate of tenant/{name}/admin in {issue_cert}")


@create.command("network")
@click.argument("name")
@tenant_option
@click.option("--cidr", "cidrs", multiple=True, required=True, help="v4 or v6 prefix; repeatable.")
@click.option("--gateway", "gateways", multiple=True, help="Instead of a CIDR's first address.")
@click.option("--reserve", "reserved", multiple=True, help="Never given out: address, A-B or prefix.")
@click.option("--router", default="", help="The router (routing domain) to attach to.")
@click.option("--mtu", default=0, help="0 = the controller's default.")
@click.option("--dns", "dns", multiple=True, help="DNS server; repeatable.")
@labels_option
@wait_options
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
    labels: tuple[str, ...],
    form: str,
    wait: bool,
    timeout: float,
) -> None:
    """A network: `teal create network web -t acme --cidr 10.0.0.0/24 --cidr fd00::/64`."""
    from tealnet.v1 import network_pb2

    session.tenant = tenant or session.tenant
    body = network_pb2.Network(
        cidrs=cidrs, gateways=gateways, reserved_ranges=reserved, mtu=mtu, labels=pairs_of(labels)
    )
    if router:
        body.router = session.name_of(kinds.ROUTER, router)
    body.dns.servers.extend(dns)
    parent = session.parent(required=True)
    _finish(session, kinds.NETWORK, ident=name, body=body, parent=parent, form=form, wait=wait, timeout=timeout)


@create.command("router")
@click.argument("name")
@tenant_option
@click.option("--route", "routes", multiple=True, metavar="PREFIX=NEXT_HOP", help="Static route; repeatable.")
@labels_option
@wait_options
@pass_session
def create_router(
    session: Session,
    *,
    name: str,
    tenant: str,
    routes: tuple[str, ...],
    labels: tuple[str, ...],
    form: str,
    wait: bool,
    timeout: float,
) -> None:
    """A router: the networks attached to it reach each other."""
    from tealnet.v1 import router_pb2

    session.tenant = tenant or session.tenant
    body = router_pb2.Router(labels=pairs_of(labels))
    for route in routes:
        prefix, equals, hop = route.partition("=")
        if not equals:
            raise click.BadParameter(f"{route!r} is not PREFIX=NEXT_HOP", param_hint="--route")
        body.routes.add(prefix=prefix, next_hop=hop)
    parent = session.parent(required=True)
    _finish(session, kinds.ROUTER, ident=name, body=body, parent=parent, form=form, wait=wait, timeout=timeout)


@create.command("port")
@click.argument("name")
@tenant_option
@click.option("--network", required=True, help="The network.")
@click.option("--host", default="", help="The host; none = unbound.")
@click.option("--address", "addresses", multiple=True, help="Instead of an automatic one; repeatable.")
@click.option("--mac", default="", help="Instead of the derived one.")
@click.option("--allowed", multiple=True, help="Further source prefix that it may send from.")
@click.option("--namespace", default="", help="Workload namespace; default: the port's name.")
@click.option("--interface", default="", help="Interface inside it; default eth0.")
@click.option("--path", default="", help="Attach to an existing namespace by path.")
@click.option("--device", default="", help="Attach an existing device of the host.")
@labels_option
@wait_options
@pass_session
def create_port(
    session: Session,
    *,
    name: str,
    tenant: str,
    network: str,
    host: str,
    addresses: tuple[str, ...],
    mac: str,
    allowed: tuple[str, ...],
    namespace: str,
    interface: str,
    path: str,
    device: str,
    labels: tuple[str, ...],
    form: str,
    wait: bool,
    timeout: float,
) -> None:
    """A port: `teal create port web-1 -t acme --network web --host h1 --wait`."""
    from tealnet.v1 import port_pb2

    session.tenant = tenant or session.tenant
    if path and device:
        raise click.UsageError("--path and --device exclude each other")
    kind = "NETNS_PATH" if path else "DEVICE" if device else "NETNS"
    attachment = port_pb2.Attachment(
        kind=f"ATTACHMENT_KIND_{kind}",
        namespace=namespace,
        interface=interface,
        path=path,
        device=device,
    )
    body = port_pb2.Port(
        network=session.name_of(kinds.NETWORK, network),
        host=session.name_of(kinds.HOST, host) if host else "",
        attachment=attachment,
        addresses=addresses,
        mac=mac,
        allowed_addresses=allowed,
        labels=pairs_of(labels),
    )
    parent = session.parent(required=True)
    _finish(session, kinds.PORT, ident=name, body=body, parent=parent, form=form, wait=wait, timeout=timeout)


@create.command("host")
@click.argument("name")
@click.option("--vtep", default="", help="Tunnel address; empty = pinned at first contact.")
@labels_option
@wait_options
@pass_session
def create_host(
    session: Session, *, name: str, vtep: str, labels: tuple[str, ...], form: str, wait: bool, timeout: float
) -> None:
    """A host. For a machine that joins with a token use `teal host add`."""
    from tealnet.v1 import host_pb2

    body = host_pb2.Host(vtep=vtep, labels=pairs_of(labels))
    _finish(session, kinds.HOST, ident=name, body=body, parent="", form=form, wait=wait, timeout=timeout)


@click.command()
@click.argument("name")
@tenant_option
@click.option("--to", "host", required=True, help="The host to move to.")
@click.option("--wait/--no-wait", default=True)
@click.option("--timeout", default=30.0)
@pass_session
def move(session: Session, *, name: str, tenant: str, host: str, wait: bool, timeout: float) -> None:
    """Move a port to another host, make before break."""
    from tealnet.v1 import port_pb2

    session.tenant = tenant or session.tenant
    with errors():
        body = port_pb2.Port(name=session.name_of(kinds.PORT, name), host=session.name_of(kinds.HOST, host))
        moved = session.client.update(body, mask=["host"])
        click.echo(f"port/{output.short(moved.name)} is to move to {output.short(moved.host)}")
        if wait:
            wait_for(session, parent=moved.name, timeout=timeout, revision=moved.revision)
            found = session.client.get(moved.name)
            click.echo(f"{output.state_of(found)} on {output.short(found.host)}")
