"""The top of the command: sections in the help, "did you mean", and the one place where failures become text."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import click

from tealnet.cli.explain import failure_of
from tealnet.cli.session import Session


class Suggesting(click.Group):
    """A group that answers an unknown command with the nearest known ones."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = get_close_matches(args[0], self.list_commands(ctx), n=2, cutoff=0.6) if args else []
            if not near or "did you mean" in error.message.lower():
                raise
            raise click.UsageError(f"{error.message} Did you mean {' or '.join(near)}?", ctx) from None


class Top(Suggesting):
    """`teal` itself."""

    group_class = Suggesting

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.sections: dict[str, list[str]] = {}

    def add_section(self, title: str, commands: Iterable[click.Command]) -> None:
        """Commands under a heading of the help."""
        names = self.sections.setdefault(title, [])
        for command in commands:
            assert command.name
            self.add_command(command)
            names.append(command.name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Section by section, in the order in which they are learned."""
        widest = max(len(name) for names in self.sections.values() for name in names)
        for title, names in self.sections.items():
            with formatter.section(title):
                rows = [(name.ljust(widest), self.commands[name].get_short_help_str(90)) for name in names]
                formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Failures of the API and the lab leave as click's exceptions."""
        try:
            return super().invoke(ctx)
        except Exception as error:  # what nobody foresaw is raised again
            session = ctx.obj if isinstance(ctx.obj, Session) else Session()
            failure = failure_of(error, session)
            if failure is None:
                raise
            raise failure from None
