"""The lab's own certificate authority: every machine and the admin get a leaf."""

from __future__ import annotations

import shutil
from pathlib import Path

from tealnet.lab.controller import NAME, TRUST_DOMAIN, Controller
from tealnet.lab.fabric import CONTROLLER_ADDRESS
from tealnet.lab.host import Host


def create(directory: Path, controller: Controller) -> None:
    """Make the authority, the admin's certificate and the controller's.

    The controller also gets the authority's key: it signs for hosts that join.
    """
    from tealnet.core.pki import Ca  # only labs with daemons need cryptography

    ca = Ca.create(TRUST_DOMAIN)
    ca.save(directory)
    ca.issue("admin").save(directory, "admin")
    target = controller.disk("/etc/tealnet")
    target.mkdir(parents=True, exist_ok=True)
    for name in ("ca.crt", "ca.key"):
        shutil.copy(directory / name, target)  # with its mode
    ca.issue("controller", dns=(NAME, "localhost"), ips=(CONTROLLER_ADDRESS,)).save(target, "controller")


def equip(directory: Path, host: Host) -> None:
    """Give a host its certificate."""
    from tealnet.core.pki import Ca

    target = host.disk("/etc/tealnet")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(directory / "ca.crt", target)
    Ca.load(directory).issue(f"host/{host.name}").save(target, "host")
