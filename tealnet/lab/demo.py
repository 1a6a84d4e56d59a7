"""`teal demo`: the story, told on a terminal with its results as a table."""

from __future__ import annotations

import os
import sys
import time

import click

from tealnet.lab import api
from tealnet.lab.errors import LabError
from tealnet.lab.lab import Lab
from tealnet.lab.story import CHAPTERS, Story, tell


def run(*, keep: str, name: str = "demo", hosts: int = 3) -> int:
    """Start a lab, tell the story, tear down. Exit code 0, or 1 with the reason. `keep` = "lab" leaves it up."""
    if os.geteuid() != 0:
        click.secho("error: the demo makes network namespaces: run it as root (sudo make demo)", fg="red", err=True)
        return 1
    started = time.monotonic()
    click.secho(
        f"Tealnet demo: {hosts} hosts on this machine, 2 tenants with the same addresses, real packets", bold=True
    )
    rows: list[tuple[str, str]] = []
    chapters = CHAPTERS[:-1] if keep else CHAPTERS
    try:
        with _progress("a lab of 3 hosts, each with its own Open vSwitch and agent"):
            lab = Lab.up(name, hosts=hosts)
    except LabError as error:
        click.secho(f"error: the lab did not start: {error}", fg="red", err=True)
        return 1
    try:
        story = Story(lab, api.client(lab.context))

        def say(title: str, finding: str) -> None:
            rows.append((title, finding))
            click.echo(f"  {click.style('ok', fg='green')}  {title}: {finding}")

        tell(story, say=say, upto=len(chapters))
    except Exception as error:
        failed = CHAPTERS[len(rows)].title
        click.secho(f"FAILED in “{failed}”: {error}", fg="red", err=True)
        click.echo(
            f"logs: teal lab logs --name {name} HOST" if keep else "run again with KEEP=1 to look around", err=True
        )
        if not isinstance(error, LabError):
            import traceback

            traceback.print_exc()
        return 1
    finally:
        if not keep:
            with _progress("tear down"):
                lab.down()
    _table(rows, time.monotonic() - started)
    if keep:
        click.echo(
            f"\nthe lab {name!r} is up: try `teal status`, `teal get ports`, `teal exec acme/web-1 -- ping 10.0.0.1`"
        )
        click.echo(f"end it with `teal lab down --name {name}`")
    return 0


def _table(rows: list[tuple[str, str]], took: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len(rows)} of {len(rows)} chapters as promised, {took:.0f} s", title_justify="left")
    table.add_column("what")
    table.add_column("result")
    for row in rows:
        table.add_row(*row)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140).print(table)


class _progress:
    """`… what` while it runs, `ok what (s)` when done."""

    def __init__(self, what: str) -> None:
        self.what, self.started = what, time.monotonic()

    def __enter__(self) -> None:
        if sys.stdout.isatty():
            click.echo(f"  …   {self.what}\r", nl=False)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            click.echo(f"  {click.style('ok', fg='green')}  {self.what} ({time.monotonic() - self.started:.1f} s)")
