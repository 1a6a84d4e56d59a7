"""The embedded etcd: a child process of the controller, for sites without an etcd of their own.

It listens on unix sockets only, in a directory of mode 0700 that belongs to the controller's user: no workload, no
other host and no other user can reach it, whatever network namespace they are in. It dies with the controller, and is
started again when it dies alone. `docs/operations.md` says how to move to a cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import platform
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType

import structlog

from controller.etcd import child
from controller.etcd.client import Etcd
from controller.etcd.errors import StoreError
from controller.etcd.stale import end_stale

log = structlog.get_logger()

# etcd 3.4 wants "host:port" also of a unix socket's URL and takes it for a path below the current directory, which is
# the private one. That also makes the directory movable, because the URLs are part of etcd's data.
_CLIENT, _PEER = "client:0", "peer:0"
NAME, DATA, PEER_URL = "tealnet", "data", f"unix://{_PEER}"
_LONGEST_PATH = 107  # of a unix socket: unix(7), sun_path
_LOG_LIMIT = 16 << 20  # bytes after which the log is begun anew at the next start
_BACKOFF = 0.2, 10.0  # seconds before a start, first and longest
_STEADY = 60.0  # seconds after which a death is a first one again


class EmbeddedError(Exception):
    """The embedded etcd can't be run; the text says why and what to do."""


class Durability(Enum):
    """When etcd calls a write done."""

    DISK = "disk"
    MEMORY = "memory"
    """Without fsync: for tests. A crash of the machine may lose or destroy the data."""


QUOTA = 8 << 30  # bytes


@dataclass(frozen=True, slots=True)
class Options:
    """How the child runs. `directory` holds data, sockets, log and pid file; defaults as decided in the design."""

    directory: Path
    program: str = "etcd"
    durability: Durability = Durability.DISK
    max_txn_ops: int = 4096
    retention: str = "30m"
    quota_bytes: int = QUOTA
    start_timeout: float = 30.0


