"""Where a lab's files are: one directory per lab, /run/tealnet-lab/NAME or below $TEALNET_LAB_DIR."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tealnet.lab.errors import LabError

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")
_LONGEST_PATH = 107  # of a unix socket: unix(7), sun_path
LOCK_SECONDS = 120.0


def base() -> Path:
    """The directory of all labs."""
    return Path(os.environ.get("TEALNET_LAB_DIR") or "/run/tealnet-lab").absolute()


def directory(name: str) -> Path:
    """The directory of the lab called `name`.

    Raises:
        LabError: the name is not one, or the path is too long for the sockets in it.
    """
    check_name(name)
    found = base() / name
    if len(str(found / "machines" / ("h" * 32) / "ctl")) > _LONGEST_PATH:
        raise LabError(f"{found} is too long for the sockets in it; set TEALNET_LAB_DIR to a shorter path")
    return found


def check_name(name: str) -> None:
    """Raise LabError unless `name` can be the name of a lab or of a host in it."""
    if not _NAME.fullmatch(name):
        raise LabError(f"{name!r}: a name has 1 to 32 lower-case letters, digits and hyphens and begins with a letter")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one command changes a lab at a time. The lock is the directory itself: no file, and it dies with its holder.

    Raises:
        LabError: no such lab, or another command holds it for two minutes.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        raise LabError(f"no lab {path.name!r}; `teal lab up --name {path.name}` makes one") from None
    deadline = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LabError(f"another command is working on lab {path.name!r}") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(fd)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file in one step."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, indent=1) + "\n")
    new.rename(path)
