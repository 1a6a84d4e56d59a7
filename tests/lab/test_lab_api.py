"""The lab as a library: what tests and the demo call."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tealnet.lab import Lab, LabError, Parts, place
from tealnet.lab.host import stop
from tealnet.lab.process import Process, end, wait_end

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: needs root")


def start_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    directory = tempfile.mkdtemp(prefix="tl", dir="/tmp")
    before = os.environ.get("TEALNET_LAB_DIR")
    os.environ["TEALNET_LAB_DIR"] = directory
    try:
        with Lab.up("api", hosts=1, parts=Parts.SWITCH) as made:
            made.host("h1").output(["ip", "netns", "add", "acme.web-1"])
            yield made
        assert not Path(directory, "api").exists()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if before is None:
            del os.environ["TEALNET_LAB_DIR"]
        else:
            os.environ["TEALNET_LAB_DIR"] = before


@needs_root
@pytest.mark.lab
def test_commands_give_output_and_exit_code(lab: Lab) -> None:
    host = lab.host("h1")
    done = host.run(["sh", "-c", "cat; echo oops >&2; exit 3"], given="hello")
    assert (done.returncode, done.stdout, done.stderr) == (3, "hello", "oops\n")
    assert host.output(["hostname"]) == "h1\n"
    with pytest.raises(LabError, match="exit code 1"):
        host.output(["false"])
    assert host.run_in_netns("acme.web-1", ["ip", "-brief", "link"]).stdout.split()[0] == "lo"
    path = lab.argv_in_netns("h1", "/var/run/netns/acme.web-1", ["ip", "-brief", "link"])
    assert subprocess.run(path, capture_output=True, text=True, timeout=10).stdout.split()[0] == "lo"


@needs_root
@pytest.mark.lab
def test_a_command_that_takes_too_long_is_ended_with_all_it_started(lab: Lab) -> None:
    with pytest.raises(LabError, match="no end within"):
        lab.host("h1").run(["sh", "-c", "sleep 3141; true"], seconds=0.3)
    assert "3141" not in lab.host("h1").output(["ps", "ax"])


@needs_root
@pytest.mark.lab
def test_a_command_in_the_background_is_ended(lab: Lab) -> None:
    running = lab.host("h1").popen(["sh", "-c", "echo here; sleep 2718; true"], netns="acme.web-1")
    assert running.stdout is not None
    assert running.stdout.readline() == "here\n"
    assert "2718" in lab.host("h1").output(["ps", "ax"])
    stop(running)
    assert "2718" not in lab.host("h1").output(["ps", "ax"])


@needs_root
@pytest.mark.lab
def test_what_is_recorded_is_what_runs(lab: Lab) -> None:
    record = Lab.load("api").host("h1").record()
    for row in [record, *record["processes"].values()]:
        assert Process(row["pid"], row["start"]).alive()
    assert os.readlink(f"/proc/{record['pid']}/ns/net") == record["namespaces"]["net"]
    assert {"/etc", "/run", "/var", "/var/lib/tealnet"} <= set(record["mounts"])


@needs_root
@pytest.mark.lab
def test_mistakes_are_told(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"no host 'h9'.*h1"):
        lab.host("h9")
    with pytest.raises(LabError, match="no controller"):
        lab.add_host(parts=Parts.ALL)
    with pytest.raises(LabError, match="exists"):
        Lab.up("api", hosts=1)
    with pytest.raises(LabError, match="no lab 'other'"):
        Lab.load("other")
    with pytest.raises(LabError, match="a lab has 0 to 240"):
        Lab.up("other", hosts=251)
    with pytest.raises(LabError, match="h1 has no process 'agent'; there are: ovsdb-server"):
        lab.kill("h1", "agent")


@pytest.mark.parametrize("name", ["", "A", "a/b", "..", "-a", "a" * 33, "a b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(LabError):
        place.directory(name)


def test_a_process_id_used_again_is_another_process() -> None:
    with subprocess.Popen(["sleep", "infinity"]) as sleeper:
        try:
            real, old = Process(sleeper.pid, start_of(sleeper.pid)), Process(sleeper.pid, 1)
            assert real.alive()
            assert not old.alive()
            assert end([old], seconds=5) == []
            assert sleeper.poll() is None, "only the process that was meant may be ended"
            assert not wait_end(real, seconds=0.05)
            begin = time.monotonic()
            assert end([real], seconds=5) == []
            assert time.monotonic() - begin < 4
        finally:
            sleeper.kill()
