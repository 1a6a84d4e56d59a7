"""color: the colors of networks, and how connections are shared out among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from tealnet import kinds
from tealnet.cli import output
from tealnet.cli.group import Suggesting
from tealnet.cli.options import Seconds, output_option, tenant_option, wait_options, weight_of
from tealnet.cli.session import Failure, Session, pass_session
from tealnet.cli.targets import complete_colors, complete_names, complete_weights
from tealnet.cli.waiting import wait_for

_TRIES = 5
_LONGEST_DRAIN = 7 * 86_400.0


@click.group(cls=Suggesting)
def color() -> None:
    """Colors of networks, and traffic that moves between them.

    \b
      teal color add acme/web blue green       the ports that there are become blue; no connection is lost
      teal create port acme/web-1g --network web --color green --address 10.0.0.5 --host h2     a twin
      teal color list acme/web
      teal color set-weights acme/web blue=95 green=5 --wait
      teal color set-weights acme/web green=100 --wait
      teal color remove acme/web blue          when it has no ports any more

    Ports of a color reach the same color of every network of their router, and no other one: green web, green db. What
    has no color is reached by all. Where something without a color opens a connection to a network with colors, the
    weights choose, once per connection.
    """


def _network_argument(function: Any) -> Any:
    return click.argument("network", shell_complete=complete_names(kinds.NETWORK))(function)


@color.command("list")
@click.argument("networks", nargs=-1, metavar="[NETWORK]...", shell_complete=complete_names(kinds.SPLIT))
@tenant_option
@output_option
@pass_session
def list_(session: Session, *, networks: tuple[str, ...], tenant: str, form: str) -> None:
    """Colors with weights, shares, ports and state.

    \b
      teal color list
      teal color list acme/web -o json

    State: OPEN gets new connections, IDLE gets none and keeps those that are open, DRAINING will lose them, CLOSED has
    none.
    """
    session.tenant = tenant
    if networks:
        splits = [session.client.get(session.name_of(kinds.SPLIT, network)) for network in networks]
    else:
        splits = list(session.client.list_all(kinds.SPLIT, parent=session.parent(required=False)))
    _show(splits, form)


def _show(splits: Sequence[Any], form: str) -> None:
    if form not in ("table", "wide"):
        output.show([(kinds.SPLIT, splits)], form)
        return
    if not splits:
        click.echo("no network has colors: `teal color add NETWORK COLOR` gives it some", err=True)
        return
    rows = []
    for split in splits:
        total = sum(split.weights.values()) or 1
        for status in split.colors:
            share = f"{100 * status.weight / total:.1f} %" if status.weight else "-"
            cells = [output.tenant_of(split.name), output.short(split.name), status.color, str(status.weight), share]
            cells += [str(status.ports), str(status.active_ports), output.enum_of(status, "state")]
            more = [f"{status.slots}/256", output.enum_of(split, "affinity"), str(split.revision)]
            rows.append(cells + (more if form == "wide" else []))
    head = ["TENANT", "NETWORK", "COLOR", "WEIGHT", "SHARE", "PORTS", "ACTIVE", "STATE"]
    output.table(head + (["SLOTS", "AFFINITY", "EPOCH"] if form == "wide" else []), rows)


@color.command("add")
@_network_argument
@click.argument("colors", nargs=-1, required=True, metavar="COLOR...")
@tenant_option
@wait_options()
@pass_session
def add(session: Session, *, network: str, colors: tuple[str, ...], tenant: str, wait: bool, timeout: float) -> None:
    """Give a network colors. The first one it ever gets is the color of the ports that there are.

    \b
      teal color add acme/web blue green

    Nothing else changes: no port, no address, no connection. At most 8 names in a routing domain.
    """
    session.tenant = tenant
    name = session.name_of(kinds.NETWORK, network)

    def more(now: list[str]) -> list[str]:
        return now + [one for one in colors if one not in now]

    before, after = _change(session, name, more)
    if not before.colors:
        first = after.colors[0]
        ports = f"its {after.status.ports} ports are" if after.status.ports != 1 else "its port is"
        click.echo(f"network {output.named(name)} has the colors {' '.join(after.colors)}; {ports} in {first}")
    else:
        click.echo(f"network {output.named(name)} has the colors {' '.join(after.colors)}")
    new = next((one for one in after.colors[1:] if one not in before.colors), "")
    if new:
        click.echo(
            f"  next: `teal create port NAME --network {output.named(name)} --color {new} --address …`, then\n"
            f"  `teal color set-weights {output.named(name)} {after.colors[0]}=95 {new}=5`",
            err=True,
        )
    _wait(session, [name], after.revision, wait=wait, timeout=timeout)


@color.command("remove")
@_network_argument
@click.argument("colors", nargs=-1, required=True, metavar="COLOR...", shell_complete=complete_colors)
@tenant_option
@wait_options()
@pass_session
def remove(session: Session, *, network: str, colors: tuple[str, ...], tenant: str, wait: bool, timeout: float) -> None:
    """Take colors out of a network. One that has ports or weight stays, and the error says what to do.

    \b
      teal color remove acme/web blue

    The last color leaves its ports to a network without colors; no connection is lost.
    """
    session.tenant = tenant
    name = session.name_of(kinds.NETWORK, network)

    def less(now: list[str]) -> list[str]:
        if missing := [one for one in colors if one not in now]:
            there = f"it has {' '.join(now)}" if now else "it has no colors"
            raise Failure(f"network {output.named(name)} has no color {missing[0]}: {there}")
        return [one for one in now if one not in colors]

    _, after = _change(session, name, less)
    left = f"has the colors {' '.join(after.colors)}" if after.colors else "has no colors any more; its ports stay"
    click.echo(f"network {output.named(name)} {left}")
    _wait(session, [name], after.revision, wait=wait, timeout=timeout)


def _change(session: Session, name: str, make: Callable[[list[str]], list[str]]) -> tuple[Any, Any]:
    """Change the colors of a network from what they are, whoever else changes it meanwhile; before and after."""
    from tealnet.client import ApiError
    from tealnet.v1 import network_pb2

    for attempt in range(_TRIES):
        before = session.client.get(name)
        body = network_pb2.Network(name=name, etag=before.etag, colors=make(list(before.colors)))
        try:
            return before, session.client.update(body, mask=["colors"])
        except ApiError as error:
            if error.reason != "ETAG_MISMATCH" or attempt == _TRIES - 1:
                raise
    raise AssertionError("unreachable")


def _wait(
    session: Session, networks: Sequence[str], revision: int, *, wait: bool, timeout: float, only: Sequence[str] = ()
) -> None:
    if wait:
        click.echo(wait_for(session, parents=networks, timeout=timeout, revision=revision, only=only))


@color.command("set-weights")
@click.argument(
    "words", nargs=-1, required=True, metavar="NETWORK COLOR=WEIGHT... [NETWORK COLOR=WEIGHT...]...",
    shell_complete=complete_weights,
)  # fmt: skip
@tenant_option
@click.option(
    "--on-open", type=click.Choice(["keep", "drain", "cut"]), default="keep", show_default=True,
    help="Open connections to colors that have no weight then: stay, end after a time, end now.",
)  # fmt: skip
@click.option(
    "--drain-timeout", type=Seconds(longest=_LONGEST_DRAIN), metavar="TIME", help="With --on-open drain: 30s, 10m. [5m]"
)
@click.option(
    "--affinity", type=click.Choice(["connection", "source"]), help="What keeps its color; left out: as it is."
)
@click.option("--force", is_flag=True, help="Also to a color of which no port is ACTIVE.")
@click.option("--dry-run", is_flag=True, help="Only say what would be; the controller checks everything.")
@output_option
@wait_options()
@pass_session
def set_weights(
    session: Session,
    *,
    words: tuple[str, ...],
    tenant: str,
    on_open: str,
    drain_timeout: float | None,
    affinity: str | None,
    force: bool,
    dry_run: bool,
    form: str,
    wait: bool,
    timeout: float,
) -> None:
    """Share out new connections among the colors.

    \b
      teal color set-weights acme/web blue=95 green=5 --wait
      teal color set-weights acme/web green=100 acme/db green=100 --wait
      teal color set-weights acme/web green=1 --on-open drain --drain-timeout 10m

    Weights are whole numbers of any sum; a color that is not named gets 0. The smallest share is 1/256. With --wait it
    returns when no new connection anywhere goes by the old weights. Connections that are open keep their color unless
    --on-open says otherwise.

    Exit codes with --wait: 0 on all hosts, 3 some hosts disconnected or lost, 4 not in time, 5 a host could not.
    """
    session.tenant = tenant
    if drain_timeout is not None and on_open != "drain":
        raise click.UsageError("--drain-timeout is for --on-open drain")
    networks = networks_of(session, words)
    answer = session.client.set_weights(
        networks,
        on_open=on_open.upper(),
        drain=(drain_timeout or 300.0) if on_open == "drain" else 0.0,
        affinity=(affinity or "").upper(),
        force=force,
        validate_only=dry_run,
    )
    if form in ("table", "wide"):
        for split in answer.splits:
            would = "would have" if dry_run else "has"
            click.echo(f"network {output.named(split.name)} {would} the weights {output.weights(split)}")
    else:
        output.show([(kinds.SPLIT, list(answer.splits))], form)
    if not dry_run:
        only = [split.name for split in answer.splits]
        _wait(session, list(networks), answer.revision, wait=wait, timeout=timeout, only=only)


def networks_of(session: Session, words: Sequence[str]) -> dict[str, dict[str, int]]:
    """`acme/web blue=95 green=5 acme/db …` by network. Raises Failure, BadParameter."""
    found: dict[str, dict[str, int]] = {}
    name = ""
    for word in words:
        if "=" not in word:
            name = session.name_of(kinds.NETWORK, word)
            if name in found:
                raise Failure(f"{word} stands there twice", code=2)
            found[name] = {}
            continue
        if not name:
            raise Failure(f"{word}: of which network? Say NETWORK COLOR=WEIGHT…, for example acme/web {word}", code=2)
        color_name, weight = weight_of(word)
        if color_name in found[name]:
            raise Failure(f"{color_name} stands there twice", code=2)
        found[name][color_name] = weight
    for name, weights in found.items():
        if not weights:
            raise Failure(f"{output.named(name)}: which weights? For example blue=95 green=5", code=2)
    if len({output.tenant_of(name) for name in found}) > 1:
        raise Failure("networks of one tenant at a time: what belongs to two can't change in one step", code=2)
    return found
