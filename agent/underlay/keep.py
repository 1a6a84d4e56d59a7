"""Bringing the underlay back after a reboot, and whenever the bridge's device is made anew."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
from typing import NoReturn

import structlog

from agent.underlay import move, setup
from agent.underlay.check import leases
from agent.underlay.record import Phase, Record, Store
from agent.underlay.state import Snapshot
from agent.underlay.tools import UnderlayError

log = structlog.get_logger()

_LOOK = 60.0  # seconds between looks when nothing is heard
_RETRY = 1.0  # seconds after something failed


def apply(store: Store) -> str:
    """Bring about what is recorded; returns what was done, in words.

    A set-up that nobody has confirmed before the machine went down is put back.

    Raises:
        UnderlayError: it failed, or the card has addresses now that are not recorded, and would lose them.
    """
    with store.locked():
        record = store.load()
        if record is None:
            return "nothing is set up"
        if record.phase is Phase.PENDING:
            setup.put_back(record, store)
            return "the last set-up was never confirmed: everything is put back"
        unknown = _unknown(record, move.must_read(record.device))
        if unknown:
            raise UnderlayError(
                f"{record.device} has {', '.join(unknown)}, which it had not when it was set up: left as it is. "
                "Run undo, then setup"
            )
        move.engage(record)
        return f"{record.bridge} is in place on {record.device}"


def _unknown(record: Record, uplink: Snapshot) -> list[str]:
    """Fixed addresses that the card has and the record has not."""
    recorded = {address.key for address in record.uplink.addresses}
    leased = leases(uplink)
    return [
        one.local
        for one in uplink.addresses
        if one.key not in recorded and one.scope == "global" and not one.is_dynamic and one.local not in leased
    ]


def keep(store: Store) -> NoReturn:
    """Apply for ever: at once, when the bridge's device changes, and each minute. Ends by a signal."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    monitor = subprocess.Popen(
        ["ip", "-o", "monitor", "link", "address"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0
    )
    assert monitor.stdout is not None
    try:
        while True:
            seconds = _LOOK if _once(store) else _RETRY
            _wait_for_change(monitor, _name(store), seconds=seconds)
    finally:
        monitor.kill()
        monitor.wait()


def _once(store: Store) -> bool:
    try:
        record = store.load()
        if record is None or record.phase is Phase.PENDING:
            return True  # a set-up is at work, or none is wanted
        missing = move.engaged(record)
        if missing:
            log.warning("underlay is not in place", missing=missing)
            log.info("underlay applied", result=apply(store))
    except UnderlayError as error:
        log.error("underlay could not be applied", error=str(error))
        return False
    return True


def _name(store: Store) -> bytes:
    try:
        record = store.load()
    except UnderlayError:
        return b""
    return record.bridge.encode() if record else b""


def _wait_for_change(monitor: subprocess.Popen[bytes], bridge: bytes, *, seconds: float) -> None:
    """Read what `ip monitor` tells until it speaks of the bridge, or the time is up."""
    assert monitor.stdout is not None
    while select.select([monitor.stdout], [], [], seconds)[0]:
        told = monitor.stdout.read(1 << 16)
        if not told:
            raise UnderlayError("ip monitor has ended")
        if bridge and bridge in told:
            return
