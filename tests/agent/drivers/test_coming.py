"""A socket that comes: waits end with it, not with their time."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from agent.drivers.coming import WAITS, Coming

LATE = len(WAITS)  # after so many attempts waits are the longest


async def test_a_wait_ends_when_the_name_comes_or_goes(tmp_path: Path) -> None:
    path = tmp_path / "br-int.mgmt"
    loop = asyncio.get_running_loop()
    for change in (path.touch, path.unlink):
        with Coming(str(path)) as coming:
            loop.call_later(0.01, change)
            began = time.monotonic()
            assert await coming.wait(LATE)
            assert time.monotonic() - began < WAITS[-1] / 2


async def test_what_came_during_the_attempt_counts(tmp_path: Path) -> None:
    with Coming(f"{tmp_path}/ovs-vswitchd.") as coming:
        (tmp_path / "ovs-vswitchd.pid.tmp").touch()
        (tmp_path / "ovs-vswitchd.pid.tmp").rename(tmp_path / "ovs-vswitchd.pid")
        assert await coming.wait(0)
        assert not await coming.wait(0)  # told once


async def test_others_and_a_directory_that_is_not_there_are_waited_out(tmp_path: Path) -> None:
    with Coming(str(tmp_path / "db.sock")) as coming:
        (tmp_path / "other").touch()
        assert not await coming.wait(0)
    with Coming(str(tmp_path / "missing" / "db.sock")) as coming:
        assert not await coming.wait(0)
