"""A backup is taken and restored: hosts notice, nothing changes until it is accepted, and the old state is back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tealnet import kinds
from tealnet.lab import Lab
from tests.lab.stand import FOREIGN_HISTORY, READY, pinging, standing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


def teal(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, as an admin of the lab."""
    config = lab.directory / "config.yaml"
    argv = [sys.executable, "-m", "tealnet.cli.main", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env={"TEALNET_CONFIG": str(config)})


def use(lab: Lab) -> None:
    """Make the lab's controller the one that `teal` talks to."""
    settings = {key: str(value) for key, value in lab.context.items()}
    words = [f"--{key.replace('_', '-')}={settings[key]}" for key in ("server", "ca", "cert", "key")]
    assert teal(lab, "context", "add", "lab", *words).returncode == 0


def test_backup_and_restore(tmp_path: Path) -> None:
    with standing("t-backup", hosts=2) as stand:
        lab = stand.lab
        use(lab)
        stand.tenant("acme")
        stand.network("acme/web", "10.1.0.0/24", "fd01::/64")
        stand.port("acme/a", "web", "h1")
        stand.port("acme/b", "web", "h2")
        stand.sync()
        one, two = stand.workloads("acme/a", "acme/b")
        file = tmp_path / "backup.db"
        done = teal(lab, "admin", "backup", str(file))
        assert done.returncode == 0 and file.stat().st_mode & 0o777 == 0o600, done
        assert teal(lab, "admin", "backup", str(file)).returncode == 1  # never over another one
        stand.port("acme/late", "web", "h1")
        stand.sync()

        machine = lab.controller
        image = machine.disk("/var/lib/tealnet") / "backup.db"
        restore = [sys.executable, "-m", "tealnet.cli.main", "admin", "restore", "/var/lib/tealnet/backup.db", "--yes"]
        inside = machine.enter(cwd=str(Path(__file__).parents[2]))
        restore = [*inside, *restore, "--config=/etc/tealnet/controller.yaml"]
        image.write_bytes(file.read_bytes()[:-1])
        refused = subprocess.run(restore, capture_output=True, text=True, timeout=60)
        assert refused.returncode and "not a whole snapshot" in refused.stderr, refused
        image.write_bytes(file.read_bytes())
        refused = subprocess.run(restore, capture_output=True, text=True, timeout=60)
        assert refused.returncode and "another controller runs" in refused.stderr, refused
        with pinging((one, two.v4), (two, one.v6)):
            lab.kill("controller", "controller")
            done = subprocess.run(restore, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0 and "teal host accept --all" in done.stdout, done
            lab.start("controller", "controller")
            stand.client.revision = 0
            for name in ("h1", "h2"):
                stand.host_becomes(name, FOREIGN_HISTORY)
            assert teal(lab, "host", "accept", "--all").returncode == 0
            for name in ("h1", "h2"):
                stand.host_becomes(name, READY)
            stand.sync()
        ports = {port.name.rsplit("/", 1)[1] for port in stand.client.list_all(kinds.PORT)}
        assert ports == {"a", "b"}
        done = teal(lab, "admin", "defrag")
        assert done.returncode == 0 and "done" in done.stdout, done
        assert teal(lab, "admin", "alarms").stdout.strip() == "no alarms"
