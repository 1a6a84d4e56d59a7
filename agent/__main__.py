"""`teal-agent [run] --config FILE`, `teal-agent join …` and `teal-agent underlay …`."""

from __future__ import annotations

import os

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # before gRPC is imported: its handlers crash a process that forks
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # its own lines would lie between ours

import argparse
import asyncio
import logging
import resource
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import structlog

from agent.join import Files, JoinError, Ticket, join
from agent.server import serve
from agent.settings import Settings, SettingsError, load
from agent.underlay import command as underlay

SWITCH = 0.0005
"""Seconds that a thread goes on while another waits to run. The namespace thread makes many short system calls: after
each it would wait for the 5 ms that are Python's own, whenever the event loop is busy."""


def main() -> None:
    """Entry point of `teal-agent`."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run a command; returns the exit code: 0, 1 failed, 2 wrong use."""
    sys.setswitchinterval(SWITCH)
    parser = argparse.ArgumentParser(prog="teal-agent", description="Tealnet's agent: one per host.")
    commands = parser.add_subparsers(dest="command", required=True)
    _run_arguments(commands.add_parser("run", help="work (the default)"))
    _join_arguments(commands.add_parser("join", help="get this host's certificate with a one-time token"))
    commands.add_parser("underlay", help="the bridge that carries the tunnel address (netdev): set up, undo, show")
    words = list(argv)
    if words and words[0] == "underlay":
        return underlay.run(words[1:])
    if not words or words[0] not in ("run", "join", "-h", "--help"):
        words.insert(0, "run")
    arguments = parser.parse_args(words)
    try:
        return _join(arguments) if arguments.command == "join" else _run(arguments)
    except SettingsError as error:
        print(f"teal-agent: {error}", file=sys.stderr)
        return 2


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="YAML file with settings")
    for field in fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", dest=field.name, metavar="VALUE")


def _join_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", required=True, help="host:port of the controller's join listener")
    parser.add_argument("--host", required=True, help="name of this host as the admin has added it")
    parser.add_argument("--token", required=True, help="the one-time token; @FILE reads it from a file")
    parser.add_argument("--ca-sha256", required=True, help="SHA-256 of the CA certificate, as shown with the token")
    parser.add_argument("--server-name", default="", help="name in the controller's certificate, if not the address")
    parser.add_argument("--config", type=Path, help="YAML file with settings: where certificates go")


def _run(arguments: argparse.Namespace) -> int:
    flags = {field.name: getattr(arguments, field.name) for field in fields(Settings)}
    settings = load(arguments.config, environ=os.environ, flags=flags)
    set_up_logs(settings)
    # One event socket stays open per workload namespace: the usual soft limit of 1,024 would be the limit of ports.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(serve(settings))
    return 0


def _join(arguments: argparse.Namespace) -> int:
    settings = load(arguments.config, environ=os.environ, flags={})
    token = arguments.token
    try:
        if token.startswith("@"):
            token = Path(token[1:]).read_text().strip()
        ticket = Ticket(arguments.server, arguments.host, token, arguments.ca_sha256)
        files = Files(settings.ca, settings.cert, settings.key)
        asyncio.run(join(ticket, files, server_name=arguments.server_name))
    except (JoinError, OSError) as error:
        print(f"teal-agent join: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.host} has joined; certificate in {settings.cert}")
    return 0


def set_up_logs(settings: Settings) -> None:
    """Structured logs to stderr, one event per line."""
    renderer = structlog.processors.JSONRenderer() if settings.log_format == "json" else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks
            if settings.log_format == "json"
            else structlog.processors.StackInfoRenderer(),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


if __name__ == "__main__":
    main()
