"""The plain tools that do the work: ip(8), ovs-vsctl(8), nft(8), ethtool(8), ping(8)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

PROGRAMS = ("ip", "ovs-vsctl", "nft", "ethtool", "ping")
# Seconds. Nothing may hang: the watchdog waits for the lock of who hangs.
TIMEOUT = 15.0


class UnderlayError(Exception):
    """What went wrong, for a person."""


def call(*argv: str, given: str | None = None) -> str:
    """Run a command to its end and return what it prints.

    Raises:
        UnderlayError: it failed, with its own words, or took longer than 15 s.
    """
    try:
        done = subprocess.run(
            argv,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise UnderlayError(f"{' '.join(argv)}: no end within {TIMEOUT:g} s") from None
    except OSError as error:
        raise UnderlayError(f"{argv[0]}: {error.strerror}") from error
    if done.returncode:
        raise UnderlayError(f"{' '.join(argv)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def words_of(*argv: str, given: str | None = None) -> str:
    """Run a command whose failure does not end the work; returns what went wrong, "" if nothing."""
    try:
        call(*argv, given=given)
    except UnderlayError as error:
        return str(error)
    return ""


def succeeds(*argv: str) -> bool:
    """Whether a command ends well."""
    return not words_of(*argv)


def batch(family: int, lines: Sequence[str]) -> None:
    """Run lines through one `ip -batch`; the first that fails ends it. Raises UnderlayError."""
    if lines:
        call("ip", f"-{family}", "-batch", "-", given="\n".join(lines) + "\n")


def batch_all(family: int, lines: Sequence[str]) -> str:
    """The same, but what fails does not keep later lines from being carried out; returns what went wrong."""
    if not lines:
        return ""
    return words_of("ip", f"-{family}", "-force", "-batch", "-", given="\n".join(lines) + "\n")


def missing_programs() -> list[str]:
    """The tools that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]
