"""Options that several commands share, so that they are the same everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from tealnet import kinds
from tealnet.cli import output
from tealnet.cli.session import Failure
from tealnet.cli.targets import complete_names

F = Callable[..., Any]
_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST = 3600.0


class Seconds(click.ParamType[float]):
    """A time: 30, 30s, 500ms, 2m, 1h."""

    name = "time"

    def __init__(self, *, longest: float = _LONGEST) -> None:
        self.longest = longest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, (int, float)):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)", str(value).strip())
        if not match:
            self.fail(f"{value!r} is not a time like 30, 30s or 2m", param, ctx)
        seconds = float(match[1]) * _UNITS[match[2]]
        if not 0 < seconds <= self.longest:
            self.fail(f"{value!r} is not more than 0 and at most {self.longest:g} s", param, ctx)
        return seconds


def tenant_option(function: F) -> F:
    """-t TENANT."""
    return click.option(
        "-t", "--tenant", default="", metavar="TENANT", shell_complete=complete_names(kinds.TENANT),
        help="The tenant of short names; default: TEALNET_TENANT, else the context's.",
    )(function)  # fmt: skip


def output_option(function: F) -> F:
    """-o FORMAT."""
    return click.option(
        "-o", "--output", "form", type=click.Choice(output.FORMATS), default="table", help="How to print."
    )(function)


def wait_options(*, default: bool = False) -> Callable[[F], F]:
    """--wait and --timeout."""

    def add(function: F) -> F:
        function = click.option(
            "--timeout", type=Seconds(), default=30.0, metavar="TIME", help="How long --wait waits: 30s, 2m. [30s]"
        )(function)
        flags = "--wait/--no-wait" if default else "--wait"
        return click.option(
            flags, is_flag=True, default=default, help="Wait until the hosts have it on their devices."
        )(function)

    return add


def weight_of(word: str, *, hint: str = "COLOR=WEIGHT") -> tuple[str, int]:
    """`blue=95` as typed. Raises BadParameter."""
    color, equals, weight = word.partition("=")
    if not equals or not color or not re.fullmatch(r"\d{1,7}", weight):
        raise click.BadParameter(f"{word!r} is not COLOR=WEIGHT, a name and a whole number: blue=95", param_hint=hint)
    return color, int(weight)


def yes_option(function: F) -> F:
    """--yes."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask.")(function)


def selector_option(function: F) -> F:
    """-l SELECTOR."""
    return click.option(
        "-l", "--selector", default="", metavar="LABELS",
        help="Only objects with these labels: app=web,tier!=db,gpu. Of ports also network, host, color, group, state=.",
    )(function)  # fmt: skip


def files_option(*, required: bool = True) -> Callable[[F], F]:
    """-f FILE."""
    return click.option(
        "-f", "--file", "files", multiple=True, required=required, metavar="FILE", type=click.Path(),
        help="File, directory (*.yaml, *.yml, *.json below it) or - for standard input; repeatable.",
    )  # fmt: skip


def confirm(question: str) -> None:
    """Ask a person; whoever can't answer is told about --yes. Raises Failure."""
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        click.echo(err=True)
        raise Failure("nobody answered, nothing was done. --yes does it without asking") from None
    if not agreed:
        raise Failure("nothing was done")
