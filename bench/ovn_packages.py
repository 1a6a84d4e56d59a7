"""OVN's programs: those installed on this machine, else Debian's packages unpacked beside the checkout.

Unpacked and not installed: nothing of this machine changes and no service is started.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("ovn-common", "ovn-central", "ovn-host")
PROGRAMS = ("ovn-northd", "ovn-controller", "ovn-nbctl", "ovn-sbctl")
_ROOT = Path(__file__).resolve().parents[1] / "build" / "ovn"
_SECONDS = 180


class NoOvn(Exception):
    """Why there is no OVN here."""


@dataclass(frozen=True, slots=True)
class Ovn:
    """Where its programs and database schemas are."""

    programs: Path
    schemas: Path
    as_packaged: bool = False  # vswitchd is started as its package does, without deploy/ovs-vswitchd.conf

    def program(self, name: str) -> str:
        """The path of a program."""
        return str(self.programs / name)

    def version(self) -> str:
        """What ovn-northd says."""
        return _run([self.program("ovn-northd"), "--version"]).split("\n", 1)[0]


def find() -> Ovn:
    """OVN's programs, fetched by apt if need be. Raises NoOvn with the reason."""
    installed = shutil.which("ovn-northd")
    found = Ovn(Path(installed).parent, Path("/usr/share/ovn")) if installed else _unpacked()
    for name in PROGRAMS:
        if "not found" in _run(["ldd", found.program(name)]):
            raise NoOvn(f"{name} lacks a library; `apt-get install {' '.join(PACKAGES)}` brings all (and services)")
    return found


def _unpacked() -> Ovn:
    found = Ovn(_ROOT / "usr/bin", _ROOT / "usr/share/ovn")
    if not all((found.programs / name).exists() for name in PROGRAMS):
        if not shutil.which("apt-get"):
            raise NoOvn("OVN is not installed, and there is no apt-get to fetch it with")
        shutil.rmtree(_ROOT, ignore_errors=True)
        _ROOT.mkdir(parents=True)
        try:
            _download()
        except NoOvn:
            _run(["apt-get", "update", "-q"])
            _download()
        for package in _ROOT.glob("*.deb"):
            _run(["dpkg-deb", "--extract", str(package), str(_ROOT)])
    return found


def _download() -> None:
    # apt drops its rights to the user _apt for downloads, who may not write here.
    _run(["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *PACKAGES], cwd=_ROOT)


def _run(argv: Sequence[str], *, cwd: Path | None = None) -> str:
    env = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoOvn(f"{argv[0]}: {error}") from None
    if done.returncode:
        raise NoOvn(f"{' '.join(argv[:2])}: {done.stderr.strip()[-300:]}")
    return done.stdout
