"""A changing line for work that takes longer than a second: on a terminal only, on standard error."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import Any, Self

import click

_PATIENCE = 1.0  # seconds until it shows


class Progress:
    """`with Progress("waiting for the hosts") as progress: …`; lines said meanwhile stand above it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._live: Any = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(_PATIENCE, self._show)
        self._timer.daemon = True
        self._over = False

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._over = True
            if self._live:
                self._live.stop()

    def _show(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        with self._lock:
            if not self._over:
                # Its console is standard error's; standard output must stay what the command prints.
                self._live = Live(
                    Spinner("dots", self._text), console=Console(stderr=True), transient=True,
                    redirect_stdout=False, redirect_stderr=False,
                )  # fmt: skip
                self._live.start()

    def step(self, text: str) -> None:
        """Another text."""
        with self._lock:
            self._text = text
            if self._live:
                self._live.renderable.update(text=text)

    def say(self, line: str, *, err: bool = False) -> None:
        """Print a line for good."""
        with self._lock:
            if self._live and (err or sys.stdout.isatty()):
                from rich.text import Text

                self._live.console.print(Text.from_ansi(line), soft_wrap=True)
                return
        click.echo(line, err=err)
