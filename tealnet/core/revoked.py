"""The site's revocation list: read again when its file changes, within a second.

gRPC for Python checks no list at the handshake, so controllers check every call and every open stream, and agents their
controller before they speak to it. A list that can't be used (garbage, of another authority) changes nothing: the one
before goes on, and the log says so. Without any a controller does not start and an agent opens no session.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from tealnet.core.crl import Revoked, revoked
from tealnet.core.pki import PkiError

log = structlog.get_logger()

LOOK = 1.0  # seconds between looks at the file


class RevocationList:
    """`file` None: nothing is revoked. `ca`: the file with the authorities that may have signed it."""

    def __init__(self, file: Path | None, ca: Path) -> None:
        """Raises PkiError if there is no list that counts."""
        self._file, self._ca = file, ca
        self.stamp: tuple[int, int] | None = None
        self._looked = 0.0
        self.keys: frozenset[Revoked] = frozenset()
        if file is not None:
            try:
                self.stamp = stamp_of(file)
                self.keys = revoked(file.read_bytes(), ca.read_bytes(), str(file))
            except OSError as error:
                raise PkiError(f"cannot read the revocation list {error.filename}: {error.strerror}") from error
            self._looked = time.monotonic()

    def has(self, key: Revoked) -> bool:
        """Whether a certificate counts no more."""
        self._look()
        return key in self.keys

    async def run(self, changed: Callable[[], None]) -> None:
        """Call `changed` after each change, as long as the process lives."""
        while self._file is not None:
            before = self.keys
            await asyncio.sleep(LOOK)
            self._look()
            if self.keys != before:
                changed()

    def _look(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._looked < LOOK:
            return
        self._looked = now
        try:
            if (stamp := stamp_of(self._file)) == self.stamp:
                return
            self.stamp = stamp
            self.keys = revoked(self._file.read_bytes(), self._ca.read_bytes(), str(self._file))
            log.info("revocation list read", revoked=len(self.keys))
        except (OSError, PkiError) as error:
            log.error("revocation list not read; the one before goes on", error=str(error))


def stamp_of(file: Path) -> tuple[int, int]:
    """What changes whenever a file is written or replaced."""
    status = file.stat()
    return status.st_mtime_ns, status.st_ino
