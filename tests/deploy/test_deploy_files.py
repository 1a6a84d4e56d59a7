"""The files in deploy/ say what the programs say, and systemd takes them."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

import agent.settings
import controller.settings
from tealnet.lab.host import VSWITCHD_ENV

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
# What makes systemd run a service in a mount namespace of its own (systemd.exec(5)).
OWN_MOUNTS = re.compile(
    r"^(Protect(System|Home|Kernel\w+|ControlGroups|Proc)|ProcSubset|Private(Tmp|Devices|Mounts|Users)|\w+Paths|"
    r"TemporaryFileSystem|Root\w+|MountFlags|LoadCredential\w*|DynamicUser)=",
    re.M,
)


def uncommented(name: str) -> dict[str, Any]:
    """The example with every setting switched on."""
    text = re.sub(r"^#(\w+:)", r"\1", (DEPLOY / name).read_text(), flags=re.M)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_the_controllers_example_shows_every_setting_with_its_default(tmp_path: Path) -> None:
    assert controller.settings.load(DEPLOY / "controller.yaml", environ={}, flags={}) == controller.settings.Settings()
    shown = uncommented("controller.yaml")
    assert shown.keys() == set(controller.settings.names())
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(shown))
    assert controller.settings.load(tmp_path / "all.yaml", environ={}, flags={}) == controller.settings.Settings()


def test_the_agents_example_shows_every_setting_with_its_default(tmp_path: Path) -> None:
    wanted = agent.settings.Settings(servers=("controller.example.org:7443",))
    assert agent.settings.load(DEPLOY / "agent.yaml", environ={}, flags={}) == wanted
    shown = uncommented("agent.yaml")
    assert shown.keys() == {field.name for field in fields(agent.settings.Settings)}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(shown))
    assert agent.settings.load(tmp_path / "all.yaml", environ={}, flags={}) == wanted


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_takes_the_unit(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here")
    copy = tmp_path / unit.name
    copy.write_text(re.sub(r"/opt/tealnet/bin/[\w-]+", "/bin/true", unit.read_text()))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_agent_works_in_the_machines_own_mount_namespace() -> None:
    assert not OWN_MOUNTS.search((DEPLOY / "tealnet-agent.service").read_text())


def test_the_lab_gives_vswitchd_what_the_drop_in_does() -> None:
    told = (DEPLOY / "ovs-vswitchd.conf").read_text()
    assert [line for line in told.splitlines() if line and not line.startswith("#")] == [
        "[Service]",
        *(f"Environment={name}={value}" for name, value in VSWITCHD_ENV.items()),
    ]
