"""Setting up, with a way back: the machine is never without somebody who would put everything as it was."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from uuid import uuid4

from agent.underlay import check, move, switch
from agent.underlay.record import Phase, Record, Store
from agent.underlay.tools import UnderlayError, missing_programs

Say = Callable[[str], None]
_WATCHDOG_SECONDS = 10.0  # to get it started
_POLL = 0.2


class Approval(Enum):
    """Who says that it works."""

    CHECK = "check"
    """The targets answer."""
    PERSON = "person"
    """They do, and somebody runs `confirm` before the time is up."""


class Leases(Enum):
    """What to do about addresses from DHCP."""

    REFUSE = "refuse"
    ACCEPT = "accept"


@dataclass(frozen=True, slots=True)
class Wish:
    """What the operator wants."""

    uplink: str
    bridge: str
    vtep: str = ""
    datapath: str = "auto"
    targets: tuple[str, ...] = ()
    seconds: float = 30.0
    approval: Approval = Approval.CHECK
    leases: Leases = Leases.REFUSE


def set_up(wish: Wish, store: Store, *, say: Say) -> None:
    """Set up the underlay bridge; what is set up already is put in order.

    Raises:
        UnderlayError: it was refused, or did not work and everything is as it was.
    """
    if missing := missing_programs():
        raise UnderlayError(f"not installed: {', '.join(missing)}")
    if switch.datapath_type(wish.datapath) == "system":
        say("datapath `system`: the kernel encapsulates by itself and needs no underlay bridge; nothing to do")
        return
    with store.locked():
        old = store.load()
        if old is not None and (old.device, old.bridge) != (wish.uplink, wish.bridge):
            raise UnderlayError(f"{old.bridge} is set up on {old.device}; undo that first")
        if old is not None and old.phase is Phase.ACTIVE:
            move.engage(old)
            say(f"{old.bridge} is set up on {old.device}")
            return
        if old is not None:
            say("an earlier set-up was not finished: putting everything back first")
            put_back(old, store)
        _begin(wish, store, say=say)


def _begin(wish: Wish, store: Store, *, say: Say) -> None:
    record, asked = _examine(wish, say=say)
    deadline = time.monotonic() + wish.seconds
    store.save(record)
    _start_watchdog(record, store, seconds=wish.seconds)
    say(f"moving {wish.uplink} into {wish.bridge}; everything is put back in {wish.seconds:g} s if that fails")
    try:
        move.engage(record)
        silent = check.wait_answers(asked, wish.bridge, until=deadline - 1)
        if silent:
            raise UnderlayError(f"no answer from {', '.join(map(str, silent))}")
    except (UnderlayError, KeyboardInterrupt) as error:
        why = str(error) or "interrupted"
        try:
            put_back(record, store)
        except UnderlayError as worse:
            raise UnderlayError(f"{why}; and {worse}") from error
        raise UnderlayError(f"{why}. Everything is as it was") from error
    if wish.approval is Approval.PERSON:
        left = max(0, deadline - time.monotonic())
        say(f"run `teal-agent underlay confirm` within {left:.0f} s, best from a new session; else all is put back")
        return
    store.set_phase(record, Phase.ACTIVE)
    say(f"{wish.bridge} carries {', '.join(one.local for one in record.uplink.addresses)}")


def _examine(wish: Wish, *, say: Say) -> tuple[Record, list[check.Target]]:
    """Look before anything is touched: what is there, and who answers."""
    uplink = move.must_read(wish.uplink)
    objections = check.objections(uplink, bridge=wish.bridge, vtep=wish.vtep)
    leases = check.leases(uplink)
    if leases and wish.leases is Leases.REFUSE:
        objections.append(
            f"{', '.join(leases)} is leased by DHCP, whose client would go on asking on {wish.uplink}: make it static, "
            "or have the client run on the bridge and say --accept-leases"
        )
    if objections:
        raise UnderlayError("; ".join(objections))
    asked = check.targets(uplink, wish.targets)
    there = check.answering(asked, wish.uplink)
    if wish.targets and len(there) < len(asked):
        raise UnderlayError(f"no answer, even now, from {', '.join(str(one) for one in asked if one not in there)}")
    if not there and wish.approval is Approval.CHECK:
        raise UnderlayError(
            "no gateway answers that could be asked afterwards: name somebody with --check, or --confirm"
        )
    if check.filters_that_name(wish.uplink):
        say(f"warning: packet filter rules name {wish.uplink}; traffic will come in by {wish.bridge}")
    features = switch.glueing(wish.uplink)
    return Record(uuid4().hex, Phase.PENDING, wish.bridge, time.time(), uplink, features), there


def put_back(record: Record, store: Store) -> None:
    """Undo and forget. Raises UnderlayError with what is not as it was; then the record stays."""
    left = move.restore(record)
    if left:
        raise UnderlayError("not everything is as it was:\n  " + "\n  ".join(left))
    store.remove()


# -- the way back without us


def _start_watchdog(record: Record, store: Store, *, seconds: float) -> None:
    """Start the process that puts everything back when the time is up, whatever has become of this one."""
    # -P: the current directory may belong to anybody.
    argv = [sys.executable, "-P", "-m", "agent.underlay", "watchdog", record.token, f"{seconds:g}"]
    log = store.directory / "underlay.log"
    with log.open("a") as out:
        process = subprocess.Popen(
            [*argv, "--state-dir", str(store.directory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=out,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": _import_path()},
        )
    assert process.stdout is not None
    with process.stdout:
        if process.stdout.readline().strip() != "ready":
            store.remove()
            raise UnderlayError(f"the watchdog did not start: see {log}")


def _import_path() -> str:
    """Where the watchdog finds this package, wherever it is run from."""
    return os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""))))


def watch(token: str, store: Store, *, seconds: float, say: Say) -> None:
    """Wait until the set-up is active or gone; at the deadline put everything back. Raises UnderlayError."""
    deadline = time.monotonic() + seconds
    while _is_pending(token, store):
        if time.monotonic() > deadline:
            with store.locked():
                record = store.load()
                if record is not None and record.token == token and record.phase is Phase.PENDING:
                    say("not confirmed in time: putting everything back")
                    put_back(record, store)
                    say("everything is as it was")
            return
        time.sleep(_POLL)


def _is_pending(token: str, store: Store) -> bool:
    record = store.load()
    return record is not None and record.token == token and record.phase is Phase.PENDING
