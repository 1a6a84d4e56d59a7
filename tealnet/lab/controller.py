"""The lab's controller: a machine of its own on the management network, with an embedded etcd."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from tealnet.lab import fabric
from tealnet.lab.errors import LabError
from tealnet.lab.fabric import Fabric, Network
from tealnet.lab.host import python_env
from tealnet.lab.machine import Machine
from tealnet.lab.process import Process, child_called

NAME = "controller"
ETCD = "etcd"
NUMBER = 254
TRUST_DOMAIN = "tealnet.local"
SERVER = f"{fabric.CONTROLLER_ADDRESS}:7443"


class Controller(Machine):
    """The machine that runs the controller. Its API also listens on a unix socket that the person's shell can reach."""

    def __init__(self, directory: Path, *, lab: Path) -> None:
        super().__init__(NAME, directory)
        self.lab = lab
        self.socket = lab / "api.sock"

    @property
    def processes(self) -> tuple[str, ...]:
        """Names of what runs here when all is well."""
        return NAME, ETCD

    def build(self, cables: Fabric) -> None:
        """Start the machine and connect it."""
        # Shown at the same path inside, over the machine's fresh /run, so that the socket has one name.
        self.create(binds={str(self.lab): self.lab})
        cables.connect(self, NUMBER, network=Network.MANAGEMENT, device="mgmt0")
        self.ip(["link set lo up", f"address add {fabric.CONTROLLER_ADDRESS}/24 dev mgmt0", "link set mgmt0 up"])

    def configure(self) -> None:
        """Write its settings; certificates lie beside them already."""
        settings = {
            "listen": ["0.0.0.0:7443", f"unix:{self.socket}"],
            "etcd": "embedded",
            "data_dir": "/var/lib/tealnet/controller",
            "ca": "/etc/tealnet/ca.crt",
            "cert": "/etc/tealnet/controller.crt",
            "key": "/etc/tealnet/controller.key",
            "ca_key": "/etc/tealnet/ca.key",
            "trust_domain": TRUST_DOMAIN,
            "cluster": "default",
        }
        (self.disk("/etc/tealnet") / "controller.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))

    def start(self, name: str) -> Process:
        """Start the controller. It starts its etcd itself.

        Raises:
            LabError: it runs already, or another process is meant.
        """
        if name == ETCD:
            raise LabError("etcd is the controller's child and is started by it")
        if name != NAME:
            raise LabError(f"no process {name!r}; there are: {', '.join(self.processes)}")
        argv = [sys.executable, "-m", "controller", "--config", "/etc/tealnet/controller.yaml"]
        return self.spawn(name, argv, log="/var/log/tealnet/controller.log", env=python_env())

    def process(self, name: str) -> Process | None:
        """The controller, or the etcd that it has started."""
        daemon = super().process(NAME)
        if name != ETCD:
            return daemon if name == NAME else None
        return child_called(ETCD, parent=daemon) if daemon else None

    def context(self) -> dict[str, Any]:
        """How the admin reaches the API from this machine: the settings of a context of the `teal` command."""
        pki = self.lab / "pki"
        return {
            "server": f"unix:{self.socket}",
            "server_name": NAME,
            "ca": str(pki / "ca.crt"),
            "cert": str(pki / "admin.crt"),
            "key": str(pki / "admin.key"),
            "lab": self.lab.name,
        }
