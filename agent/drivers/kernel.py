"""The host's network namespaces, for jobs on the namespace thread (`agent.drivers.nsthread`); nobody else's.

A thread is in one network namespace at a time. A socket stays in the one in which it was made, so a job enters a
namespace, makes a socket, and is back before it does anything else.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import structlog

from agent.drivers import allow, rtnetlink, syscalls
from agent.drivers.netlink import ROUTE, Netlink, listen
from agent.names import NETNS_DIRECTORY
from agent.objects import Marks, NetnsKind, NetnsRef

log = structlog.get_logger()

Identity = tuple[int, int]  # device and inode of a namespace file
_OWN = "/proc/thread-self/ns/net"
_FIRST_PROCESS = "/proc/1/ns/net"
# RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE (linux/rtnetlink.h)
_WORKLOAD_GROUPS = (1, 5, 7, 9, 11)


class Ears(Protocol):
    """Who wants to hear of changes in workload namespaces. Called on the namespace thread."""

    def opened(self, path: str, changes: socket.socket) -> None:
        """A workload namespace is used from now on; owns the socket, which is readable when something changed in it."""
        ...

    def gone(self, path: str) -> None:
        """This namespace is no more, or is another one now."""
        ...


class NetnsMissing(Exception):
    """There is no namespace at this path."""


class Kernel:
    """What jobs work with. `host` is a netlink socket in the agent's own network namespace."""

    def __init__(self, directory: str = NETNS_DIRECTORY) -> None:
        self.directory = directory
        self.host_fd = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        self.host = Netlink(ROUTE)
        self.ears: Ears | None = None
        self.placed: dict[str, NetnsRef] = {}  # device → where its workload side was put: paths are not on the device
        self.lost = False  # could not get back: this thread must not do anything any more
        self._never = {_identity(os.fstat(self.host_fd))}
        try:
            self._never.add(_identity(os.stat(_FIRST_PROCESS)))
        except PermissionError as error:  # in a container that may not see it
            log.warning("cannot recognise the first process's network namespace", error=str(error))
        self._watched: dict[str, Identity] = {}
        self._marked: dict[str, Identity] = {}
        self._by_nsid: dict[int, tuple[str, Identity]] = {}
        self._unknown: set[int] = set()  # not worth another look in this job

    def close(self) -> None:
        """Give back what it holds; sockets handed to the ears are theirs."""
        self.host.close()
        os.close(self.host_fd)

    def begin(self) -> None:
        """A new job: what could not be found may be there by now."""
        self._unknown.clear()

    # -- being somewhere else

    @contextmanager
    def enter(self, path: str) -> Iterator[Netlink]:
        """Be in a workload namespace; yields a socket in it.

        Raises NetnsMissing, PlacementRefused (it is the host's), OSError.
        """
        with self._inside(path) as identity, Netlink(ROUTE) as netlink:
            if self.ears is not None and self._watched.get(path) != identity:
                self.forget(path)
                self._watched[path] = identity
                self.ears.opened(path, listen(ROUTE, _WORKLOAD_GROUPS))
            yield netlink

    @contextmanager
    def _inside(self, path: str) -> Iterator[Identity]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NetnsMissing(f"{path}: no such namespace") from error
        try:
            identity = _identity(os.fstat(fd))
            allow.netns_identity(path, identity, self._never)
            try:
                syscalls.setns(fd)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    raise NetnsMissing(f"{path}: not a network namespace") from error
                raise
        finally:
            os.close(fd)
        try:
            yield identity
        finally:
            self._return()

    def _return(self) -> None:
        try:
            syscalls.setns(self.host_fd)
        except OSError:
            self.lost = True
            raise

    # -- namespaces of ours

    def path(self, name: str) -> str:
        """Where a namespace of this name is mounted."""
        return f"{self.directory}/{name}"

    def prepare_directory(self) -> None:
        """Make the directory of names, as a shared mount point. Raises OSError."""
        if not os.path.isdir(self.directory):
            os.makedirs(self.directory, mode=0o755)
        if not os.path.ismount(self.directory):
            syscalls.share_mounts(self.directory)

    def create(self, name: str) -> None:
        """Make a namespace with its loopback device up. It is marked before it can be found. Raises OSError."""
        self.prepare_directory()
        path = self.path(name)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
        syscalls.unshare_net()
        try:
            with Netlink(ROUTE) as netlink:
                netlink.check(rtnetlink.set_link(1, flags=1, change=1, alias=mark(name)))
            syscalls.bind_mount(_OWN, path)
            self._marked[path] = _identity(os.stat(path))
        finally:
            self._return()

    def rename(self, old: str, new: str) -> None:
        """Give a namespace of ours another name, by which it is known now; `remove` takes the old one.

        That one stays for a moment, for to unmount waits for RCU. Raises OSError, NetnsMissing.
        """
        self.prepare_directory()
        source, path = self.path(old), self.path(new)
        with self._inside(source) as identity, Netlink(ROUTE) as netlink:
            netlink.check(rtnetlink.set_link(1, alias=mark(new)))
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
        syscalls.bind_mount(source, path)
        self._marked[path] = identity
        self._by_nsid |= {nsid: (path, identity) for nsid, known in self._by_nsid.items() if known[0] == source}

    def remove(self, name: str) -> None:
        """Take a name from a namespace; it ends with its last process. Succeeds if there is none. Raises OSError."""
        path = self.path(name)
        self.forget(path)
        self._marked.pop(path, None)
        try:
            syscalls.unmount(path)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):  # EINVAL: nothing is mounted there
                raise
        with suppress(FileNotFoundError):
            os.unlink(path)

    def names(self) -> list[str]:
        """All names in the directory, whosever."""
        try:
            return os.listdir(self.directory)
        except FileNotFoundError:
            return []

    def exists(self, path: str) -> bool:
        """Whether there is anything of that name, also a link that leads nowhere."""
        return os.path.lexists(path)

    def is_netns(self, path: str) -> bool:
        """Whether something is mounted there; an empty file may be left from a creation that was interrupted."""
        try:
            return os.stat(path).st_dev == os.fstat(self.host_fd).st_dev
        except OSError:
            return False

    def is_ours(self, path: str) -> bool:
        """Whether we made this namespace. Remembered: a workload may change the mark. Raises as `enter`."""
        try:
            identity = _identity(os.stat(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NetnsMissing(f"{path}: no such namespace") from error
        if self._marked.get(path) == identity:
            return True
        with self._inside(path), Netlink(ROUTE) as netlink:
            loopback = rtnetlink.link_at(netlink, 1)
        if loopback is None or not loopback.alias.startswith(Marks.ALIAS_PREFIX):
            return False
        self._marked[path] = identity
        return True

    def forget(self, path: str) -> None:
        """A namespace is gone (or another one): nobody listens in it any more, its id means nothing."""
        self._by_nsid = {nsid: known for nsid, known in self._by_nsid.items() if known[0] != path}
        if self._watched.pop(path, None) is not None and self.ears is not None:
            self.ears.gone(path)

    def drop_stale(self) -> None:
        """Forget namespaces that are no longer where they were."""
        for path, identity in list(self._watched.items()):
            try:
                same = _identity(os.stat(path)) == identity
            except OSError:
                same = False
            if not same:
                self.forget(path)

    # -- by the host's ids of namespaces

    def where(self, nsid: int) -> NetnsRef | None:
        """The namespace with this id, if it is one that has a name or that we have put something into."""
        known = self._by_nsid.get(nsid)
        if (known is None or not self._still(known)) and nsid not in self._unknown:
            self._learn_all()
            known = self._by_nsid.get(nsid)
        if known is None or not self._still(known):
            self._unknown.add(nsid)
            return None
        path = known[0]
        ours = os.path.dirname(path) == self.directory and self.is_ours(path)
        return NetnsRef(NetnsKind.OURS if ours else NetnsKind.PATH, path)

    def same(self, one: str, other: str) -> bool:
        """Whether two paths lead to one namespace."""
        try:
            return one == other or _identity(os.stat(one)) == _identity(os.stat(other))
        except OSError:
            return False

    def _still(self, known: tuple[str, Identity]) -> bool:
        try:
            return _identity(os.stat(known[0])) == known[1]
        except OSError:
            return False

    def learn(self, *paths: str) -> None:
        """Ask for the ids of these namespaces. Always the kernel: it gives both numbers to others when one ends."""
        for path in paths:
            found = self._ask(path)
            if found is not None:
                self._by_nsid[found[0]] = path, found[1]

    def nsid(self, path: str) -> int | None:
        """The host's id of the namespace at a path; None while the host has nothing that leads there."""
        found = self._ask(path)
        return found[0] if found is not None else None

    def _ask(self, path: str) -> tuple[int, Identity] | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            return None
        try:
            nsid = rtnetlink.nsid(self.host, fd)
            return None if nsid is None else (nsid, _identity(os.fstat(fd)))
        except OSError:
            return None  # not a namespace
        finally:
            os.close(fd)

    def _learn_all(self) -> None:
        """Ask for the ids of all namespaces we can name; paths we were told win over names in the directory."""
        self._by_nsid = {nsid: entry for nsid, entry in self._by_nsid.items() if self._still(entry)}
        told = (ref.path for ref in self.placed.values() if ref.path)
        # The last one wins. One with two names (see `rename`) is no spare any more: those begin with a dot.
        found = sorted(self.names(), key=lambda name: not name.startswith("."))
        self.learn(*dict.fromkeys((*(self.path(name) for name in found), *told)))


def mark(name: str) -> str:
    """What is written on the loopback device of a namespace of ours."""
    return f"{Marks.ALIAS_PREFIX}{name}"[:255]


def set_ipv6(device: str, name: str, value: int) -> None:
    """Set net.ipv6.conf.<device>.<name> in the thread's namespace; nothing to do where there is no IPv6.

    Raises OSError.
    """
    with suppress(FileNotFoundError), open(f"/proc/sys/net/ipv6/conf/{device}/{name}", "w") as file:
        file.write(str(value))


def is_empty_file(path: str) -> bool:
    """Whether there is an ordinary empty file: a mount point without its mount."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == 0


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino
