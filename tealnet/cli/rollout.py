"""rollout: moves of traffic between colors, planned: steps, gates, a way back."""

from __future__ import annotations

import re
import sys
from typing import Any

import click

from tealnet import kinds
from tealnet.cli import output, rollout_view
from tealnet.cli.group import Suggesting
from tealnet.cli.options import Seconds, output_option, tenant_option
from tealnet.cli.session import Failure, Session, pass_session
from tealnet.cli.targets import complete_names

_DAY = 86_400.0
_STEP = re.compile(r"(?P<percent>\d{1,3})%?(?::(?P<hold>.+))?")
_PROBE = re.compile(r"(?P<kind>icmp|tcp|http)(?::(?P<port>\d{1,5}))?(?P<path>/[^@\s]*)?(?:@(?P<ports>\S+))?")
_FAILED = re.compile(r"failed[:=](?P<percent>\d+(?:\.\d+)?)%?(?::(?P<samples>\d+))?")
_GATES = "endpoints, icmp, tcp:80, http:8080/healthz@app=web, failed:1%:50 (of at least 50), or an URL"


@click.group(cls=Suggesting)
def rollout() -> None:
    """Move traffic to another color in steps, under gates.

    \b
      teal rollout start acme/web-2 --network web --to green --step 10:60s --step 50:60s --step 100 \\
          --gate http:8080/healthz --gate failed:1% --confirm-within 5m --watch
      teal rollout watch acme/web-2
      teal rollout pause|resume|advance|confirm|rollback acme/web-2
      teal rollout history acme/web-2
      teal get rollouts · teal describe rollout acme/web-2 · teal apply -f rollout.yaml

    Before the first step every host knows the target color and all gates pass. A step goes on when every host has it
    and its hold is over. A gate that fails, a host that stays behind, the deadline or a missing confirmation bring
    everything back to the weights from before.
    """


def _name_argument(function: Any) -> Any:
    return click.argument("name", shell_complete=complete_names(kinds.ROLLOUT))(function)


@rollout.command("start")
@click.argument("name")
@tenant_option
@click.option(
    "--network", "networks", multiple=True, required=True, metavar="NETWORK",
    shell_complete=complete_names(kinds.NETWORK), help="Repeat it for several that switch together.",
)  # fmt: skip
@click.option("--to", "target", required=True, metavar="COLOR", help="Where traffic moves to.")
@click.option("--from", "origin", default="", metavar="COLOR", help="Where it comes from; default: who has it all.")
@click.option(
    "--step", "steps", multiple=True, metavar="PERCENT[:HOLD]",
    help="Share of the target, and how long to look at it: 10:60s. Repeat it. [100]",
)  # fmt: skip
@click.option("--gate", "gates", multiple=True, metavar="GATE", help=f"{_GATES}. [endpoints]")
@click.option("--confirm-within", type=Seconds(longest=_DAY), metavar="TIME", help="Back, if nobody confirms by then.")
@click.option("--deadline", type=Seconds(longest=30 * _DAY), metavar="TIME", help="For all together. [1h]")
@click.option("--step-timeout", type=Seconds(longest=_DAY), metavar="TIME", help="For hosts to have a step. [30s]")
@click.option(
    "--pause-timeout", type=Seconds(longest=30 * _DAY), metavar="TIME", help="A longer pause rolls back. [never]"
)
@click.option("--on-behind", type=click.Choice(["wait", "rollback"]), help="A host that is late. [rollback]")
@click.option("--on-lost", type=click.Choice(["wait", "rollback", "proceed"]), help="A host that is LOST. [wait]")
@click.option("--on-rollback", type=click.Choice(["keep", "cut"]), help="What is open to the target, on the way back.")
@click.option(
    "--on-open", type=click.Choice(["keep", "drain", "cut"]), help="What is open to the old color, in the end. [keep]"
)
@click.option("--drain-timeout", type=Seconds(longest=7 * _DAY), metavar="TIME", help="With --on-open drain. [5m]")
@click.option("--at-once", is_flag=True, help="All hosts switch at one instant of their clocks (apply_at).")
@click.option("--dry-run", is_flag=True, help="Only say what would be; the controller checks everything.")
@click.option("--watch", is_flag=True, help="Follow it until it is over, as `teal rollout watch` does.")
@pass_session
def start(session: Session, /, *, name: str, tenant: str, dry_run: bool, watch: bool, **options: Any) -> None:
    """Begin a rollout. Its plan is never changed afterwards.

    \b
      teal rollout start acme/web-2 --network web --to green                       all at once
      teal rollout start acme/web-2 --network web --network db --to green --step 10:5m --step 100:5m \\
          --gate http:8080/healthz --gate failed:1%

    Gates: `endpoints` (all ports of the target ACTIVE; the default), `icmp`, `tcp:PORT`, `http:PORT/PATH` (asked by the
    hosts, from inside the target; `@app=web` behind it: only ports with these labels), `failed:PERCENT[:SAMPLES]` (new
    connections that fail), an URL (asked by the controller, if its admin allows it).

    Exit codes with --watch: 0 it succeeded, 1 it was rolled back.
    """
    session.tenant = tenant
    full = session.name_of(kinds.ROLLOUT, name)
    body = _body(session, full, options)
    parent = "/".join(full.split("/")[:2])
    made = session.client.create(
        kinds.ROLLOUT, ident=output.short(full), body=body, parent=parent, validate_only=dry_run
    )
    if dry_run:
        click.echo(f"rollout {rollout_view.headline(made)} would begin")
        return
    click.echo(f"rollout {rollout_view.headline(made)} begins")
    if watch:
        _follow(session, full)
    else:
        click.echo(f"  next: `teal rollout watch {output.named(full)}`", err=True)


