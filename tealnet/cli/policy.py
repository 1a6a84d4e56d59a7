"""policy: would it pass, what was denied; and `get rules`: what is in force, its cost and its counters."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from tealnet import kinds
from tealnet.cli import output
from tealnet.cli.group import Suggesting
from tealnet.cli.options import tenant_option
from tealnet.cli.progress import Progress
from tealnet.cli.session import Failure, Session, pass_session
from tealnet.cli.targets import complete_names, targets_of

RULES = ("rule", "rules")
_ports = complete_names(kinds.PORT)
_AGAIN = 1.0  # seconds between two looks of --follow
_PROTOCOLS = ["tcp", "udp", "sctp", "icmp", "icmpv6"]


@click.group(cls=Suggesting)
def policy() -> None:
    """What security groups and policy tiers mean together.

    \b
      teal policy test --from acme/web-1 --to acme/db-1 --port 5432
      teal policy log -t acme --follow
      teal get rules -t acme --counters
    """


@policy.command("test")
@tenant_option
@click.option(
    "--from", "source", required=True, metavar="PORT", help="Who opens the connection.", shell_complete=_ports
)
@click.option("--to", "target", required=True, metavar="PORT", help="To whom.", shell_complete=_ports)
@click.option(
    "--proto", "protocol", default="tcp", metavar="PROTOCOL", help=f"{', '.join(_PROTOCOLS)} or a number. [tcp]"
)
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Of the target; tcp, udp and sctp need it.")
@click.option("--icmp-type", type=click.IntRange(0, 255), help="[an echo request]")
@click.option("--icmp-code", type=click.IntRange(0, 255), help="[0]")
@click.option("--color", default="", help="What the connection is pinned to.")
@click.option("-o", "--output", "form", type=click.Choice(["text", "json"]), default="text", help="How to print.")
@pass_session
def test(
    session: Session,
    *,
    tenant: str,
    source: str,
    target: str,
    protocol: str,
    port: int,
    icmp_type: int | None,
    icmp_code: int | None,
    color: str,
    form: str,
) -> None:
    """Would a connection pass, and which rules say so?

    \b
      teal policy test --from acme/web-1 --to acme/db-1 --proto tcp --port 5432
      teal policy test -t acme --from web-1 --to db-1 --proto icmp

    From the rules as the controller has sent them to the hosts. Exit code 1: it would not.
    """
    from tealnet.v1 import security_pb2

    session.tenant = tenant
    request = security_pb2.TestPolicyRequest(
        source=session.name_of(kinds.PORT, source),
        target=session.name_of(kinds.PORT, target),
        protocol=protocol,
        port=port,
        color=color,
        icmp_type=icmp_type,
        icmp_code=icmp_code,
    )
    answer = session.client.test_policy(request)
    if form == "json":
        output.dump(output.as_dict(answer), "json")
    else:
        what = f"{protocol} {port}" if port else protocol
        for path in answer.paths:
            _show_path(path, request, what)
        click.echo(f"at revision {answer.info.revision}")
    if not answer.allowed:
        raise click.exceptions.Exit(1)


def _show_path(path: Any, request: Any, what: str) -> None:
    word = click.style("allowed", fg="green") if path.allowed else click.style("denied", fg="red")
    ends = f"{path.source_address or '?'} → {path.target_address or '?'}"
    reason = f" ({path.reason}: {path.text})" if path.reason else ""
    click.echo(f"{word}  {ends} {what}{reason}")
    for side, verb, name in (("egress", "leaving", request.source), ("ingress", "at", request.target)):
        if path.HasField(side):
            click.echo(f"  {verb} {output.named(name)}: {_side(getattr(path, side))}")
            for origin in getattr(path, side).shadow:
                action = output.enum_of(origin, "action").lower()
                click.echo(f"    in SHADOW mode, which decides nothing, {_origin(origin)} says {action}")


def _side(side: Any) -> str:
    match output.enum_of(side, "outcome"):
        case "OFF":
            return "not asked, its network has policy OFF"
        case "SHADOW":
            return "passes: nothing allows it, but all groups of the port are in SHADOW mode"
        case outcome:
            said = outcome.lower()
            if not side.HasField("rule"):
                return f"{said}: no rule allows it"
            return f"{said} by {_origin(side.rule)}, revision {side.rule.revision}"


def _origin(origin: Any) -> str:
    """web ingress[0] (tcp 80 from anyone)"""
    place = f"{output.enum_of(origin, 'direction').lower()}[{origin.index}]"
    return f"{output.named(origin.object)} {place} ({_short(origin.text)})"


def _short(text: str) -> str:
    """Words of a rule with group names as people type them."""
    return " ".join(output.named(word) if word.startswith("tenants/") else word for word in text.split(" "))


@policy.command("log")
@click.argument("port", metavar="[PORT]", default="", shell_complete=_ports)
@tenant_option
@click.option("-f", "--follow", is_flag=True, help="Go on, until Ctrl-C.")
@click.option("--count", default=100, type=click.IntRange(1, 1000), help="How many of the newest. [100]")
@click.option("-o", "--output", "form", type=click.Choice(["text", "json"]), default="text", help="How to print.")
@pass_session
def log(session: Session, *, port: str, tenant: str, follow: bool, count: int, form: str) -> None:
    """Connections that were denied of late.

    \b
      teal policy log -t acme
      teal policy log acme/web-1 --follow

    A sample: hosts limit how many they remember. `(shadow)` passed: only a rule or group in SHADOW mode would have
    denied it.
    """
    from tealnet.v1 import security_pb2

    session.tenant = tenant
    parent = session.name_of(kinds.PORT, port) if port else session.own_tenant()
    request = security_pb2.ListDenialsRequest(parent=parent, page_size=count)
    told: set[str] = set()
    while True:
        answer = session.client.denials(request)
        _warn(answer.silent_hosts, told)
        for denial in answer.denials:
            click.echo(output.line(denial) if form == "json" else _denial(denial))
            request.after.CopyFrom(denial.time)
        sys.stdout.flush()
        if not follow:
            if not answer.denials and form == "text":
                click.echo("nothing was denied of late", err=True)
            return
        time.sleep(_AGAIN)


def _denial(denial: Any) -> str:
    inward = output.enum_of(denial, "direction") == "INGRESS"
    ends = f"{_end(denial, 'source')} → {_end(denial, 'target')}"
    if denial.protocol in ("icmp", "icmpv6"):
        ends += f" type {denial.icmp_type} code {denial.icmp_code}"
    why = f"by {_origin(denial.rule)}" if denial.HasField("rule") else "no rule allows it"
    more = f" (and {denial.suppressed} like it)" if denial.suppressed else ""
    other = f" {'from' if inward else 'to'} {output.named(denial.remote_port)}" if denial.remote_port else ""
    shadow = " (shadow)" if denial.shadow else ""
    where = f"{'into' if inward else 'out of'} {output.named(denial.port)} on {output.short(denial.host)}"
    return f"{output.moment(denial.time)}  {denial.protocol} {ends}  {where}{other}: {why}{more}{shadow}"


def _end(denial: Any, end: str) -> str:
    address, port = getattr(denial, f"{end}_address"), getattr(denial, f"{end}_port")
    return f"[{address}]:{port}" if port and ":" in address else f"{address}:{port}" if port else address


def _warn(silent: Sequence[str], told: set[str]) -> None:
    news = [host for host in silent if host not in told]
    told.update(news)
    if news:
        names = ", ".join(map(output.short, news))
        click.echo(f"no word from {names}: what happened there is missing", err=True)


# ---- get rules


def show_rules(session: Session, words: tuple[str, ...], *, counters: bool, form: str, timeout: float) -> None:
    """`teal get rules [group|tier|port NAME]`."""
    parent = session.own_tenant()
    if words:
        try:
            targets = targets_of(session, words)
        except Failure as error:
            if len(words) > 1:
                raise
            raise Failure(f"{error}; rules of a tenant: `teal get rules -t {words[0]}`", code=2) from None
        if len(targets) != 1 or not targets[0].name or targets[0].kind in (kinds.HOST, kinds.NETWORK, kinds.ROUTER):
            raise Failure("rules of what? Say `group NAME`, `tier NAME`, `port NAME` or `tenant NAME`", code=2)
        parent = targets[0].name
    with Progress("asking the hosts" if counters else "reading"):
        answer = session.client.rules(parent, counters=counters, timeout=timeout)
    if form in ("json", "yaml"):
        output.dump([output.as_dict(rule) for rule in answer.rules], form)
    elif not answer.rules:
        click.echo("no rules found", err=True)
    else:
        _table(answer.rules, counters=counters, wide=form == "wide")
    _warn(answer.silent_hosts, set())


def _table(rules: Sequence[Any], *, counters: bool, wide: bool) -> None:
    heads = ["OBJECT", "DIRECTION", "SAYS", "RULE", "PORTS", "HOSTS"]
    if counters:
        heads += ["FLOWS", "PACKETS", "BYTES", "CONNECTIONS", "SHADOW"]
    if wide:
        heads += ["ID", "REVISION"]
    rows = []
    for rule in rules:
        origin = rule.origin
        row = [
            output.named(origin.object) if origin.object else "-",
            output.enum_of(origin, "direction").lower(),
            _says(origin),
            _short(origin.text),
            str(rule.ports) if origin.object else "",
            str(rule.hosts) if origin.object else "",
        ]
        if counters:
            row += [str(n) for n in (rule.flows, rule.packets, rule.bytes, rule.connections, rule.shadow_hits)]
        if wide:
            row += [f"{origin.id:08x}" if origin.id else "", str(origin.revision or "")]
        rows.append(row)
    output.table(heads, rows)


def _says(origin: Any) -> str:
    if not origin.object:
        return ""
    action = output.enum_of(origin, "action").lower()
    return f"{action} (shadow)" if output.enum_of(origin, "mode") == "SHADOW" else action
