"""First process of a lab machine: it *is* the machine.

Run as a script with the plain interpreter (`python -I -S holder.py SPEC`), standard library only. It unshares network,
mount, pid and UTS namespaces, gives the machine its own /run, /etc, /var, /proc and /sys, and then serves requests on
the unix socket `ctl` in the machine's directory: start a process, keep a device's addresses.

Nothing of a machine is pinned anywhere else: no named namespace, no mount and no link in the namespaces of the person
who started it. So the end of this one process is the end of everything (pid_namespaces(7): the kernel kills all
others), and a lab is taken down by ending its holders, whatever state they are in.

A holder is always findable: until it has written its own process id into `state.json` it dies with whoever started it
(PR_SET_PDEATHSIG), afterwards it stays.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWPID, _CLONE_NEWNET = 0x00020000, 0x04000000, 0x20000000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_PR_SET_PDEATHSIG = 1
_RTM_NEWLINK, _RTMGRP_LINK, _IFLA_IFNAME = 16, 1, 3
_RECEIVE = 1 << 18
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)

Message = dict[str, Any]


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str = "", *, flags: int = 0, data: str = "") -> None:
    result = _LIBC.mount(source.encode(), target.encode(), kind.encode() or None, flags, data.encode() or None)
    _check(result, f"mount {target}")


def _die_with_parent(sig: int) -> None:
    _check(_LIBC.prctl(_PR_SET_PDEATHSIG, sig, 0, 0, 0), "prctl")


def _bind(fd: int, target: str) -> None:
    """Bind what `fd` refers to, with everything mounted below it."""
    _mount(f"/proc/self/fd/{fd}", target, flags=_MS_BIND | _MS_REC)


def _below(directory: str) -> list[str]:
    """Mount points under a directory, outermost first (proc(5), mountinfo)."""
    with open("/proc/self/mountinfo") as lines:
        points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return sorted(point for point in points if point.startswith(directory + "/"))


def _overlay(directory: str, scratch: str) -> None:
    """Give the machine a copy-on-write `directory`; what was mounted below stays visible."""
    held = [(point, os.open(point, os.O_PATH)) for point in _below(directory)]
    upper, work = f"{scratch}{directory}.upper", f"{scratch}{directory}.work"
    os.makedirs(upper)
    os.makedirs(work)
    _mount("overlay", directory, "overlay", data=f"lowerdir={directory},upperdir={upper},workdir={work}")
    for point, fd in held:
        _bind(fd, point)
        os.close(fd)


def make_filesystem(spec: Message) -> list[str]:
    """Mount the machine's own directories; returns where something was mounted.

    `spec["binds"]` maps a path inside to a directory outside; those outlive the machine's end (its disk).
    """
    _mount("none", "/", flags=_MS_REC | _MS_PRIVATE)
    sources = {inside: os.open(outside, os.O_PATH) for inside, outside in spec["binds"].items()}
    scratch = f"{spec['directory']}/scratch"
    _mount("tmpfs", scratch, "tmpfs", data="mode=700")
    _overlay("/etc", scratch)
    _overlay("/var", scratch)
    _mount("tmpfs", "/run", "tmpfs", data="mode=755")
    for name in ("netns", "openvswitch", "tealnet", "lock"):
        os.mkdir(f"/run/{name}")
    for inside, fd in sorted(sources.items()):
        os.makedirs(inside, exist_ok=True)
        _bind(fd, inside)
        os.close(fd)
    _mount("sysfs", "/sys", "sysfs")
    _mount("proc", "/proc", "proc")
    return ["/", "/etc", "/var", "/run", "/sys", "/proc", *sorted(sources)]


class Child:
    """A process of the machine; `pid` is its number inside, `outer` the one the rest of the world sees."""

    def __init__(self, pid: int, outer: int, start: int) -> None:
        self.pid = pid
        self.outer = outer
        self.start = start
        self.status: int | None = None

    def record(self) -> Message:
        """What others are told: exit is None while it lives, negative if a signal ended it."""
        return {"pid": self.outer, "start": self.start, "inside": self.pid, "exit": self.status}


class Holder:
    """Serves requests until it is killed."""

    def __init__(self, spec: Message, outer: int) -> None:
        self.spec = spec
        self.directory = spec["directory"]
        self.outer = outer
        self.children: dict[str, Child] = {}
        self.kept: dict[str, str] = {}
        self.seen: dict[str, int] = {}
        self.mounts: list[str] = []

    # -- what is recorded

    def identity(self) -> tuple[int, int]:
        """Process id and start time of the calling process as the outer namespace sees them."""
        fd = os.open("self/stat", os.O_RDONLY, dir_fd=self.outer)
        with os.fdopen(fd) as stat:
            text = stat.read()
        # The name in brackets may hold blanks; start time is field 22 (proc(5)).
        return int(text.split()[0]), int(text.rsplit(")", 1)[1].split()[19])

    def record(self) -> Message:
        """The machine as a JSON object."""
        return {
            "name": self.spec["name"],
            "pid": self.pid,
            "start": self.start,
            "namespaces": self.namespaces,
            "mounts": self.mounts,
            "processes": {name: child.record() for name, child in self.children.items()},
        }

    def save(self) -> None:
        """Write `state.json` in one step."""
        new = os.open("state.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=self.home)
        with os.fdopen(new, "w") as state:
            json.dump(self.record(), state, indent=1)
        os.rename("state.new", "state.json", src_dir_fd=self.home, dst_dir_fd=self.home)

    # -- life

    def run(self, parent: int, ready: int) -> None:
        """Become the machine, tell `ready`, serve. `parent` is a pipe that ends with the process that started us."""
        _die_with_parent(signal.SIGKILL)
        if select.select([parent], [], [], 0)[0]:
            return  # it died before we had said that we wish to die with it
        os.setsid()
        self.home = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        self.pid, self.start = self.identity()
        self.namespaces = {n: os.readlink(f"self/ns/{n}", dir_fd=self.outer) for n in ("net", "mnt", "pid", "uts")}
        self.save()
        _die_with_parent(0)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(f"{self.directory}/ctl")
        listener.listen(64)
        links = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        links.bind((0, _RTMGRP_LINK))
        socket.sethostname(self.spec["name"])
        self.mounts = make_filesystem(self.spec)
        os.chdir("/")
        self.save()
        wake = self._wake_on_child()
        os.write(ready, b"ok")
        os.close(ready)
        self.serve(listener, links, wake)

    def _wake_on_child(self) -> socket.socket:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
        self._far = far
        return near

    def serve(self, listener: socket.socket, links: socket.socket, wake: socket.socket) -> None:
        """Answer requests, collect the dead, restore addresses."""
        watched: list[socket.socket] = [listener, links, wake]
        while True:
            for one in select.select(watched, [], [])[0]:
                if one is listener:
                    watched.append(listener.accept()[0])
                elif one is wake:
                    wake.recv(4096)
                elif one is links:
                    self.links_changed(links)
                elif not self.answer(one):
                    watched.remove(one)
                    one.close()
            self.reap()

    def answer(self, peer: socket.socket) -> bool:
        """Read one request and answer it; False when the peer has gone."""
        try:
            data = peer.recv(_RECEIVE)
            if not data:
                return False
            self.reap()
            request = json.loads(data)
            try:
                reply = getattr(self, f"do_{request.pop('do')}")(**request)
            except (OSError, LookupError, ValueError, subprocess.SubprocessError) as error:
                reply = {"error": str(error)}
            peer.send(json.dumps(reply).encode())
        except ConnectionError:
            return False
        return True

    def reap(self) -> None:
        """Collect every process that has ended, also orphans: this is process 1 here."""
        changed = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            for child in self.children.values():
                if child.pid == pid:
                    child.status = os.waitstatus_to_exitcode(status)
                    changed = True
        if changed:
            self.save()

    # -- requests

    def do_spawn(self, name: str, argv: list[str], env: dict[str, str], log: str) -> Message:
        """Start a process under a name that is free or whose process has ended."""
        old = self.children.get(name)
        if old and old.status is None:
            raise ValueError(f"{name} is running")
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            self._become(argv, env, log=log, report=write)
        os.close(write)
        with os.fdopen(read) as report:
            lines = report.read().splitlines()
        if len(lines) != 1:
            raise OSError(lines[1] if len(lines) > 1 else f"{argv[0]}: ended before it started")
        outer, start = map(int, lines[0].split())
        self.children[name] = Child(pid, outer, start)
        self.save()
        return self.children[name].record()

    def _become(self, argv: list[str], env: dict[str, str], *, log: str, report: int) -> None:
        try:
            os.write(report, "{} {}\n".format(*self.identity()).encode())
            signal.set_wakeup_fd(-1)
            for number in _DEFAULT_SIGNALS:  # ignored signals would be inherited (signal(7))
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.execvpe(argv[0], argv, env)
        except OSError as error:
            os.write(report, f"{argv[0]}: {error}\n".encode())
        finally:
            os._exit(127)

    # -- addresses, as a real machine's network configuration would keep them

    def do_keep(self, device: str, batch: str) -> Message:
        """Run `ip -batch` now, and again whenever the device is made anew (a bridge after vswitchd's restart)."""
        self.kept[device] = batch
        self.seen[device] = socket.if_nametoindex(device)
        self.configure(device)
        return {}

    def configure(self, device: str) -> None:
        """Apply what is kept for a device."""
        subprocess.run(["ip", "-batch", "-"], input=self.kept[device], text=True, check=True, timeout=10)

    def links_changed(self, links: socket.socket) -> None:
        """Look at link messages (rtnetlink(7)) for a kept device with a new index."""
        try:
            data = links.recv(_RECEIVE)
        except OSError:  # ENOBUFS: messages were lost; look at every kept device
            data = b""
            for device in self.kept:
                self.restore(device)
        while len(data) >= 16:
            length, kind = struct.unpack_from("=IH", data)
            if kind == _RTM_NEWLINK:
                self.restore(_link_name(data[32:length]))
            data = data[(length + 3) & ~3 :]

    def restore(self, device: str) -> None:
        """Configure a kept device if it is another one than last time."""
        if device not in self.kept:
            return
        try:
            index = socket.if_nametoindex(device)
            if index != self.seen[device]:
                self.configure(device)
                self.seen[device] = index
        except (OSError, subprocess.SubprocessError) as error:
            # The device is gone again; its next life brings another message.
            print(f"{device}: {error}", file=sys.stderr, flush=True)


def _link_name(attributes: bytes) -> str:
    while len(attributes) >= 4:
        length, kind = struct.unpack_from("=HH", attributes)
        if length < 4:
            break
        if kind == _IFLA_IFNAME:
            return attributes[4 : length - 1].decode()
        attributes = attributes[(length + 3) & ~3 :]
    return ""


def main() -> int:
    """Unshare, fork process 1 of the machine, end once it serves."""
    spec = json.loads(sys.argv[1])
    _die_with_parent(signal.SIGKILL)
    if os.getppid() != spec["parent"]:
        return 1
    outer = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    _check(_LIBC.unshare(_CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWPID | _CLONE_NEWNET), "unshare")
    alive, we = os.pipe()
    done, ready = os.pipe()
    if not os.fork():
        os.close(we)
        os.close(done)
        Holder(spec, outer).run(alive, ready)
        os._exit(1)
    os.close(ready)
    return 0 if os.read(done, 2) == b"ok" else 1


if __name__ == "__main__":
    sys.exit(main())