def _body(session: Session, full: str, options: dict[str, Any]) -> Any:
    from tealnet.v1 import rollout_pb2

    tenant = full.split("/")[1]
    networks = [one if "/" in one else f"{tenant}/{one}" for one in options["networks"]]
    body = rollout_pb2.Rollout(
        networks=[session.name_of(kinds.NETWORK, one) for one in networks],
        target=options["target"],
        origin=options["origin"] or _origin(session, networks[0], options["target"]),
    )
    for word in options["steps"] or ("100",):
        _add_step(body, word)
    for word in options["gates"]:
        _add_gate(body, word)
    for field in ("confirm_within", "deadline", "step_timeout", "pause_timeout", "drain_timeout"):
        if options[field] is not None:
            getattr(body, field).FromNanoseconds(int(options[field] * 1e9))
    for field in ("on_behind", "on_lost", "on_rollback", "on_open"):
        if options[field]:
            setattr(body, field, f"{field.upper()}_{options[field].upper()}")
    if options["on_open"] == "drain" and options["drain_timeout"] is None:
        body.drain_timeout.seconds = 300
    if options["at_once"]:
        body.apply_at.SetInParent()
    return body


def _origin(session: Session, network: str, target: str) -> str:
    """The color that shares traffic with the target, to write steps as shares of two. Raises Failure."""
    split = session.client.get(session.name_of(kinds.SPLIT, network))
    found = [color for color, weight in sorted(split.weights.items()) if weight and color != target]
    if len(found) != 1:
        now = output.weights(split)
        raise Failure(f"from which color? {network} has the weights {now}: say --from COLOR", code=2)
    return str(found[0])


def _add_step(body: Any, word: str) -> None:
    match = _STEP.fullmatch(word)
    percent = int(match["percent"]) if match else 0
    if not match or not 0 < percent <= 100:
        raise click.BadParameter(f"{word!r} is not PERCENT or PERCENT:HOLD, like 10:60s", param_hint="--step")
    step = body.steps.add(weights={body.target: percent})
    if percent < 100:
        step.weights[body.origin] = 100 - percent
    if match["hold"]:
        hold = Seconds(longest=7 * _DAY).convert(match["hold"], None, None)
        step.hold.FromNanoseconds(int(hold * 1e9))


def _add_gate(body: Any, word: str) -> None:
    if word == "endpoints":
        body.gates.add().endpoints.SetInParent()
    elif "://" in word:
        body.gates.add().external.url = word
    elif match := _FAILED.fullmatch(word):
        gate = body.gates.add().failed_connections
        gate.max_percent = float(match["percent"])
        gate.min_samples = int(match["samples"] or 0)
    elif match := _PROBE.fullmatch(word):
        probe = body.gates.add().probe
        probe.kind, probe.port = f"KIND_{match['kind'].upper()}", int(match["port"] or 0)
        probe.path, probe.ports = match["path"] or "", match["ports"] or ""
    else:
        raise click.BadParameter(f"{word!r} is none of: {_GATES}", param_hint="--gate")


# ---- watching


@rollout.command("watch")
@_name_argument
@tenant_option
@pass_session
def watch(session: Session, *, name: str, tenant: str) -> None:
    """Follow a rollout until it is over.

    One screen that changes, or a line for each event where no terminal is.

    \b
      teal rollout watch acme/web-2

    Ctrl-C ends the watching, not the rollout. Exit codes: 0 it succeeded, 1 it was rolled back.
    """
    session.tenant = tenant
    _follow(session, session.name_of(kinds.ROLLOUT, name))


def _follow(session: Session, name: str) -> None:
    shown = session.client.get(name)
    last = _live(session, shown) if sys.stdout.isatty() else _plain(session, shown)
    if rollout_view.state(last) == "ROLLED_BACK":
        raise Failure(f"{output.title(name)} was rolled back: {_why(last)}")


def _changes(session: Session, name: str) -> Any:
    """The rollout whenever it is different, until it is over or gone."""
    from tealnet.follow import follow
    from tealnet.v1 import system_pb2

    def cut(error: Any) -> None:
        click.echo(f"the watch was cut ({error.code.name}); going on", err=True)

    request = system_pb2.WatchRequest(parent=name, kinds=[kinds.ROLLOUT.name])
    for response in follow(session.client, request, cut=cut):
        if response.type == system_pb2.WatchResponse.TYPE_DELETED:
            raise Failure(f"{output.title(name)} was deleted")
        if response.object.HasField("rollout"):
            yield response.object.rollout
            if rollout_view.is_over(response.object.rollout):
                return


