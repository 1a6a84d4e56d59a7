"""What was there before, on disk: written before anything is touched, removed when everything is back."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from agent.underlay.state import Address, Link, Route, Snapshot
from agent.underlay.tools import UnderlayError

STATE_DIR = Path("/var/lib/tealnet")
VERSION = 1
LOCK_SECONDS = 90.0


class Phase(StrEnum):
    """How far it is."""

    PENDING = "pending"
    """Being set up, or not yet seen to work: whoever finds it so after the deadline puts everything back."""
    ACTIVE = "active"
    """Works and stays."""


@dataclass(frozen=True, slots=True)
class Record:
    """One set-up."""

    token: str  # of this set-up, so that an old watchdog does not undo a new one
    phase: Phase
    bridge: str
    taken: float  # when the snapshot was, seconds since 1970
    uplink: Snapshot
    features: tuple[str, ...] = ()  # offloads of the card that are switched off here

    @property
    def device(self) -> str:
        """The network card."""
        return self.uplink.link.name


class Store:
    """The record's file and its lock in a state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "underlay.json"

    def load(self) -> Record | None:
        """The record, or None. Raises UnderlayError if it cannot be read."""
        try:
            return decode(json.loads(self.path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UnderlayError(f"{self.path} cannot be read: {error!r}") from error

    def save(self, record: Record) -> None:
        """Replace the file in one step; it is on the disk when this returns."""
        new = self.path.with_suffix(".new")
        with new.open("w") as file:
            json.dump(encode(record), file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
        self._sync()

    def remove(self) -> None:
        """Nothing is set up any more."""
        self.path.unlink(missing_ok=True)
        self._sync()

    def set_phase(self, record: Record, phase: Phase) -> Record:
        """Note how far it is."""
        record = replace(record, phase=phase)
        self.save(record)
        return record

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process changes the underlay at a time; the lock goes with the process.

        Raises:
            UnderlayError: another one works on it for longer than 90 s.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.directory / "underlay.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + LOCK_SECONDS
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise UnderlayError("another process is working on the underlay") from None
                    time.sleep(0.05)
            yield
        finally:
            os.close(descriptor)

    def _sync(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def encode(record: Record) -> dict[str, Any]:
    """A record as a JSON object."""
    return {"version": VERSION, **asdict(record)}


def decode(content: dict[str, Any]) -> Record:
    """A record from its JSON object. Raises KeyError, TypeError or ValueError."""
    if content["version"] != VERSION:
        raise ValueError(f"version {content['version']} is not known")
    uplink = content["uplink"]
    return Record(
        token=content["token"],
        phase=Phase(content["phase"]),
        bridge=content["bridge"],
        taken=content["taken"],
        uplink=Snapshot(
            link=Link(**uplink["link"]),
            addresses=tuple(Address(**{**row, "flags": tuple(row["flags"])}) for row in uplink["addresses"]),
            routes=tuple(Route(row["family"], tuple(row["words"]), row["expires"]) for row in uplink["routes"]),
        ),
        features=tuple(content["features"]),
    )
