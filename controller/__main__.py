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
from controller.etcd.embedded import EmbeddedError, EmbeddedEtcd, Options
from controller.etcd.restore import restore
from controller.server import run, store_of, version
from controller.settings import Settings, SettingsError
from controller.store import new_history
from tealnet.core.pki import PkiError


def main() -> None:
    """Run the controller until SIGTERM or SIGINT; with --restore put a backup in the place of its etcd's data."""
    parser = argparse.ArgumentParser(prog="teal-controller", description="The controller of Tealnet.")
    text = "put a backup (teal admin backup) in the place of the embedded etcd's data, and end"
    parser.add_argument("--restore", type=Path, default=None, metavar="FILE", help=text)
    parser.add_argument("--config", type=Path, default=None, help="YAML file of settings (environment: TEALNET_CONFIG)")
    parser.add_argument("--version", action="version", version=version())
    for name in options.names():
        parser.add_argument(f"--{name.replace('_', '-')}", default=None, metavar="VALUE", help=options.help_of(name))
    text = "after a cluster of etcd was restored: have every host wait until it is accepted, and end"
    parser.add_argument("--new-history", action="store_true", help=text)
    flags = vars(parser.parse_args())
    begin = flags.pop("new_history")
    snapshot = flags.pop("restore")
    named = flags.pop("config") or (Path(file) if (file := os.environ.get("TEALNET_CONTROLLER_CONFIG")) else None)
    try:
        settings = options.load(named, environ=os.environ, flags=flags)
    except SettingsError as error:
        sys.exit(f"teal-controller: {error}")
    set_up_logs(settings)
    if snapshot is not None:
        _restore(settings, snapshot)
        return
    try:
        asyncio.run(_new_history(settings) if begin else _serve(settings))
    except* (StoreError, EmbeddedError, PkiError, OSError) as group:
        for cause in group.exceptions:
            structlog.get_logger().error("controller ends", error=str(cause), kind=type(cause).__name__)
        sys.exit(1)


def _restore(settings: Settings, snapshot: Path) -> None:
    if not settings.is_embedded:
        sys.exit("teal-controller: --restore is for the embedded etcd; for a cluster see docs/operations.md, Backup")
    try:
        former = restore(EmbeddedEtcd(Options(settings.data_dir / "etcd")), snapshot)
    except (EmbeddedError, OSError) as error:
        sys.exit(f"teal-controller: {error}")
    print(f"restored from {snapshot}; the former data is in {former}")
    print("start the controller, then let the hosts go on: teal host accept --all")


async def _serve(settings: Settings) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run(settings, stop)


async def _new_history(settings: Settings) -> None:
    async with store_of(settings) as etcd:
        await new_history(etcd, settings.cluster)
    print("hosts now wait until they are accepted: teal host accept --all")


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
