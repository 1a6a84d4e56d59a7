"""The lab's controllers: machines of their own on the management network, alone with an embedded etcd, or several."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from tealnet.lab import fabric
from tealnet.lab.errors import LabError
from tealnet.lab.etcd import ETCD, Member, controller_settings
from tealnet.lab.fabric import Fabric, Network
from tealnet.lab.host import python_env
from tealnet.lab.machine import Machine
from tealnet.lab.process import Process, child_called

NAME = "controller"
CONTROLLERS_MAX = 7
TRUST_DOMAIN = "tealnet.local"
_LAST_NUMBER = 254


def controller_name(index: int) -> str:
    """controller, controller2, …"""
    return NAME if index == 1 else f"{NAME}{index}"


class Controller(Machine):
    """A machine that runs a controller. Its API also listens on a unix socket that the person's shell can reach."""

    def __init__(self, directory: Path, *, lab: Path, index: int = 1, members: Sequence[Member] = ()) -> None:
        super().__init__(controller_name(index), directory)
        self.lab, self.members = lab, list(members)
        self.number = _LAST_NUMBER + 1 - index
        self.socket = lab / ("api.sock" if index == 1 else f"api{index}.sock")

    @property
    def address(self) -> str:
        """On the management network."""
        return fabric.management_address(self.number)

    @property
    def server(self) -> str:
        """Where agents reach it."""
        return f"{self.address}:7443"

    @property
    def processes(self) -> tuple[str, ...]:
        """Names of what runs here when all is well."""
        return (NAME,) if self.members else (NAME, ETCD)

    def build(self, cables: Fabric) -> None:
        """Start the machine and connect it."""
        # Shown at the same path inside, over the machine's fresh /run, so that the socket has one name.
        self.create(binds={str(self.lab): self.lab})
        cables.connect(self, self.number, network=Network.MANAGEMENT, device="mgmt0")
        self.ip(["link set lo up", f"address add {self.address}/24 dev mgmt0", "link set mgmt0 up"])

    def configure(self) -> None:
        """Write its settings; certificates lie beside them already."""
        settings = {
            "listen": ["0.0.0.0:7443", f"unix:{self.socket}"],
            **(controller_settings(self.members) if self.members else {"etcd": "embedded"}),
            "data_dir": "/var/lib/tealnet/controller",
            "ca": "/etc/tealnet/ca.crt",
            "cert": "/etc/tealnet/controller.crt",
            "key": "/etc/tealnet/controller.key",
            "ca_key": "/etc/tealnet/ca.key",
            "trust_domain": TRUST_DOMAIN,
            "cluster": "default",
            "replica": self.name,
        }
        (self.disk("/etc/tealnet") / "controller.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))

    def start(self, name: str) -> Process:
        """Start the controller. It starts its etcd itself.

        Raises:
            LabError: it runs already, or another process is meant.
        """
        if name == ETCD and not self.members:
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
        return child_called(ETCD, parent=daemon) if daemon and not self.members else None
