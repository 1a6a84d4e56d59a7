"""Putting a snapshot in the place of an embedded etcd's data, while nothing runs.

The old data is kept beside the new one. Hosts notice that the history is another one (A3) and change nothing until an
admin accepts it: `teal host accept`.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
from pathlib import Path

from controller.etcd.embedded import DATA, NAME, PEER_URL, EmbeddedError, EmbeddedEtcd, environment

MARK = "restored"  # beside the data, until a new history has been begun with it
_HASH = 32  # etcd appends the SHA-256 of a snapshot to it
_SECONDS = 600


def check(snapshot: Path) -> int:
    """Bytes of a snapshot that is whole. Raises EmbeddedError that says what is wrong."""
    digest, size = hashlib.sha256(), snapshot.stat().st_size
    left = size - _HASH
    with snapshot.open("rb") as file:
        while left > 0 and (part := file.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
        if left or file.read(_HASH) != digest.digest():
            raise EmbeddedError(f"{snapshot} is not a whole snapshot of etcd: its hash does not fit")
    return size


def restore(etcd: EmbeddedEtcd, snapshot: Path) -> Path:
    """Restore into the directory of an etcd that does not run; returns where its former data is now.

    Raises EmbeddedError: it runs, the snapshot is not whole, or etcdctl says why it cannot.
    """
    program = shutil.which("etcdctl")
    if program is None:
        raise EmbeddedError("the program 'etcdctl' was not found: install Debian's package etcd-client")
    check(snapshot)
    with etcd.at_rest() as directory:
        draft = directory / "restored"
        shutil.rmtree(draft, ignore_errors=True)
        words = [
            f"--data-dir={draft.name}",
            f"--name={NAME}",
            f"--initial-cluster={NAME}={PEER_URL}",
            f"--initial-advertise-peer-urls={PEER_URL}",
        ]
        done = subprocess.run(
            [program, "snapshot", "restore", str(snapshot.absolute()), *words],
            cwd=directory,
            env={**environment(), "ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        if done.returncode:
            raise EmbeddedError(f"etcdctl: {done.stderr.strip() or done.stdout.strip()}")
        former, current = directory / f"{DATA}.{time.strftime('%Y%m%dT%H%M%S')}", directory / DATA
        if current.exists():
            current.rename(former)
        draft.rename(current)
        (directory / MARK).touch(mode=0o600)
    return former
