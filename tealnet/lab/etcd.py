"""Members of the lab's etcd cluster: machines of their own on the management network, with mutual TLS.

They have a certificate authority of their own, so that no certificate of a host or person opens the store.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tealnet.lab import fabric
from tealnet.lab.errors import LabError
from tealnet.lab.fabric import Fabric, Network
from tealnet.lab.machine import Machine
from tealnet.lab.process import Process

ETCD = "etcd"
MEMBERS_MAX = 7
_FIRST_NUMBER = 241
_TLS = "/etc/tealnet/etcd"


def member_name(index: int) -> str:
    """etcd1, etcd2, …"""
    return f"{ETCD}{index}"


class Member(Machine):
    """One member, `index` 1, 2, … of `count`."""

    def __init__(self, directory: Path, *, index: int, count: int) -> None:
        super().__init__(member_name(index), directory)
        self.index, self.count = index, count
        self.number = _FIRST_NUMBER + index - 1

    @property
    def processes(self) -> tuple[str, ...]:
        """Names of what runs here when all is well."""
        return (ETCD,)

    @property
    def address(self) -> str:
        """On the management network."""
        return fabric.management_address(self.number)

    @property
    def endpoint(self) -> str:
        """Where controllers reach it."""
        return f"https://{self.address}:2379"

    def build(self, cables: Fabric) -> None:
        """Start the machine and connect it."""
        self.create()
        cables.connect(self, self.number, network=Network.MANAGEMENT, device="mgmt0")
        self.ip(["link set lo up", f"address add {self.address}/24 dev mgmt0", "link set mgmt0 up"])

    def start(self, name: str) -> Process:
        """Start etcd, which finds its data again. Raises LabError: another process is meant, or it runs already."""
        if name != ETCD:
            raise LabError(f"no process {name!r}; there is: {ETCD}")
        peers = [fabric.management_address(_FIRST_NUMBER + i) for i in range(self.count)]
        cluster = ",".join(f"{member_name(i)}=https://{peer}:2380" for i, peer in enumerate(peers, start=1))
        argv = [
            "etcd",
            f"--name={self.name}",
            "--data-dir=/var/lib/tealnet/etcd",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls=https://{self.address}:2380",
            f"--initial-advertise-peer-urls=https://{self.address}:2380",
            f"--initial-cluster={cluster}",
            "--max-txn-ops=4096",
            "--heartbeat-interval=50",  # on one site: a new leader within a second
            "--election-timeout=500",
            "--log-level=warn",
            "--client-cert-auth",
            "--peer-client-cert-auth",
        ]
        for kind, prefix in (("", ""), ("peer-", "peer-")):
            argv += [
                f"--{kind}cert-file={_TLS}/member.crt",
                f"--{kind}key-file={_TLS}/member.key",
                f"--{prefix}trusted-ca-file={_TLS}/ca.crt",
            ]
        return self.spawn(ETCD, argv, log="/var/log/tealnet/etcd.log")


def certify(directory: Path, *, members: list[Member], controllers: list[Machine]) -> None:
    """Make etcd's own authority below `directory`, a certificate for each member and one for each controller."""
    from tealnet.core.pki import Ca

    ca = Ca.create("etcd.lab")
    ca.save(directory)
    for machine, stem in [*((m, "member") for m in members), *((c, "client") for c in controllers)]:
        target = machine.disk(_TLS)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(directory / "ca.crt", target)
        ips = (machine.address,) if isinstance(machine, Member) else ()
        ca.issue("controller", dns=(machine.name,), ips=ips).save(target, stem)


def controller_settings(members: list[Member]) -> dict[str, object]:
    """What a controller's settings say of the cluster."""
    return {
        "etcd": [member.endpoint for member in members],
        "etcd_ca": f"{_TLS}/ca.crt",
        "etcd_cert": f"{_TLS}/client.crt",
        "etcd_key": f"{_TLS}/client.key",
    }
