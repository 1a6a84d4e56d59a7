"""The file of one replica: a JSON line per entry, appended with one write; at its limit it becomes `….1`.

Two files are kept. Writing never raises: without a disk the entry goes to the program's own log, and `lost` counts it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger()

Entry = dict[str, Any]
"""As in the file: keys and values of tealnet.v1.AuditEntry, `time` in ISO 8601 (UTC). What is empty is left out."""
_BLOCK = 1 << 16  # bytes read at once, backwards


class AuditLog:
    """`path` None: entries go to the program's own log only. `most` is the size in bytes at which a file is full."""

    def __init__(self, path: Path | None, *, most: int) -> None:
        self.path, self.most = path, most
        self.lost = 0  # entries that are not in the file
        self._descriptor = -1
        self._size = 0

    def write(self, entry: Entry) -> None:
        """Append an entry."""
        if self.path is None:
            log.info("audit", **entry)
            return
        line = (json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
        try:
            self._append(self.path, line)
        except OSError as error:
            if not self.lost:
                log.error("audit log not written; its lines follow here", path=str(self.path), error=str(error))
            self.lost += 1
            self.close()
            log.info("audit", **entry)

    def _append(self, path: Path, line: bytes) -> None:
        if self._descriptor < 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            self._size = os.fstat(self._descriptor).st_size
        elif self._size and self._size + len(line) > self.most:
            self.close()
            os.replace(path, _former(path))
            self._append(path, line)
            return
        written = os.write(self._descriptor, line)
        self._size += written
        if written < len(line):  # the disk is full: half a line is no entry
            os.ftruncate(self._descriptor, self._size - written)
            raise OSError("no space left for a whole line")

    def close(self) -> None:
        """Let the file go; the next entry opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def newest(self, matches: Callable[[Entry], bool], *, limit: int, since: str = "") -> list[Entry]:
        """The newest entries that match, oldest first; none of before `since` (as in `time`). Reads files: slow."""
        found: list[Entry] = []
        for entry in self._backwards():
            if len(found) >= limit or str(entry.get("time", "")) < since:
                break
            if matches(entry):
                found.append(entry)
        return found[::-1]

    def _backwards(self) -> Iterator[Entry]:
        for path in () if self.path is None else (self.path, _former(self.path)):
            try:
                for line in _lines_backwards(path):
                    try:
                        entry = json.loads(line)
                    except ValueError:  # torn by a crash of the machine
                        continue
                    if isinstance(entry, dict):
                        yield entry
            except FileNotFoundError:
                continue


def _former(path: Path) -> Path:
    return path.with_name(path.name + ".1")


def _lines_backwards(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        at = file.seek(0, os.SEEK_END)
        rest = b""
        while at:
            size = min(_BLOCK, at)
            at -= size
            file.seek(at)
            *lines, last = (file.read(size) + rest).split(b"\n")[::-1]
            rest = last
            yield from (line for line in lines if line)
        if rest:
            yield rest
