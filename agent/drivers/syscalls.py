"""System calls of namespaces and mounts that Python 3.11 has no function for (man 2 setns, unshare, mount, umount2)."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

_CLONE_NEWNET = 0x40000000
_BIND, _RECURSIVE, _SHARED = 0x1000, 0x4000, 1 << 20
_DETACH = 2
_SIOCETHTOOL, _SET_TX_CHECKSUM = 0x8946, 0x17
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def setns(fd: int) -> None:
    """Put the calling thread into a network namespace. Raises OSError; EINVAL: it is none."""
    _check(_libc.setns(fd, _CLONE_NEWNET), "setns")


def unshare_net() -> None:
    """Put the calling thread into a new network namespace."""
    _check(_libc.unshare(_CLONE_NEWNET), "unshare")


def bind_mount(source: str, target: str) -> None:
    """Show `source` at `target`."""
    _check(_libc.mount(source.encode(), target.encode(), b"none", _BIND, None), target)


def unmount(target: str) -> None:
    """Take the topmost mount away from here; it goes when nobody uses it any more. Raises OSError."""
    _check(_libc.umount2(target.encode(), _DETACH), target)


def share_mounts(directory: str) -> None:
    """Make a directory a shared mount point, so that what is mounted in it appears in all mount namespaces.

    As `ip netns add` does (man 8 ip-netns): a namespace deleted in one of them would stay busy in the others.
    """
    target = directory.encode()
    if _libc.mount(b"", target, b"none", _SHARED | _RECURSIVE, None) == 0:
        return
    _check(_libc.mount(target, target, b"none", _BIND | _RECURSIVE, None), directory)
    _check(_libc.mount(b"", target, b"none", _SHARED | _RECURSIVE, None), directory)


def tx_checksum_off(device: str) -> None:
    """Have the kernel fill in checksums of what it sends by this device of the thread's namespace (ethtool -K tx off).

    Open vSwitch's userspace datapath takes frames as they are, and would pass on packets with no checksum.
    """
    value = ctypes.create_string_buffer(struct.pack("=II", _SET_TX_CHECKSUM, 0))
    request = struct.pack("=16sQ", device.encode(), ctypes.addressof(value)).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, request)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