def _plain(session: Session, first: Any) -> Any:
    click.echo(rollout_view.headline(first))
    before: Any = None
    for now in _changes(session, first.name):
        for line in rollout_view.lines(before, now):
            click.echo(line)
        sys.stdout.flush()
        before = now
    return before


def _live(session: Session, first: Any) -> Any:
    from rich.live import Live

    with Live(rollout_view.screen(first), refresh_per_second=8, redirect_stderr=False) as live:
        for now in _changes(session, first.name):
            live.update(rollout_view.screen(now))
            first = now
    return first


def _why(item: Any) -> str:
    """The reason of the way back."""
    for entry in reversed(item.history):
        if entry.reason != "Done":
            return f"{entry.reason}: {entry.text}"
    return str(item.text)


# ---- what may be asked


def _ask(session: Session, verb: str, name: str, tenant: str, **more: Any) -> None:
    session.tenant = tenant
    full = session.name_of(kinds.ROLLOUT, name)
    now = session.client.ask_rollout(verb, full, **more)
    why = f": {now.text}" if now.text else ""
    click.echo(f"{output.title(full)} is {output.painted(rollout_view.state(now))}{why}")


@rollout.command("pause")
@_name_argument
@tenant_option
@pass_session
def pause(session: Session, *, name: str, tenant: str) -> None:
    """Keep a rollout where it is. Nothing happens by itself until `resume`, also no rollback.

    \b
      teal rollout pause acme/web-2
    """
    _ask(session, "Pause", name, tenant)


@rollout.command("resume")
@_name_argument
@tenant_option
@pass_session
def resume(session: Session, *, name: str, tenant: str) -> None:
    """Go on where it was paused; a hold begins anew.

    \b
      teal rollout resume acme/web-2
    """
    _ask(session, "Resume", name, tenant)


@rollout.command("advance")
@_name_argument
@tenant_option
@click.option("--step", type=click.IntRange(1), default=None, help="Only if it is at this step still.")
@pass_session
def advance(session: Session, *, name: str, tenant: str, step: int | None) -> None:
    """End the present hold now, also with gates that cannot tell yet. A gate that fails still rolls back.

    \b
      teal rollout advance acme/web-2
      teal rollout advance acme/web-2 --step 1     in scripts: never two steps by mistake
    """
    _ask(session, "Advance", name, tenant, step=step or 0)


@rollout.command("confirm")
@_name_argument
@tenant_option
@pass_session
def confirm(session: Session, *, name: str, tenant: str) -> None:
    """It stays as it is. While it is CONFIRMING; when the time is over it rolls back.

    \b
      teal rollout confirm acme/web-2
    """
    _ask(session, "Confirm", name, tenant)


@rollout.command("rollback")
@_name_argument
@tenant_option
@click.option("-m", "--message", default="", help="Why, for the history.")
@click.option("--watch", is_flag=True, help="Until all hosts have the weights from before.")
@pass_session
def rollback(session: Session, *, name: str, tenant: str, message: str, watch: bool) -> None:
    """Back to the weights from before. Of one that has succeeded: start another one, the other way round.

    \b
      teal rollout rollback acme/web-2 -m "users see errors"
    """
    _ask(session, "Rollback", name, tenant, text=message)
    if watch:
        full = session.name_of(kinds.ROLLOUT, name)
        *_, last = _changes(session, full)
        click.echo(rollout_view.entry_line(last.history[-1]))


@rollout.command("history")
@_name_argument
@tenant_option
@output_option
@pass_session
def history(session: Session, *, name: str, tenant: str, form: str) -> None:
    """What happened, and when the hosts had each step.

    \b
      teal rollout history acme/web-2
      teal rollout history acme/web-2 -o json
    """
    session.tenant = tenant
    item = session.client.get(session.name_of(kinds.ROLLOUT, name))
    if form == "name":
        click.echo(item.name)
        return
    if form not in ("table", "wide"):
        output.dump([output.as_dict(entry) for entry in item.history], form)
        return
    click.echo(rollout_view.headline(item))
    rows = [
        [output.moment(e.time), output.enum_of(e, "state"), str(e.step or ""), e.reason, e.actor, e.text]
        for e in item.history
    ]
    output.table(["TIME", "STATE", "STEP", "WHY", "BY", "WHAT"], rows)
    steps = [step for step in item.status.steps if step.HasField("skew")]
    if steps:
        click.echo()
        rows = [[str(s.step), str(s.revision), str(len(s.hosts)), rollout_view.skew(s), _times(s, form)] for s in steps]
        output.table(["STEP", "EPOCH", "HOSTS", "SKEW", "LAST" if form == "table" else "APPLIED"], rows)


def _times(step: Any, form: str) -> str:
    """The last host, or (wide) all with what they were behind the first."""
    first = step.first_applied.ToNanoseconds()
    behind = sorted((host.time.ToNanoseconds() - first, output.short(host.host)) for host in step.hosts)
    shown = behind if form == "wide" else behind[-1:]
    return " ".join(f"{name}+{late / 1e6:.1f}ms" for late, name in shown)
