"""`teal lab` as a person uses it, on a machine of its own: a box of namespaces in which whatever is left shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: needs root"),
]

SOURCES = Path(__file__).resolve().parents[2]
SECONDS = 30.0
# Process 1 of the box: collects the dead, as a machine's init does.
INIT = "trap : CHLD; while :; do sleep infinity & wait $!; done"


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


@dataclass(frozen=True)
class Footprint:
    links: str
    namespaces: str
    mounts: str
    processes: list[str]
    labs: list[str]


class Box:
    """A machine for one test: its own links, mounts, processes and /run."""

    def __init__(self, home: Path) -> None:
        self._home = home
        unshare = "unshare --net --mount --pid --fork --kill-child --mount-proc --propagation private"
        self._unshare = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *unshare.split(), "bash", "-c", INIT])
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        until(lambda: bool(children.read_text().strip()), "the box")
        self._init = children.read_text().split()[0]
        until(lambda: Path(f"/proc/{self._init}/comm").read_text() == "bash\n", "the box's process 1")
        self.run("mount", "-t", "tmpfs", "none", "/run")

    def argv(self, *words: str) -> list[str]:
        return ["nsenter", "--target", self._init, "--net", "--mount", "--pid", "--", *words]

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self._home), "PYTHONPATH": str(SOURCES), "TEALNET_LAB_DIR": ""}

    def run(self, *words: str) -> str:
        done = subprocess.run(self.argv(*words), env=self.env, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def lab(self, *words: str, code: int = 0) -> str:
        """`teal lab WORDS`: what it prints; `code` is the exit code wanted."""
        argv = self.argv(sys.executable, "-m", "tealnet.cli.main", "lab", *words)
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == code, f"{words}: {done.returncode} {done.stdout} {done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout if not code else done.stdout + done.stderr

    def processes(self) -> dict[int, str]:
        """What lives here, but for process 1, its sleep and the one that looks."""
        rows = [line.split(maxsplit=2) for line in self.run("ps", "-eo", "pid=,stat=,args=").splitlines()]
        quiet = ("bash -c " + INIT, "sleep infinity", "ps -eo")
        return {int(pid): args for pid, state, args in rows if state[0] != "Z" and not args.startswith(quiet)}

    def footprint(self) -> Footprint:
        return Footprint(
            links=self.run("ip", "-brief", "link"),
            namespaces=self.run("ip", "netns", "list"),
            mounts=self.run("cat", "/proc/self/mounts"),
            processes=sorted(self.processes().values()),
            labs=self.run("ls", "/run").split(),
        )

    def close(self) -> None:
        self._unshare.kill()
        self._unshare.wait(SECONDS)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    before = made.footprint()
    yield made
    try:
        made.lab("down", "--all")
        assert made.footprint() == before
    finally:
        made.close()


def states(box: Box, *words: str) -> dict[str, dict[str, str]]:
    argv = box.argv(sys.executable, "-m", "tealnet.cli.main", "lab", "status", "-o", "json", *words)
    found = json.loads(subprocess.run(argv, env=box.env, capture_output=True, timeout=SECONDS).stdout)
    return {m["name"]: {name: row["state"] for name, row in m["processes"].items()} for m in found["machines"]}


def pings(box: Box, address: str, *words: str, seconds: int = 10) -> bool:
    """Whether one of a request each second is answered.

    Not one ping with a deadline: it ends at the first error, and what the kernel began to resolve while a host was cut
    off may fail after it has been healed.
    """
    script = f"for i in $(seq {seconds}); do ping -c1 -W1 {address} && exit 0; done; exit 1"
    command = ["exec", *words, "h1", "--", "sh", "-c", script]
    argv = box.argv(sys.executable, "-m", "tealnet.cli.main", "lab", *command)
    return subprocess.run(argv, env=box.env, capture_output=True, timeout=SECONDS).returncode == 0


def test_hosts_are_like_machines(box: Box) -> None:
    outside = box.footprint()
    box.lab("up", "--hosts", "2", "--without-daemons", "--mtu", "1400")
    inside = box.footprint()
    # Nothing but processes and the state directory is to be seen from outside.
    assert (inside.links, inside.namespaces, inside.mounts) == (outside.links, outside.namespaces, outside.mounts)
    assert box.lab("exec", "h2", "--", "hostname") == "h2\n"
    assert "br-underlay" in box.lab("exec", "h1", "--", "ovs-vsctl", "show")
    assert "NORMAL" in box.lab("exec", "h1", "ovs-ofctl", "dump-flows", "br-underlay")
    assert "mtu 1400" in box.lab("exec", "h1", "ip", "link", "show", "br-underlay")
    assert pings(box, "192.0.2.2")
    assert pings(box, "2001:db8:0:2::2")
    box.lab("exec", "h1", "--", "sh", "-c", "exit 7", code=7)

    box.lab("exec", "h1", "--", "ip", "netns", "add", "acme.web-1")
    box.lab("exec", "h1", "--", "touch", "/etc/only-here", "/var/only-here", "/run/only-here")
    assert box.lab("exec", "h1", "ip", "netns", "list").strip() == "acme.web-1"
    assert "lo" in box.lab("exec", "--netns", "acme.web-1", "h1", "--", "ip", "-brief", "link")
    assert box.lab("exec", "h2", "ip", "netns", "list") == ""
    for path in ("/etc/only-here", "/var/only-here", "/run/only-here"):
        assert not os.path.exists(path)
        box.lab("exec", "h2", "test", "-e", path, code=1)


def test_processes_are_ended_frozen_and_started(box: Box) -> None:
    box.lab("up", "--hosts", "2", "--without-daemons")
    assert states(box)["h1"] == {"ovsdb-server": "running", "ovs-vswitchd": "running"}
    box.lab("kill", "h1", "ovs-vswitchd")
    assert states(box)["h1"] == {"ovsdb-server": "running", "ovs-vswitchd": "ended"}
    assert states(box)["h2"] == {"ovsdb-server": "running", "ovs-vswitchd": "running"}
    box.lab("status", code=1)
    assert "not running" in box.lab("kill", "h1", "ovs-vswitchd", code=1)
    box.lab("start", "h1", "ovs-vswitchd")
    assert "is running" in box.lab("start", "h1", "ovs-vswitchd", code=1)
    # vswitchd has made the underlay's bridge anew; its addresses are put back.
    until(lambda: pings(box, "192.0.2.2"), "the underlay after a restart of vswitchd")

    box.lab("stop", "h1", "ovsdb-server")
    assert states(box)["h1"]["ovsdb-server"] == "stopped"
    box.lab("cont", "h1", "ovsdb-server")
    assert states(box)["h1"]["ovsdb-server"] == "running"
    box.lab("kill", "h1", "ovsdb-server", "--signal", "TERM", "--restart")
    assert "br-underlay" in box.lab("exec", "h1", "ovs-vsctl", "list-br")
    assert "Open vSwitch" in box.lab("logs", "h1", "ovsdb-server")
    assert "no process 'sshd'" in box.lab("start", "h1", "sshd", code=1)


def test_hosts_are_cut_added_and_removed(box: Box) -> None:
    box.lab("up", "--hosts", "2", "--without-daemons")
    box.lab("cut", "h2")
    assert not pings(box, "192.0.2.2", seconds=1)
    assert pings(box, "198.51.100.2"), "management is another network"
    assert "underlay" in box.lab("status")
    box.lab("heal", "h2")
    assert pings(box, "192.0.2.2")
    box.lab("cut", "h2", "--network", "management")
    assert not pings(box, "198.51.100.2", seconds=1)
    assert pings(box, "192.0.2.2")

    assert "192.0.2.3" in box.lab("add-host")
    assert "192.0.2.4" in box.lab("add-host", "spare", "--bare")
    assert pings(box, "192.0.2.3")
    assert pings(box, "192.0.2.4")
    assert "taken" in box.lab("add-host", "spare", code=1)
    box.lab("remove-host", "h2")
    assert list(states(box)) == ["h1", "h3", "spare"]
    assert "no host 'h2'" in box.lab("exec", "h2", "true", code=1)
    assert "192.0.2.2" in box.lab("add-host"), "the number and name are free again"


def test_two_labs_stand_side_by_side(box: Box) -> None:
    box.lab("up", "--hosts", "2", "--without-daemons", "--name", "a")
    box.lab("up", "--hosts", "1", "--without-daemons", "--name", "b")
    assert box.lab("list").split() == ["a", "b"]
    assert pings(box, "192.0.2.2", "--name", "a")
    assert not pings(box, "192.0.2.2", "--name", "b", seconds=1), "they share no network"
    assert "exists" in box.lab("up", "--name", "a", code=1)
    box.lab("kill", "--name", "a", "h1", "ovs-vswitchd")
    assert states(box, "--name", "b")["h1"]["ovs-vswitchd"] == "running"
    box.lab("down", "--name", "a")
    assert box.lab("list").split() == ["b"]
    assert pings(box, "192.0.2.1", "--name", "b")
    assert "no lab 'a'" in box.lab("status", "--name", "a", code=1)


@pytest.mark.parametrize("machines", [0, 1, 4])
def test_down_after_an_up_that_was_killed(box: Box, machines: int) -> None:
    """`kill -9` when so many machines have been recorded; the fixture checks that nothing is left."""
    words = ("lab", "up", "--hosts", "8", "--without-daemons")
    up = subprocess.Popen(
        box.argv(sys.executable, "-m", "tealnet.cli.main", *words), env=box.env, stderr=subprocess.DEVNULL
    )
    try:
        recorded = (
            "ls -d /run/tealnet-lab/default >/dev/null && ls /run/tealnet-lab/default/machines/*/state.json | wc -l"
        )

        def reached() -> bool:
            done = subprocess.run(box.argv("sh", "-c", recorded), capture_output=True, text=True, timeout=SECONDS)
            return done.returncode == 0 and int(done.stdout) >= machines

        until(reached, "machines")
        pid = next(pid for pid, args in box.processes().items() if args.endswith(" ".join(words)))
        box.run("kill", "-KILL", str(pid))
    finally:
        assert up.wait(SECONDS) == -9, "it was killed before it was done"
    box.lab("down")
    assert "tealnet-lab" not in box.run("ls", "/run")


def test_down_after_everything_crashed(box: Box) -> None:
    box.lab("up", "--hosts", "2", "--without-daemons")
    record = json.loads(box.run("cat", "/run/tealnet-lab/default/machines/h1/state.json"))
    box.run("kill", "-KILL", str(record["pid"]))  # a power cut
    until(lambda: states(box)["h1"]["ovs-vswitchd"] == "ended", "h1 is off")
    assert "h1 is down" in box.lab("exec", "h1", "true", code=1)
    box.run("rm", "/run/tealnet-lab/default/lab.json")
    assert "never finished" in box.lab("status", code=1)
    box.lab("down")
    assert "tealnet-lab" not in box.run("ls", "/run")
    box.lab("down")
