"""Work done inside a lab host by a thread of this process: no process has to be started to get there.

The thread has the host's mount and network namespace, and what it starts is in the host's process namespace, too. So
`ip netns add` started from here costs what it costs on a real machine, and a packet socket can be made in a workload.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import queue
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from bench.common import BenchError
from tealnet.lab.machine import Machine

T = TypeVar("T")
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_FS, _CLONE_NEWNS, _CLONE_NEWPID, _CLONE_NEWNET = 0x200, 0x00020000, 0x20000000, 0x40000000
# ioctls of interfaces (netdevice(7)) and ethtool
_GET_FLAGS, _SET_FLAGS, _GET_ADDRESS, _SET_ADDRESS, _SET_MASK = 0x8913, 0x8914, 0x8915, 0x8916, 0x891C
_GET_MAC, _ETHTOOL, _SET_TX_CHECKSUM, _UP, _RUNNING = 0x8927, 0x8946, 0x17, 0x1, 0x40


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def holder_pid(machine: Machine) -> int:
    """The process that holds a machine's namespaces. Raises BenchError if the machine is down."""
    holder = machine.holder()
    if holder is None or not holder.alive():
        raise BenchError(f"{machine.name} is down")
    return holder.pid


class Inside:
    """A thread inside a host; `do` runs a function there and waits, `start` does not wait."""

    def __init__(self, machine: Machine) -> None:
        self.name, self._pid = machine.name, holder_pid(machine)
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._home = -1
        self._thread = threading.Thread(target=self._work, name=f"inside-{machine.name}", daemon=True)
        self._thread.start()
        self.do(self._enter)

    def do(self, job: Callable[[], T]) -> T:
        """What the job returns or raises."""
        return self.start(job).result()

    def start(self, job: Callable[[], T]) -> Future[T]:
        """Jobs run one after the other."""
        future: Future[T] = Future()
        self._jobs.put((job, future))
        return future

    def close(self) -> None:
        """End the thread after the jobs that wait."""
        self._jobs.put(None)
        self._thread.join(10)

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, future = item
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
        if self._home >= 0:
            os.close(self._home)

    def _enter(self) -> None:
        names = {"mnt": _CLONE_NEWNS, "pid": _CLONE_NEWPID, "net": _CLONE_NEWNET}
        files = {name: os.open(f"/proc/{self._pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in names}
        _check(
            _LIBC.unshare(_CLONE_FS), "unshare"
        )  # a thread can change its mounts only if it shares its root with none
        for name, kind in names.items():
            _check(_LIBC.setns(files[name], kind), f"setns {name}")
        self._home = files.pop("net")
        for fd in files.values():
            os.close(fd)

    # -- for jobs

    @contextmanager
    def netns(self, name: str) -> Iterator[None]:
        """Inside a job: the thread is in this namespace of the host. Raises OSError while there is none."""
        fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_LIBC.setns(fd, _CLONE_NEWNET), f"setns {name}")
        finally:
            os.close(fd)
        try:
            yield
        finally:
            _check(_LIBC.setns(self._home, _CLONE_NEWNET), "setns home")

    @staticmethod
    def ip(lines: Sequence[str]) -> None:
        """Inside a job: one `ip -batch`. Raises BenchError with its words."""
        words = ["ip", "-batch", "-"]
        done = subprocess.run(words, input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise BenchError(f"ip -batch: {done.stderr.strip()[-500:]}")


class Card:
    """A network card of the calling thread's namespace, by ioctls: no process, no netlink."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def __enter__(self) -> Card:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def configure(self, address: str, bits: int) -> None:
        """Set up with an address."""
        mask = socket.inet_ntoa(struct.pack("!I", (0xFFFFFFFF << (32 - bits)) & 0xFFFFFFFF))
        self._call(_SET_ADDRESS, self._inet(address))
        self._call(_SET_MASK, self._inet(mask))
        self._call(_SET_FLAGS, struct.pack("=H", _UP | _RUNNING))

    def tx_checksum_off(self) -> None:
        """As `ethtool -K DEV tx off`: the userspace datapath takes frames as they are."""
        value = ctypes.create_string_buffer(struct.pack("=II", _SET_TX_CHECKSUM, 0))
        self._call(_ETHTOOL, struct.pack("=Q", ctypes.addressof(value)))

    def look(self) -> tuple[bytes, bytes] | None:
        """(MAC, v4 address) once it is up and running and has an address; else None."""
        try:
            flags: int = struct.unpack_from("=H", self._call(_GET_FLAGS))[0]
            if not flags & _UP or not flags & _RUNNING:
                return None
            return self._call(_GET_MAC)[2:8], self._call(_GET_ADDRESS)[4:8]
        except OSError:
            return None

    @staticmethod
    def _inet(address: str) -> bytes:
        return struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(address))

    def _call(self, number: int, data: bytes = b"") -> bytes:
        request = (struct.pack("=16s", self._name) + data).ljust(40, b"\0")
        return fcntl.ioctl(self._socket, number, request)[16:]
