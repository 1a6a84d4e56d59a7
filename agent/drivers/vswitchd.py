"""Is ovs-vswitchd there, and is it still the same process?

OVSDB does not tell: after a restart vswitchd writes the same values again, which is no change. So a connection to its
control socket (ovs-appctl(8)) is held open without a word: it ends with the process. The pid file and the socket's
name (`ovs-vswitchd.<pid>.ctl`) are vswitchd's own, so this works from another pid namespace too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

log = structlog.get_logger()

RETRY = 0.1  # seconds between looks while it is down


def control_socket(run_dir: str) -> str:
    """The path of vswitchd's control socket. Raises OSError or ValueError while there is no pid file."""
    return f"{run_dir}/ovs-vswitchd.{int(Path(run_dir, 'ovs-vswitchd.pid').read_text())}.ctl"


class VswitchdWatch:
    """Follows the process. `up` is whether it answers connects now, `starts` counts the processes seen.

    The pid is no identity: in a container it may be the same after each restart. `on_change` is called after either
    attribute changed.
    """

    def __init__(self, run_dir: str, *, on_change: Callable[[], None]) -> None:
        self.up = False
        self.starts = 0
        self._run_dir = run_dir
        self._on_change = on_change

    async def run(self) -> None:
        """Watch for ever; cancel to stop."""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(control_socket(self._run_dir))
            except (OSError, ValueError):
                await asyncio.sleep(RETRY)
                continue
            self._set(up=True)
            try:
                await reader.read()  # nothing is asked, so nothing is said: ends with the process
            except OSError:
                pass
            finally:
                writer.transport.abort()
                self._set(up=False)

    def _set(self, *, up: bool) -> None:
        self.up = up
        self.starts += up
        log.info("vswitchd is up" if up else "vswitchd is down", starts=self.starts)
        self._on_change()
