"""Nobody but the controller reaches the store: not another user of its machine, not an agent with its certificate."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from controller.etcd import Etcd, StoreError, Tls
from tealnet.core.pki import Ca
from tests.controller.etcd.test_etcd_cluster import Cluster
from tests.controller.running import Site, site

CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


def as_nobody(path: Path) -> subprocess.CompletedProcess[str]:
    """Connect to a unix socket as a user of no rights."""
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    argv = [*nobody, sys.executable, "-I", "-S", "-c", CONNECT, str(path)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=20, cwd="/")


def listening(pid: int) -> list[str]:
    """Addresses where a process listens by TCP."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            inodes.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if f"socket:[{words[9]}]" in inodes and (words[3] == "0A" or table.startswith("udp")):
                found.append(f"{table} {words[1]}")
    return found


def etcd_pid(place: Site) -> int:
    return int((place.settings.data_dir / "etcd" / "etcd.pid").read_text().split()[0])


async def test_the_embedded_store_is_behind_a_door_that_only_its_user_opens() -> None:
    async with site(embedded=True) as place:
        # The door, and not the directories above it, is what is tested.
        for above in (place.directory, *place.directory.parents):
            if above != Path("/") and above != Path(tempfile.gettempdir()):
                above.chmod(0o755)
        door = place.settings.data_dir / "etcd"
        assert door.stat().st_mode & 0o777 == 0o700
        (control := place.directory / "open").touch()
        control.unlink()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(control))
            control.chmod(0o777)
            server.listen()
            assert as_nobody(control).returncode == 0, "the test could not see a door that is open"
        sockets = [path for path in door.iterdir() if path.is_socket()]
        assert sockets
        for path in sockets:
            assert "PermissionError" in as_nobody(path).stderr
        assert listening(etcd_pid(place)) == []
        with socket.create_server(("127.0.0.1", 0)):
            assert listening(os.getpid()), "the test could not see a listener"


ROLES = ("host/h1", "tenant/acme/admin", "admin")


async def test_a_cluster_knows_no_certificate_of_ours(tmp_path: Path) -> None:
    """etcd has an authority of its own, whatever our site's has signed."""
    cluster = Cluster(tmp_path / "etcd")
    await cluster.start()
    try:
        async with Etcd(cluster.clients, cluster.tls, timeout=5) as etcd:
            assert (await etcd.status()).version
        ca = Ca.create("tealnet.local")
        leaves = [ca.issue(role).save(tmp_path, f"leaf{i}") for i, role in enumerate(ROLES)]
        async with asyncio.TaskGroup() as group:
            for cert, key in [*leaves, (None, None)]:
                group.create_task(_refused(cluster.clients, Tls(cluster.tls.ca, cert, key)))
    finally:
        await cluster.stop()


async def _refused(endpoints: list[str], tls: Tls) -> None:
    async with Etcd(endpoints, tls, timeout=1) as etcd:
        with pytest.raises(StoreError):
            await etcd.range(b"/")
