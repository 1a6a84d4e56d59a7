from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.etcd import Etcd
from controller.etcd.child import boot_id, start_time
from controller.etcd.embedded import Durability, EmbeddedError, EmbeddedEtcd, Options
from controller.etcd.types import put
from tests.controller.etcd.helpers import eventually


def options(directory: Path) -> Options:
    return Options(directory, durability=Durability.MEMORY, start_timeout=10)


async def wait_gone(pid: int) -> None:
    """Wait until a process that need not be our child has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        assert await asyncio.to_thread(poller.poll, 10_000), f"process {pid} still runs"
    finally:
        os.close(handle)


async def test_data_survives_stop_and_start(tmp_path: Path) -> None:
    for expected in (b"", b"kept"):
        async with EmbeddedEtcd(options(tmp_path / "e")) as server, Etcd([server.endpoint]) as etcd:
            page = await etcd.range(b"a")
            assert (page.kvs[0].value if page.kvs else b"") == expected
            await etcd.txn((), [put(b"a", b"kept")])
            pid = server.pid
        await wait_gone(pid)
        assert server.pid == 0


async def test_it_listens_on_nothing_but_private_unix_sockets(server: EmbeddedEtcd) -> None:
    directory = Path(server.endpoint.removeprefix("unix:")).parent
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    inodes = set()
    for fd in os.listdir(files := f"/proc/{server.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # a connection that has just been closed; listeners stay
            inodes.add(os.readlink(f"{files}/{fd}"))
    assert any(inode.startswith("socket:") for inode in inodes)
    for table in ("tcp", "tcp6", "udp", "udp6"):
        lines = await asyncio.to_thread(Path(f"/proc/{server.pid}/net/{table}").read_text)
        sockets = {f"socket:[{line.split()[9]}]" for line in lines.splitlines()[1:]}
        assert not inodes & sockets, table


async def test_it_comes_back_when_it_dies(server: EmbeddedEtcd, etcd: Etcd) -> None:
    await etcd.txn((), [put(b"a", b"kept")])
    before = server.pid
    os.kill(before, signal.SIGKILL)

    async def another() -> bool:
        return server.pid not in (0, before)

    await eventually(another)
    assert (await etcd.range(b"a")).kvs[0].value == b"kept"
    assert server.restarts == 1


async def test_it_dies_with_its_controller(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from pathlib import Path
from controller.etcd.embedded import Durability, EmbeddedEtcd, Options
async def main():
    async with EmbeddedEtcd(Options(Path(sys.argv[1]), durability=Durability.MEMORY)) as server:
        print("pid", server.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    command = (sys.executable, "-c", program, str(tmp_path / "e"))
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    parent = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, env=environment)
    try:
        assert parent.stdout is not None
        async with asyncio.timeout(15):
            while not (line := await parent.stdout.readline()).startswith(b"pid"):
                assert line, "it did not start"
        pid = int(line.split()[1])
        assert start_time(pid)
    finally:
        parent.kill()
        await parent.wait()
    await wait_gone(pid)
    async with EmbeddedEtcd(options(tmp_path / "e")):  # and what it left does not hinder the next one
        pass


async def test_one_left_behind_is_ended(tmp_path: Path) -> None:
    """As if the kernel had not ended it: an etcd that holds the data directory and has no controller."""
    directory = tmp_path / "e"
    async with EmbeddedEtcd(options(directory)) as server:
        flags = (await asyncio.to_thread(Path(f"/proc/{server.pid}/cmdline").read_bytes)).split(b"\0")[1:-1]
    stale = await asyncio.create_subprocess_exec("etcd", *flags, cwd=directory, stderr=subprocess.DEVNULL)
    try:
        (directory / "etcd.pid").write_text(f"{stale.pid} {start_time(stale.pid)} {boot_id()}\n")

        async def up() -> bool:
            return (directory / "client:0").exists()

        await eventually(up)
        async with EmbeddedEtcd(options(directory)) as server, Etcd([server.endpoint]) as etcd:
            async with asyncio.timeout(5):
                await stale.wait()
            await etcd.txn((), [put(b"a", b"")])
    finally:
        if stale.returncode is None:
            stale.kill()
            await stale.wait()


@pytest.mark.parametrize(
    "content",
    [
        lambda pid: f"{pid} 1 {boot_id()}\n",  # a reused pid
        lambda pid: f"{pid} {start_time(pid)} another-boot\n",
        lambda pid: f"{pid}",  # half a file
        lambda pid: "",
    ],
)
async def test_a_stranger_is_never_ended(tmp_path: Path, content: Callable[[int], str]) -> None:
    directory = tmp_path / "e"
    directory.mkdir()
    stranger = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        (directory / "etcd.pid").write_text(content(stranger.pid))
        async with EmbeddedEtcd(options(directory)):
            assert stranger.returncode is None and start_time(stranger.pid)
    finally:
        stranger.kill()
        await stranger.wait()


async def test_two_controllers_do_not_share_a_directory(server: EmbeddedEtcd) -> None:
    directory = Path(server.endpoint.removeprefix("unix:")).parent
    before = server.pid
    with pytest.raises(EmbeddedError, match="another controller"):
        await EmbeddedEtcd(options(directory)).start()
    assert server.pid == before


async def test_a_missing_program_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match="etcd-server"):
        await EmbeddedEtcd(Options(tmp_path / "e", program="no-such-etcd")).start()
    assert os.listdir(tmp_path) == []


async def test_one_that_cannot_run_says_why_and_leaves_nothing_running(tmp_path: Path) -> None:
    directory = tmp_path / "e"
    (directory / "data").mkdir(parents=True)
    (directory / "data" / "member").write_text("not a directory")
    server = EmbeddedEtcd(options(directory))
    with pytest.raises(EmbeddedError, match=r"etcd\.log"):
        await server.start()
    assert server.pid == 0
    (directory / "data" / "member").unlink()
    async with server:  # nothing is held: it can be tried again
        assert server.pid


def link(path: Path) -> None:
    (path.parent / "other").mkdir()
    path.symlink_to(path.parent / "other")


def of_another_user(path: Path) -> None:
    path.mkdir()
    os.chown(path, 65534, 65534)


@pytest.mark.parametrize("make", [link, Path.touch, of_another_user])
async def test_a_directory_that_is_not_ours_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "e")
    with pytest.raises(EmbeddedError, match=str(tmp_path / "e")):
        await EmbeddedEtcd(options(tmp_path / "e")).start()


async def test_an_open_directory_is_closed_and_a_long_one_refused(tmp_path: Path) -> None:
    directory = tmp_path / "e"
    directory.mkdir(mode=0o755)
    async with EmbeddedEtcd(options(directory)):
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    with pytest.raises(EmbeddedError, match="too long"):
        await EmbeddedEtcd(options(tmp_path / ("x" * 100))).start()


async def test_variables_of_the_controller_are_not_flags_of_etcd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETCD_LISTEN_CLIENT_URLS", "http://127.0.0.1:1")
    monkeypatch.setenv("ETCD_NAME", "other")
    async with EmbeddedEtcd(options(tmp_path / "e")) as server, Etcd([server.endpoint]) as etcd:
        assert (await etcd.members())[0].name == "tealnet"
