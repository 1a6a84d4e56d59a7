"""Which names come and go in a directory (man 7 inotify); Python has no function for it."""

from __future__ import annotations

import ctypes
import os
import struct

# IN_CREATE, IN_DELETE, IN_MOVED_FROM, IN_MOVED_TO; IN_Q_OVERFLOW comes unasked
_WATCHED, _OVERFLOW = 0x100 | 0x200 | 0x40 | 0x80, 0x4000
_EVENT = struct.Struct("=iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Directory:
    """Watches one directory. `fd` is readable when there is something to `read`. Raises OSError if it is not there."""

    def __init__(self, path: str) -> None:
        self.fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0 or _libc.inotify_add_watch(self.fd, path.encode(), _WATCHED) < 0:
            code = ctypes.get_errno()
            if self.fd >= 0:
                os.close(self.fd)
            raise OSError(code, os.strerror(code), path)

    def close(self) -> None:
        """Watch no more."""
        os.close(self.fd)

    def read(self) -> set[str] | None:
        """The names that came or went; None: events were lost, it may be any."""
        names: set[str] = set()
        lost = False
        while True:
            try:
                data = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return None if lost else names
            at = 0
            while at + _EVENT.size <= len(data):
                _, mask, _, length = _EVENT.unpack_from(data, at)
                lost = lost or bool(mask & _OVERFLOW)
                name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0").decode(errors="replace")
                names |= {name} if name else set()
                at += _EVENT.size + length
