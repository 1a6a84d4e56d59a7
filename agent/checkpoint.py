"""The agent's memory on disk: what it last received, in one file.

    magic, then records: length (4 bytes, big-endian), blake2b-128 of the payload, payload (a Checkpoint message)

The first record holds everything, each further one what a unit changed, so that a unit costs what it says and not
what the host knows. A file is replaced atomically (tmp, fsync, rename) when the tail has outgrown the head. A torn last
record is a unit that was never taken: dropped. Anything else that is not as written means an empty start: this file
decides what may be deleted, so a doubtful one decides nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError

from tealnet.agent.v1 import checkpoint_pb2 as pbc

log = structlog.get_logger()

MAGIC = b"tealnet agent checkpoint 1\n"
_HASH = 16
_HEAD = 4 + _HASH
SLACK = 1 << 20  # bytes of tail that are always allowed


class CheckpointError(Exception):
    """The file can't be used; says why."""


def encode(record: pbc.Checkpoint) -> bytes:
    """One record as it stands in the file."""
    payload = record.SerializeToString()
    return len(payload).to_bytes(4, "big") + blake2b(payload, digest_size=_HASH).digest() + payload


def parse(data: bytes) -> list[pbc.Checkpoint]:
    """The records of a file. Raises CheckpointError; a torn last record is left out."""
    if not data.startswith(MAGIC):
        raise CheckpointError("not a checkpoint of this format")
    records: list[pbc.Checkpoint] = []
    at = len(MAGIC)
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + _HEAD + length
        payload = data[at + _HEAD : end]
        if end > len(data) and records:
            break
        if end > len(data) or blake2b(payload, digest_size=_HASH).digest() != data[at + 4 : at + _HEAD]:
            if end == len(data) and records:
                break
            raise CheckpointError(f"checksum of the record at byte {at} does not match")
        try:
            records.append(pbc.Checkpoint.FromString(payload))
        except DecodeError as error:
            raise CheckpointError(f"the record at byte {at} is not a message") from error
        at = end
    if not records:
        raise CheckpointError("no records")
    return records


class Checkpoint:
    """The file. Writing never raises: without a disk the agent goes on, and `failure` says what is wrong."""

    def __init__(self, path: Path) -> None:
        self.failure = ""
        self.is_behind = False  # the file is older than what the agent knows
        self._path = path
        self._writing = asyncio.Lock()
        self._head = 0  # size after the last rewrite
        self._tail = 0  # bytes appended since
        self._rewrite = True  # the file on disk can't be appended to
        self._syncing: asyncio.Task[None] | None = None  # the last record, on its way to the disk

    def load(self) -> list[pbc.Checkpoint]:
        """The records, none if there is no usable file."""
        try:
            data = self._path.read_bytes()
            return parse(data)
        except FileNotFoundError:
            return []
        except (CheckpointError, OSError) as error:
            self.failure = f"the checkpoint could not be used: {error}"
            log.error("checkpoint not used", path=str(self._path), error=str(error))
            return []

    async def save(self, record: pbc.Checkpoint, *, snapshot: Callable[[], pbc.Checkpoint]) -> None:
        """Make a change durable; `snapshot` gives everything, for when the file is to be replaced."""
        await self.write(record, snapshot=snapshot)
        await self.durable()

    async def write(self, record: pbc.Checkpoint, *, snapshot: Callable[[], pbc.Checkpoint]) -> None:
        """The same, but only as far as it takes to outlive this process; `durable` waits until it outlives a crash.

        A crash of the machine takes all that the agent has made with it, so work need not wait for the disk: what
        is said about it must.
        """
        async with self._writing:
            await self.durable()
            await self._write(record, snapshot)

    async def durable(self) -> None:
        """Return when the disk has what was written, or `failure` says that it has not."""
        if (syncing := self._syncing) is None:
            return
        try:
            await asyncio.shield(syncing)
        except OSError as error:
            self._failed(error)
        if self._syncing is syncing:
            self._syncing = None

    async def catch_up(self, snapshot: Callable[[], pbc.Checkpoint]) -> None:
        """Try again what could not be written: until then a new process would begin with something older."""
        if self.is_behind:
            await self.save(pbc.Checkpoint(), snapshot=snapshot)

    async def _write(self, record: pbc.Checkpoint, snapshot: Callable[[], pbc.Checkpoint]) -> None:
        self._rewrite = self._rewrite or self._tail > self._head + SLACK
        data = MAGIC + encode(snapshot()) if self._rewrite else encode(record)
        try:
            if self._rewrite:
                await asyncio.to_thread(self._replace, data)
                self._head, self._tail, self._rewrite = len(data), 0, False
            else:
                descriptor = await asyncio.to_thread(self._append, data)
                self._tail += len(data)
                self._syncing = asyncio.create_task(asyncio.to_thread(_sync, descriptor), name="checkpoint-sync")
        except OSError as error:
            self._failed(error)
            return
        self.failure, self.is_behind = "", False

    def _failed(self, error: OSError) -> None:
        if not self.failure or not self._rewrite:
            log.error("checkpoint not written", path=str(self._path), error=str(error))
        self.failure = f"the checkpoint could not be written: {error}"
        self._rewrite = self.is_behind = True

    def _append(self, data: bytes) -> int:
        """Returns the descriptor, which is still to be synced and closed."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            try:
                _write_all(descriptor, data)
            except OSError:
                os.ftruncate(descriptor, size)  # half a record is none, and its room is needed
                raise
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _replace(self, data: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        except OSError:
            temporary.unlink()
            raise
        finally:
            os.close(descriptor)
        os.replace(temporary, self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _sync(descriptor: int) -> None:
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
