"""What this machine must have to run a lab."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tealnet.lab.errors import LabError
from tealnet.lab.host import SCHEMA

PROGRAMS = ("ip", "bridge", "nsenter", "ovsdb-server", "ovs-vswitchd", "ovsdb-tool", "ovs-vsctl")


def check() -> None:
    """Raise LabError that names what is missing."""
    if os.geteuid() != 0:
        raise LabError("a lab needs root: namespaces, bridges, Open vSwitch (use sudo)")
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing or not Path(SCHEMA).exists():
        raise LabError(f"not installed: {', '.join(missing) or SCHEMA}; deploy/setup.sh installs what is needed")
