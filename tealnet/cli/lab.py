"""`teal lab`: hosts on this machine."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from click.shell_completion import CompletionItem

from tealnet.cli import output
from tealnet.cli.contexts import drop_context, put_context
from tealnet.cli.group import Suggesting
from tealnet.cli.session import Failure
from tealnet.cli.targets import silent
from tealnet.lab import Direction, Family, Lab, LabError, Network, Parts

_NETWORKS = {"underlay": [Network.UNDERLAY], "management": [Network.MANAGEMENT], "all": list(Network)}


def _labs(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return silent(lambda: [name for name in Lab.names() if name.startswith(incomplete)])


def _machines(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Hosts of the lab, and `controller`."""
    return silent(lambda: [name for name in _lab_of(ctx).machines() if name.startswith(incomplete)])


def _processes(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What runs on the machine that stands before."""

    def look() -> list[str]:
        machine = _lab_of(ctx).machine(str(ctx.params["host"]))
        return [name for name in machine.processes if name.startswith(incomplete)]

    return silent(look)


def _lab_of(ctx: click.Context) -> Lab:
    return Lab.load(ctx.params.get("name") or os.environ.get("TEALNET_LAB") or "default")


name_option = click.option(
    "--name",
    default="default",
    show_default=True,
    envvar="TEALNET_LAB",
    shell_complete=_labs,
    help="Which lab; several can stand side by side.",
)
host_argument = click.argument("host", shell_complete=_machines)
process_argument = click.argument("process", shell_complete=_processes)
network_option = click.option(
    "--network", type=click.Choice(list(_NETWORKS)), default="underlay", show_default=True,
    help="underlay: tunnels; management: the session with the controller.",
)  # fmt: skip


@contextmanager
def _plain_errors() -> Iterator[None]:
    """A LabError is for people: one line, no traceback."""
    try:
        yield
    except LabError as error:
        raise Failure(str(error)) from None


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Steps on standard error: one changing line on a terminal, else a line each."""
    if not sys.stderr.isatty():
        yield lambda step: click.echo(step, err=True)
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as line:
        yield line.update


def context_name(name: str) -> str:
    """The context of a lab."""
    return "lab" if name == "default" else f"lab-{name}"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def end_tidily() -> None:
    """From here on `kill` and a closed terminal do what Ctrl-C does: nothing half-made is left behind."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


@click.group(cls=Suggesting)
def lab() -> None:
    """Hosts on this machine with their own Open vSwitch and agent, and a controller.

    \b
      teal lab up --hosts 3
      teal lab exec h1 -- ovs-vsctl show
      teal lab kill h1 agent
      teal lab down

    Inside a host default paths and plain tools work as on a real machine. Nothing of a lab touches this machine's own
    Open vSwitch, etcd, interfaces or files. Machines are the hosts h1, h2, … and `controller`;
    with --controllers and --etcd also `controller2`, … and `etcd1`, ….
    """


@lab.command()
@name_option
@click.option("--hosts", default=3, show_default=True, type=click.IntRange(0, 240), help="How many; they are h1, h2, …")
@click.option(
    "--mtu", default=1500, show_default=True, type=click.IntRange(1280, 9000), help="Of the underlay, in bytes."
)
@click.option(
    "--family", type=click.Choice(["v4", "v6"]), default="v4", show_default=True, help="Of the tunnel addresses."
)
@click.option("--controllers", default=1, show_default=True, type=click.IntRange(1, 7), help="Replicas, all active.")
@click.option(
    "--etcd", default=0, show_default=True, type=click.IntRange(0, 7), help="Members of a cluster; 0: embedded."
)
@click.option("--without-daemons", is_flag=True, help="Only hosts with Open vSwitch: no controller, no agents.")
def up(name: str, *, hosts: int, mtu: int, family: str, controllers: int, etcd: int, without_daemons: bool) -> None:
    """Make a lab, and a context that reaches its controllers.

    \b
      teal lab up --hosts 3
      teal lab up --name blue --hosts 20 --family v6
      teal lab up --controllers 2 --etcd 3

    The context is called `lab`, or `lab-NAME`, and becomes the current one.
    """
    end_tidily()
    parts = Parts.SWITCH if without_daemons else Parts.ALL
    with _plain_errors(), _progress() as note:
        made = Lab.up(
            name,
            hosts=hosts,
            mtu=mtu,
            family=Family(family),
            parts=parts,
            controllers=controllers,
            etcd=etcd,
            note=note,
        )
    click.echo(f"lab {name!r} is up: {', '.join(host.name for host in made.hosts) or 'no hosts'}")
    if parts is Parts.ALL:
        put_context(context_name(name), made.context)
        click.echo(f"context {context_name(name)} is the current one")


@lab.command()
@name_option
@click.option("--all", "every", is_flag=True, help="Every lab.")
def down(name: str, *, every: bool) -> None:
    """Take a lab down, whatever state it is in. Nothing of it stays.

    \b
      teal lab down
      teal lab down --all
    """
    with _plain_errors():
        for one in Lab.names() if every else [name]:
            Lab.remove(one)
            drop_context(context_name(one))
            click.echo(f"lab {one!r} is down")


@lab.command()
@name_option
@click.option("-o", "--output", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def status(name: str, *, form: str) -> None:
    """Machines, their processes and what is cut. Exit code 1 if something does not run.

    \b
      teal lab status --name blue
    """
    with _plain_errors():
        found = Lab.load(name).status()
    if form == "json":
        click.echo(json.dumps(found, indent=1))
    else:
        click.echo(f"lab {name}: underlay MTU {found['mtu']}, files in {found['directory']}")
        rows = []
        for machine in found["machines"]:
            processes = "  ".join(f"{what} {_words(row)}" for what, row in machine["processes"].items())
            state = "up" if machine["up"] else "down"
            rows.append([machine["name"], state, machine.get("vtep", ""), ",".join(machine.get("cut", [])), processes])
        output.table(["MACHINE", "STATE", "VTEP", "CUT", "PROCESSES"], rows)
        if not found["ready"]:
            down = f"teal lab down --name {name}"
            click.echo(f"It was never finished: `teal lab up` is still at it or was killed; `{down}` removes it")
    well = found["ready"] and found["networks"] and all(
        row["state"] == "running" for machine in found["machines"] for row in machine["processes"].values()
    )  # fmt: skip
    sys.exit(0 if well else 1)


def _words(row: dict[str, object]) -> str:
    if row["state"] in ("running", "stopped"):
        return f"{row['state']} ({row['pid']})"
    return f"{row['state']} (exit {row['exit']})" if row.get("exit") is not None else str(row["state"])


@lab.command("list")
def list_() -> None:
    """Names of the labs on this machine.

    \b
      teal lab list
    """
    for one in Lab.names():
        click.echo(one)


@lab.command("exec", context_settings={"allow_interspersed_args": False})
@name_option
@click.option("--netns", default="", help="A namespace of the host, for example acme.web-1.")
@host_argument
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def exec_(name: str, *, netns: str, host: str, command: tuple[str, ...]) -> None:
    """Run a command inside a host (or `controller`). Without one: a shell.

    \b
      teal lab exec h1 -- ip netns list
      teal lab exec --netns acme.web-1 h1 -- ip addr
      teal lab exec h1
    """
    with _plain_errors():
        machine = Lab.load(name).machine(host)
        words = command[1:] if command[:1] == ("--",) else command
        words = words or (os.environ.get("SHELL") or "/bin/bash",)
        argv = [*machine.enter(netns=netns, cwd=os.getcwd()), *words]
    sys.stdout.flush()
    os.execvp(argv[0], argv)


@lab.command("add-host")
@name_option
@click.argument("host", default="")
@click.option("--bare", is_flag=True, help="A machine fresh from the shelf: addresses on eth0, nothing started.")
def add_host(name: str, *, host: str, bare: bool) -> None:
    """Add a host; by default h and the first free number.

    \b
      teal lab add-host
      teal lab add-host spare --bare
    """
    with _plain_errors():
        added = Lab.load(name).add_host(host, parts=Parts.BARE if bare else None)
    click.echo(f"{added.name} is up: {added.vtep}")


@lab.command("remove-host")
@name_option
@host_argument
@click.option("--force", is_flag=True, help="Take it away without asking the API, like a fire; its object stays.")
def remove_host(name: str, *, host: str, force: bool) -> None:
    """Delete a host's object and take the host away. The API refuses while ports are on it.

    \b
      teal lab remove-host h3
      teal lab remove-host h3 --force    like a fire
    """
    with _plain_errors():
        found = Lab.load(name)
        if force:
            found.lose_host(host)
        else:
            found.remove_host(host)
    click.echo(f"{host} is gone")


@lab.command()
@name_option
@host_argument
@process_argument
@click.option("--signal", "number", default="KILL", show_default=True, type=click.Choice(["KILL", "TERM", "INT"]))
@click.option("--restart", is_flag=True, help="Start it again as soon as it is gone.")
def kill(name: str, *, host: str, process: str, number: str, restart: bool) -> None:
    """End a process of a machine.

    \b
      teal lab kill h1 ovs-vswitchd
      teal lab kill controller controller --restart

    A host has agent, ovsdb-server, ovs-vswitchd; `controller` has controller, etcd; `etcd1` has etcd. Nothing starts
    it again but `teal lab start` (an embedded etcd: its controller does).
    """
    with _plain_errors():
        found = Lab.load(name)
        found.kill(host, process, signal.Signals[f"SIG{number}"])
        if restart:
            found.start(host, process)


@lab.command()
@name_option
@host_argument
@process_argument
def start(name: str, *, host: str, process: str) -> None:
    """Start a process that has ended.

    \b
      teal lab start h1 agent
    """
    with _plain_errors():
        Lab.load(name).start(host, process)


@lab.command()
@name_option
@host_argument
@process_argument
def stop(name: str, *, host: str, process: str) -> None:
    """Freeze a process, as if it hung.

    \b
      teal lab stop h1 agent
    """
    with _plain_errors():
        Lab.load(name).stop(host, process)


@lab.command()
@name_option
@host_argument
@process_argument
def cont(name: str, *, host: str, process: str) -> None:
    """Let a frozen process go on.

    \b
      teal lab cont h1 agent
    """
    with _plain_errors():
        Lab.load(name).cont(host, process)


@lab.command()
@name_option
@host_argument
@network_option
@click.option(
    "--direction", default="both", show_default=True, type=click.Choice(["both", "out", "in"]), help="Which frames."
)
def cut(name: str, *, host: str, network: str, direction: str) -> None:
    """Lose every frame of a host, silently: its link stays up. By default its session with the controller lives on.

    \b
      teal lab cut h2
      teal lab cut h2 --network all
      teal lab cut h2 --direction out
      teal lab cut controller2 --network management
    """
    with _plain_errors():
        for one in _NETWORKS[network]:
            Lab.load(name).cut(host, one, direction=Direction(direction))


@lab.command()
@name_option
@host_argument
@network_option
def heal(name: str, *, host: str, network: str) -> None:
    """Carry the host's frames again.

    \b
      teal lab heal h2
    """
    with _plain_errors():
        for one in _NETWORKS[network]:
            Lab.load(name).heal(host, one)


@lab.command()
@name_option
@host_argument
@click.argument("process", default="", shell_complete=_processes)
@click.option("-f", "--follow", is_flag=True, help="Go on as the logs grow.")
def logs(name: str, *, host: str, process: str, follow: bool) -> None:
    """Logs of a host or of one of its processes.

    \b
      teal lab logs h1 agent -f
      teal lab logs controller
    """
    with _plain_errors():
        paths = Lab.load(name).logs(host, process)
    if not paths:
        raise Failure(f"no logs on {host} yet")
    words = ["tail", *(["-F"] if follow else []), "-n", "+1", *map(str, paths)]
    sys.stdout.flush()
    os.execvp(words[0], words)
