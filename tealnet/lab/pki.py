"""The lab's own certificate authority: every machine and the admin get a leaf."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tealnet.lab.controller import NAME, TRUST_DOMAIN, Controller
from tealnet.lab.host import Host


def create(directory: Path, controllers: Sequence[Controller]) -> None:
    """Make the authority, the admin's certificate and those of the controllers.

    Controllers also get the authority's key: they sign for hosts that join.
    """
    from tealnet.core.pki import Ca  # only labs with daemons need cryptography

    ca = Ca.create(TRUST_DOMAIN)
    ca.save(directory)
    ca.issue("admin").save(directory, "admin")
    for controller in controllers:
        target = controller.disk("/etc/tealnet")
        target.mkdir(parents=True, exist_ok=True)
        for name in ("ca.crt", "ca.key"):
            shutil.copy(directory / name, target)  # with its mode
        ca.issue("controller", dns=(NAME, "localhost"), ips=(controller.address,)).save(target, "controller")


def equip(directory: Path, host: Host) -> None:
    """Give a host its certificate."""
    from tealnet.core.pki import Ca

    target = host.disk("/etc/tealnet")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(directory / "ca.crt", target)
    Ca.load(directory).issue(f"host/{host.name}").save(target, "host")
