"""The etcd of a lab: commands that speak to it, and what leaves it without room."""

from __future__ import annotations

import subprocess
import sys

from tealnet.lab import Lab
from tealnet.lab.etcd import ETCD
from tealnet.lab.host import python_env
from tealnet.lab.machine import call

DATA = "/var/lib/tealnet/etcd"
ROOM = "1g"
_TLS = "/etc/tealnet/etcd"
_PATIENCE = 90.0  # seconds


def store_argv(lab: Lab, module: str, *words: str) -> list[str]:
    """A module that is told a controller's certificates and the endpoints, as a process on the controller's machine."""
    env = [f"{key}={value}" for key, value in python_env().items()]
    files = [f"{_TLS}/ca.crt", f"{_TLS}/client.crt", f"{_TLS}/client.key"]
    endpoints = [member.endpoint for member in lab.members]
    return [*lab.controller.enter(), "env", *env, sys.executable, "-m", module, *words, *files, *endpoints]


class FullQuota:
    """The cluster takes no writes for some seconds, from now on."""

    def __init__(self, lab: Lab, seconds: float) -> None:
        argv = store_argv(lab, "tests.chaos.store_full", f"{seconds:.3f}")
        self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def end(self) -> None:
        """Wait until it takes them again; there must be a quorum. One that had none was never full."""
        _, errors = self._process.communicate(timeout=_PATIENCE)
        assert not self._process.returncode or "StoreError" in errors or "StoreUnavailable" in errors, errors


class SmallDisk:
    """A member's data on a file system of its own, that can be full. What it has preallocated stays its own."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab, self.name = lab, name
        lab.kill(name, ETCD)
        self._sh(
            f"mv {DATA} {DATA}.old && mkdir -m 700 {DATA} && mount -t tmpfs -o mode=700,size={ROOM} none {DATA} && "
            f"cp -a {DATA}.old/. {DATA} && rm -r {DATA}.old"
        )
        lab.start(name, ETCD)

    def fill(self) -> None:
        """No byte is free from now on: with the next page that the member needs it ends."""
        self._sh(f"mount -o remount,size=$(df --output=used -B1 {DATA} | tail -n1) {DATA}")

    def empty(self) -> None:
        """There is room again, and somebody starts the member if it has ended."""
        self._sh(f"mount -o remount,size={ROOM} {DATA}")
        process = self._lab.machine(self.name).process(ETCD)
        if process is None or not process.alive():
            self._lab.start(self.name, ETCD)

    def _sh(self, script: str) -> None:
        call([*self._lab.machine(self.name).enter(), "sh", "-c", script], seconds=30)
