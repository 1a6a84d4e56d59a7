"""create group and create tier: rules as people type them."""

from __future__ import annotations

from typing import Any, Unpack

import click

from tealnet import kinds
from tealnet.cli.create import Ending, ending, finish, labels_option, owned, pairs_of
from tealnet.cli.options import tenant_option
from tealnet.cli.session import Session, pass_session


def rules_options(function: Any) -> Any:
    """--ingress and --egress, --shadow and --on-change."""
    said = "PROTOCOL [PORTS] [from REMOTE] [in COLOR]; repeatable."
    for name in ("egress", "ingress"):
        words = said if name == "ingress" else said.replace("from", "to")
        function = click.option(f"--{name}", multiple=True, metavar="RULE", help=words)(function)
    function = click.option("--shadow", is_flag=True, help="Count and log only: mode SHADOW.")(function)
    return click.option(
        "--on-change", type=click.Choice(["keep", "reevaluate", "cut"]), default="keep",
        help="Of open connections when a rule goes. [keep]",
    )(function)  # fmt: skip


def _add_rules(session: Session, body: Any, rules: dict[str, tuple[str, ...]], *, of_tier: bool) -> None:
    from tealnet.cli.rules import BadRule, parse

    for direction, texts in rules.items():
        for text in texts:
            try:
                fields = parse(text, direction=direction, of_tier=of_tier)
            except BadRule as error:
                raise click.BadParameter(str(error), param_hint=f"--{direction}") from None
            if not of_tier and "remote_group" in fields:
                fields["remote_group"] = session.name_of(kinds.GROUP, fields["remote_group"])
            getattr(body, direction).add(**fields)


@click.command("group")
@click.argument("name")
@tenant_option
@rules_options
@labels_option
@ending
@pass_session
def create_group(
    session: Session,
    *,
    name: str,
    tenant: str,
    ingress: tuple[str, ...],
    egress: tuple[str, ...],
    shadow: bool,
    on_change: str,
    labels: tuple[str, ...],
    **end: Unpack[Ending],
) -> None:
    """A security group: what its ports accept and open.

    \b
      teal create group acme/web --ingress 'tcp 80,443 from anyone' --ingress 'icmp 8' --egress any
      teal create group acme/db --ingress 'tcp 5432 from web' --ingress 'tcp 5432 from 10.0.0.0/8'
    """
    from tealnet.v1 import security_pb2

    full = owned(session, kinds.GROUP, name, tenant)
    body = security_pb2.SecurityGroup(
        labels=pairs_of(labels),
        mode=f"POLICY_MODE_{'SHADOW' if shadow else 'ENFORCE'}",
        on_change=f"ON_CHANGE_{on_change.upper()}",
    )
    _add_rules(session, body, {"ingress": ingress, "egress": egress}, of_tier=False)
    finish(session, kinds.GROUP, full, body, **end)


@click.command("tier")
@click.argument("name")
@click.option("--position", type=click.Choice(["above", "below"]), required=True, help="The tenants' groups.")
@click.option("--priority", default=0, type=click.IntRange(0, 1000), help="1 is asked before 2. [0]")
@click.option("--tenant-label", "tenants", multiple=True, metavar="KEY=VALUE", help="Only tenants with this label.")
@rules_options
@labels_option
@ending
@pass_session
def create_tier(
    session: Session,
    *,
    name: str,
    position: str,
    priority: int,
    tenants: tuple[str, ...],
    ingress: tuple[str, ...],
    egress: tuple[str, ...],
    shadow: bool,
    on_change: str,
    labels: tuple[str, ...],
    **end: Unpack[Ending],
) -> None:
    """A policy tier: what admins say around the groups.

    \b
      teal create tier no-telnet --position above --ingress 'deny tcp 23' --egress 'deny tcp 23'
      teal create tier monitoring --position below --ingress 'allow tcp 9100 from 10.9.0.0/24'
    """
    from tealnet.v1 import security_pb2

    body = security_pb2.PolicyTier(
        labels=pairs_of(labels),
        tenant_selector=pairs_of(tenants),
        position=f"POSITION_{position.upper()}",
        priority=priority,
        mode=f"POLICY_MODE_{'SHADOW' if shadow else 'ENFORCE'}",
        on_change=f"ON_CHANGE_{on_change.upper()}",
    )
    _add_rules(session, body, {"ingress": ingress, "egress": egress}, of_tier=True)
    finish(session, kinds.TIER, session.name_of(kinds.TIER, name), body, **end)
