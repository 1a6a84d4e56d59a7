"""The command `teal-controller`."""

from __future__ import annotations

import os

# Before gRPC is imported: its fork handlers crash processes that fork with live channels (etcd is our child).
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

import structlog

from controller import settings as options
from controller.etcd import StoreError
from controller.etcd.embedded import EmbeddedError
from controller.server import run, version
from controller.settings import Settings, SettingsError


def main() -> None:
    """Run the controller until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="teal-controller", description="The controller of Tealnet.")
    parser.add_argument("--config", type=Path, default=None, help="YAML file of settings (environment: TEALNET_CONFIG)")
    parser.add_argument("--version", action="version", version=version())
    for name in options.names():
        parser.add_argument(f"--{name.replace('_', '-')}", default=None, metavar="VALUE", help=options.help_of(name))
    flags = vars(parser.parse_args())
    named = flags.pop("config") or (Path(file) if (file := os.environ.get("TEALNET_CONTROLLER_CONFIG")) else None)
    try:
        settings = options.load(named, environ=os.environ, flags=flags)
    except SettingsError as error:
        sys.exit(f"teal-controller: {error}")
    set_up_logs(settings)
    try:
        asyncio.run(_serve(settings))
    except* (StoreError, EmbeddedError, OSError) as group:
        for cause in group.exceptions:
            structlog.get_logger().error("controller ends", error=str(cause), kind=type(cause).__name__)
        sys.exit(1)


async def _serve(settings: Settings) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run(settings, stop)


def set_up_logs(settings: Settings) -> None:
    """JSON lines or text on standard error."""
    render = structlog.processors.JSONRenderer() if settings.log_format == "json" else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.log_level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


if __name__ == "__main__":
    main()