class EmbeddedEtcd:
    """An etcd child and its supervisor: `async with EmbeddedEtcd(Options(directory)) as etcd: Etcd([etcd.endpoint])`.

    Enter it in the main thread: the kernel ends the child when the *thread* that started it ends.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._directory = options.directory.absolute()
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._lock: int | None = None
        self.restarts = 0
        """How often it died and was started again."""

    @property
    def endpoint(self) -> str:
        """Where it listens, for `Etcd`."""
        return f"unix:{self._directory / _CLIENT}"

    @property
    def log_file(self) -> Path:
        """What it prints."""
        return self._directory / "etcd.log"

    @property
    def pid(self) -> int:
        """Its process, 0 when it does not run."""
        return self._process.pid if self._process and self._process.returncode is None else 0

    async def __aenter__(self) -> EmbeddedEtcd:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start it and return when it answers. Raises EmbeddedError."""
        program = self._find_program()
        self._prepare_directory()
        self._lock = self._take_lock()
        try:
            await end_stale(self._pid_file)
            self._process = await self._launch(program)
            await self._healthy(self._process)
        except BaseException:
            await self.stop()
            raise
        self._supervisor = asyncio.create_task(self._supervise(program), name="embedded etcd")

    async def stop(self) -> None:
        """End it, gently first; its data stays."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        if self._process is not None:
            await _end(self._process)
            self._process = None
            self._pid_file.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[Path]:
        """Its directory, while nobody runs it. Raises EmbeddedError if somebody does."""
        self._prepare_directory()
        lock = self._take_lock()
        try:
            yield self._directory
        finally:
            os.close(lock)

    # ---- before the start

    @property
    def _pid_file(self) -> Path:
        return self._directory / "etcd.pid"

    def _find_program(self) -> str:
        found = shutil.which(self._options.program)
        if found is None:
            raise EmbeddedError(
                f"the program {self._options.program!r} was not found: install Debian's package etcd-server "
                "(apt-get install etcd-server), or use an etcd of your own: --etcd=https://host:2379"
            )
        return found

    def _prepare_directory(self) -> None:
        """Make the directory ours alone, or refuse."""
        path = self._directory
        if len(os.fsencode(path / _CLIENT)) > _LONGEST_PATH:
            raise EmbeddedError(f"{path} is too long for a unix socket in it ({_LONGEST_PATH} bytes with its name)")
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode):
                raise EmbeddedError(f"{path} is not a directory (a link is not taken)")
            if found.st_uid != os.geteuid():
                raise EmbeddedError(f"{path} belongs to user {found.st_uid}, the controller runs as {os.geteuid()}")
            path.chmod(0o700)
            if self.log_file.exists() and self.log_file.stat().st_size > _LOG_LIMIT:
                self.log_file.replace(self.log_file.with_suffix(".log.1"))
        except OSError as error:
            raise EmbeddedError(f"cannot use {error.filename or path}: {error.strerror}") from error

    def _take_lock(self) -> int:
        """Held as long as this controller lives: whatever etcd runs here otherwise has nobody."""
        handle = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise EmbeddedError(f"another controller runs its etcd in {self._directory}") from error
        return handle

    # ---- the child

    async def _launch(self, program: str) -> asyncio.subprocess.Process:
        for name in (_CLIENT, _PEER):  # etcd does not remove the sockets of one that was killed, and can't bind then
            (self._directory / name).unlink(missing_ok=True)
        with self.log_file.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", child.__file__, str(os.getpid()), str(self._pid_file), program),
                *_flags(self._options),
                cwd=self._directory,
                env=environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C for the controller is not for etcd: it must outlive our last write
            )

    async def _healthy(self, process: asyncio.subprocess.Process) -> None:
        """Return when it serves reads; raises EmbeddedError when it ends before or takes too long."""
        deadline = time.monotonic() + self._options.start_timeout
        async with Etcd([self.endpoint], timeout=0.5) as etcd:
            while process.returncode is None and time.monotonic() < deadline:
                with contextlib.suppress(StoreError):
                    await etcd.revision()
                    log.info("embedded etcd is up", pid=process.pid, directory=str(self._directory))
                    return
        what = f"ended with {process.returncode}" if process.returncode is not None else "did not answer in time"
        raise EmbeddedError(f"etcd {what}; see {self.log_file}\n{self._log_tail()}".rstrip())

    def _log_tail(self) -> str:
        try:
            with self.log_file.open("rb") as file:
                file.seek(max(0, self.log_file.stat().st_size - 2000))
                return b"\n".join(file.read().splitlines()[-5:]).decode(errors="replace")
        except OSError:
            return ""

    async def _supervise(self, program: str) -> None:
        """Start it again whenever it ends. Clients see StoreUnavailable meanwhile."""
        pause = _BACKOFF[0]
        while True:
            since = time.monotonic()
            status = await self._process.wait() if self._process is not None else 0
            self.restarts += 1
            if time.monotonic() - since > _STEADY:
                pause = _BACKOFF[0]
            log.error("embedded etcd ended; starting it again", status=status, pause=pause, log=str(self.log_file))
            await asyncio.sleep(pause)
            pause = min(pause * 2, _BACKOFF[1])
            try:
                self._process = await self._launch(program)
                await self._healthy(self._process)
            except (EmbeddedError, OSError) as error:
                log.error("embedded etcd does not start", error=str(error))
                if self._process is not None:
                    await _end(self._process)


def _flags(options: Options) -> list[str]:
    client, peer = f"unix://{_CLIENT}", PEER_URL
    flags = [
        f"--name={NAME}",
        f"--data-dir={DATA}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster={NAME}={peer}",
        # Alone it elects itself, but only after the timeout: with the default of 1 s a restart took up to 1.9 s.
        "--heartbeat-interval=20",
        "--election-timeout=200",
        f"--max-txn-ops={options.max_txn_ops}",
        "--auto-compaction-mode=periodic",
        f"--auto-compaction-retention={options.retention}",
        f"--quota-backend-bytes={options.quota_bytes}",
        "--logger=zap",
        "--log-outputs=stderr",
    ]
    return [*flags, "--unsafe-no-fsync"] if options.durability is Durability.MEMORY else flags


def environment() -> dict[str, str]:
    """Of etcd's programs: ours without ETCD_*: etcd reads these as flags."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    if platform.machine() == "aarch64":
        kept["ETCD_UNSUPPORTED_ARCH"] = "arm64"  # 3.4 does not start there without
    return kept


async def _end(process: asyncio.subprocess.Process, *, patience: float = 5.0) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(patience):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
