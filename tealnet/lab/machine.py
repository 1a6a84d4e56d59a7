"""A lab machine: namespaces held by one process, its disk and its processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Any

from tealnet.lab import process
from tealnet.lab.errors import LabError
from tealnet.lab.process import Process, wait_end

HOLDER = Path(__file__).with_name("holder.py")
# Inside: what stays when the machine ends, below `disk/` in its directory.
DISK = ("/etc/openvswitch", "/etc/tealnet", "/var/lib/tealnet", "/var/log/openvswitch", "/var/log/tealnet")
START_SECONDS = 30.0
REQUEST_SECONDS = 30.0
# vswitchd with a userspace datapath needs about 1 s and 18 ms per port to leave (measured).
END_SECONDS = 60.0
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TERM", "TZ")


class Machine:
    """Namespaces, a disk and processes under one name; everything about it lies in `directory`."""

    @property
    def processes(self) -> tuple[str, ...]:
        """Names of what runs here when all is well."""
        return ()

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory

    # -- life

    def create(self, *, binds: Mapping[str, Path] | None = None) -> None:
        """Start the machine's holder. `binds` are directories of this machine to show inside (path inside → directory).

        Raises:
            LabError: the holder did not come up; its own words are in the message.
        """
        shown = dict(binds or {})
        for inside in DISK:
            shown[inside] = self.disk(inside)
            shown[inside].mkdir(parents=True, exist_ok=True)
        (self.directory / "scratch").mkdir(exist_ok=True)
        spec = {
            "name": self.name,
            "directory": str(self.directory),
            "parent": os.getpid(),
            "binds": {inside: str(outside) for inside, outside in shown.items()},
        }
        log = self.directory / "holder.log"
        with log.open("ab") as out:
            started = subprocess.run(
                [sys.executable, "-I", "-S", str(HOLDER), json.dumps(spec)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                timeout=START_SECONDS,
            )
        if started.returncode:
            raise LabError(f"machine {self.name} did not start: {tail(log)}")

    def destroy(self) -> None:
        """End every process of the machine and with them its namespaces, links and mounts; remove its directory.

        Raises:
            LabError: something has not ended within a minute.
        """
        holder = self.holder()
        if holder and process.end([holder], seconds=END_SECONDS):
            raise LabError(f"machine {self.name} (process {holder.pid}) does not end")
        shutil.rmtree(self.directory, ignore_errors=True)

    def holder(self) -> Process | None:
        """The machine's first process as recorded, or None if it never came so far."""
        record = self.record()
        return Process(record["pid"], record["start"]) if record else None

    def alive(self) -> bool:
        """Whether the machine is up."""
        holder = self.holder()
        return holder is not None and holder.alive()

    def record(self) -> dict[str, Any]:
        """What the holder last wrote about the machine; empty if nothing."""
        try:
            found: dict[str, Any] = json.loads((self.directory / "state.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def disk(self, inside: str) -> Path:
        """Where a directory of the machine's disk lies outside."""
        return self.directory / "disk" / inside.lstrip("/")

    # -- processes that belong to it

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        """One request to the holder and its answer.

        Raises:
            LabError: the machine is down, or the holder's own words why it cannot.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.settimeout(REQUEST_SECONDS)
            try:
                peer.connect(str(self.directory / "ctl"))
                peer.send(json.dumps({"do": do, **arguments}).encode())
                data = peer.recv(1 << 18)
            except (FileNotFoundError, ConnectionError):
                raise LabError(f"{self.name} is down") from None
            except TimeoutError:
                raise LabError(f"{self.name} does not answer") from None
        if not data:
            raise LabError(f"{self.name} is down")
        answer: dict[str, Any] = json.loads(data)
        if "error" in answer:
            raise LabError(f"{self.name}: {answer['error']}")
        return answer

    def spawn(self, name: str, argv: Sequence[str], *, log: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a process that lives as long as the machine; `log` (a path inside) gets what it prints."""
        passed = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
        answer = self.ask("spawn", name=name, argv=list(argv), log=log, env={**passed, **(env or {})})
        return Process(answer["pid"], answer["start"])

    def process(self, name: str) -> Process | None:
        """The process last started under a name, or None if there never was one."""
        row = self.record().get("processes", {}).get(name)
        return Process(row["pid"], row["start"]) if row else None

    def signal(self, name: str, number: Signals) -> Process:
        """Send a signal to a process by name. Raises LabError if it does not run."""
        process = self.process(name)
        if process is None and name not in self.processes:
            raise LabError(f"{self.name} has no process {name!r}; there are: {', '.join(self.processes) or 'none'}")
        if process is None or not process.send(number):
            raise LabError(f"{self.name}: {name} is not running")
        return process

    def kill(self, name: str, number: Signals = SIGKILL) -> None:
        """End a process with a signal and wait until it is gone.

        Raises:
            LabError: it does not run, or is not gone after a minute.
        """
        if not wait_end(self.signal(name, number), seconds=END_SECONDS):
            raise LabError(f"{self.name}: {name} does not end")

    def look(self) -> dict[str, Any]:
        """The machine as a JSON object: is it up, and what is each of its processes doing."""
        recorded = self.record().get("processes", {})
        rows = {name: self._look_at(name, recorded.get(name, {}).get("exit")) for name in self.processes}
        return {"name": self.name, "up": self.alive(), "processes": rows}

    def _look_at(self, name: str, code: int | None) -> dict[str, Any]:
        process = self.process(name)
        if process is None:
            return {"state": "absent"}
        letter = process.state()
        if not letter:
            return {"state": "ended", "exit": code}
        return {"state": "stopped" if letter in "Tt" else "running", "pid": process.pid}

    # -- commands in it

    def enter(self, *, netns: str = "", cwd: str = "") -> list[str]:
        """The words to put before a command that shall run inside; `netns` is a namespace of the machine: name or path.

        Raises:
            LabError: the machine is down.
        """
        holder = self.holder()
        if holder is None or not holder.alive():
            raise LabError(f"{self.name} is down")
        words = ["nsenter", "--target", str(holder.pid), "--mount", "--uts", "--pid"]
        # The file is opened before the mount namespace is entered: through the root directory of the holder, where
        # an absolute link such as /var/run would lead outside.
        path = netns.replace("/var/run/", "/run/", 1) if netns.startswith("/") else f"/run/netns/{netns}"
        words.append(f"--net=/proc/{holder.pid}/root{path}" if netns else "--net")
        if cwd:
            words.append(f"--wdns={cwd}")
        return [*words, "--"]

    def net(self) -> list[str]:
        """The words to put before a command of this machine that shall see only the network of the lab machine."""
        holder = self.holder()
        if holder is None or not holder.alive():
            raise LabError(f"{self.name} is down")
        return ["nsenter", "--target", str(holder.pid), "--net", "--"]

    def ip(self, lines: Sequence[str]) -> None:
        """Run `ip -batch` in the machine's network."""
        call([*self.net(), "ip", "-batch", "-"], given="\n".join(lines) + "\n")


def call(argv: Sequence[str], *, given: str | None = None, seconds: float = 30.0) -> str:
    """Run a command and return what it prints.

    Raises:
        LabError: it failed, with its words, or it did not end in time.
    """
    try:
        done = subprocess.run(
            argv,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{' '.join(argv)}: no end within {seconds:g} s") from None
    if done.returncode:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log file, for an error message."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) or "it said nothing"
    except FileNotFoundError:
        return "it left no log"
