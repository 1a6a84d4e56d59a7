"""`teal demo`: the story, told on a terminal with its results as a table."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tealnet.cli.contexts import put_context
from tealnet.cli.lab import context_name, end_tidily
from tealnet.cli.session import Failure
from tealnet.lab import Lab, LabError, api

if TYPE_CHECKING:
    from tealnet.lab.story import Story

# tealnet.lab.story is imported by who tells it: it needs gRPC, which is slow to import.
NAME = "demo"
HOSTS = 3
Row = tuple[str, str]


@click.command()
@click.option("--keep", is_flag=True, help="Leave the lab up for playing.")
def demo(*, keep: bool) -> None:
    """Tell the story on a lab of 3 hosts, with real traffic (root; about a minute).

    \b
      teal demo
      teal demo --keep && teal get ports

    Exit code 1 with the reason if anything is not as promised.
    """
    end_tidily()
    from tealnet.lab.story import Story

    started = time.monotonic()
    click.secho(
        f"Tealnet: {HOSTS} hosts on this machine, 2 tenants with the same addresses, a service in 2 colors",
        bold=True,
    )
    lab = _up()
    rows: list[Row] = []
    kept = False
    try:
        problem = _tell(Story(lab, api.client(lab.context)), rows=rows, keep=keep)
        kept = keep
    finally:
        if not kept:
            with _Step("tear down"):
                lab.down()
    _table(rows, time.monotonic() - started)
    if keep:
        put_context(context_name(NAME), lab.context)
        teal = _command()
        click.echo(
            f"\nThe lab is up, and context {context_name(NAME)} is the current one. Try\n"
            f"  {teal} status\n  {teal} get ports\n  {teal} exec acme/web-1 -- ping -c3 10.0.0.20\n"
            f"  {teal} lab exec --name {NAME} h1 -- ovs-vsctl show\n"
            f"and end it with\n  {teal} lab down --name {NAME}"
        )
    if problem:
        raise Failure(problem if keep else f"{problem}\n  `make demo KEEP=1` leaves the lab up to look around")


def _up() -> Lab:
    if os.geteuid() != 0:
        raise Failure("the demo makes network namespaces: run it as root (sudo make demo)")
    if NAME in Lab.names():
        raise Failure(
            f"the lab {NAME!r} is there already: kept by KEEP=1, or left by a demo that was killed.\n"
            f"  `{_command()} lab down --name {NAME}` removes it"
        )
    try:
        with _Step(f"a lab of {HOSTS} hosts, each with its own Open vSwitch and agent"):
            return Lab.up(NAME, hosts=HOSTS)
    except LabError as error:
        raise Failure(f"the lab did not start: {error}") from None


def _tell(story: Story, *, rows: list[Row], keep: bool) -> str:
    """Chapter by chapter until one is not as promised; returns what is wrong with that one."""
    from tealnet.lab.story import CHAPTERS

    for chapter in CHAPTERS[:-1] if keep else CHAPTERS:  # the last one deletes everything
        try:
            with _Step(chapter.title) as step:
                step.finding = chapter.run(story)
        except Exception as error:
            if os.environ.get("TEALNET_DEBUG"):
                raise
            why = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
            rows.append((chapter.title, "NOT AS PROMISED"))
            return f"“{chapter.title}” is not as promised: {why}"
        rows.append((chapter.title, step.finding))
    return ""


def _table(rows: list[Row], took: float) -> None:
    from rich.console import Console
    from rich.table import Table

    well = sum(result != "NOT AS PROMISED" for _, result in rows)
    table = Table("what", "result")
    for row in rows:
        table.add_row(*row)
    click.secho(f"\n{well} of {len(rows)} chapters as promised, {took:.0f} s", bold=True)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140).print(table)


def _command() -> str:
    """`teal` as it is to be typed: newcomers do not have it in their path."""
    if shutil.which("teal"):
        return "teal"
    return os.path.relpath(Path(sys.executable).with_name("teal"))


class _Step:
    """`… what` on a terminal while it runs; then a line with what was found and how long it took."""

    def __init__(self, what: str) -> None:
        self.what, self.finding = what, ""
        self._started = time.monotonic()

    def __enter__(self) -> _Step:
        if sys.stdout.isatty():
            click.echo(f"  …   {self.what}", nl=False)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        back = "\r\x1b[K" if sys.stdout.isatty() else ""
        mark = click.style("no", fg="red") if kind else click.style("ok", fg="green")
        found = f": {self.finding}" if self.finding else ""
        click.echo(f"{back}  {mark}  {self.what}{found} ({time.monotonic() - self._started:.1f} s)")
