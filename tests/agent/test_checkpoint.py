"""The checkpoint: what was written is read, and nothing else is ever believed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.checkpoint import MAGIC, Checkpoint, CheckpointError, encode, parse
from tealnet.agent.v1 import checkpoint_pb2 as pbc
from tests.samples import samples


def record(revision: int, size: int = 10) -> pbc.Checkpoint:
    entry = pbc.CheckpointEntry(scope="host", key=f"localport/{revision}", body=bytes(size))
    return pbc.Checkpoint(cluster_uid="c", revision=revision, complete=True, entries=[entry])


def everything(revision: int) -> Callable[[], pbc.Checkpoint]:
    return lambda: record(revision)


async def written(path: Path, *revisions: int) -> Checkpoint:
    checkpoint = Checkpoint(path)
    for revision in revisions:
        await checkpoint.save(record(revision), snapshot=everything(revision))
    assert checkpoint.failure == ""
    return checkpoint


async def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "state" / "checkpoint"
    await written(path, 1, 2, 3)
    assert Checkpoint(path).load() == [record(1), record(2), record(3)]
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint"]


async def test_a_new_process_replaces_the_file_before_it_adds_to_it(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    await written(path, 1, 2)
    await written(path, 3, 4)
    assert Checkpoint(path).load() == [record(3), record(4)]


async def test_the_tail_is_folded_when_it_has_outgrown_the_head(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    for revision in range(1, 8):
        await checkpoint.save(record(revision, 300_000), snapshot=everything(revision))
    assert len(Checkpoint(tmp_path / "checkpoint").load()) < 7
    assert (tmp_path / "checkpoint").stat().st_size < 1_500_000


def test_no_file_is_an_empty_start_without_complaint(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    assert checkpoint.load() == []
    assert checkpoint.failure == ""


@pytest.mark.parametrize("content", [b"", b"garbage", MAGIC, b"tealnet agent checkpoint 0\n" + encode(record(1))])
def test_another_file_is_an_empty_start_with_a_condition(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(content)
    checkpoint = Checkpoint(path)
    assert checkpoint.load() == []
    assert checkpoint.failure


RECORDS = [record(1), record(2, 40), record(3)]
DATA = MAGIC + b"".join(encode(item) for item in RECORDS)


@given(st.integers(min_value=0, max_value=len(DATA) - 1))
def test_truncated_anywhere_it_is_a_former_state_or_nothing(length: int) -> None:
    try:
        found = parse(DATA[:length])
    except CheckpointError:
        found = []
    assert found == RECORDS[: len(found)] and len(found) < len(RECORDS)


@settings(max_examples=samples(150, many=5000))
@given(st.integers(min_value=0, max_value=len(DATA) - 1), st.integers(min_value=1, max_value=255))
def test_a_flipped_byte_is_never_believed(place: int, flip: int) -> None:
    damaged = bytearray(DATA)
    damaged[place] ^= flip
    try:
        found = parse(bytes(damaged))
    except CheckpointError:
        found = []
    assert found == RECORDS[: len(found)] and len(found) < len(RECORDS)


@given(st.binary(max_size=300))
def test_garbage_after_the_magic_is_never_believed(garbage: bytes) -> None:
    with pytest.raises(CheckpointError):
        parse(MAGIC + garbage)


async def test_without_a_disk_the_agent_goes_on_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "state" / "checkpoint"
    path.parent.write_text("in the way: not a directory")
    checkpoint = Checkpoint(path)
    await checkpoint.save(record(1), snapshot=everything(1))
    assert "could not be written" in checkpoint.failure
    path.parent.unlink()
    await checkpoint.save(record(2), snapshot=everything(2))
    assert checkpoint.failure == ""
    assert Checkpoint(path).load() == [record(2)]


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
async def test_a_disk_that_is_full_leaves_a_former_state_and_is_used_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        path, revision, size = disk / "checkpoint", 0, 20_000
        checkpoint = Checkpoint(path)

        async def save() -> None:
            nonlocal revision
            revision += 1
            await checkpoint.save(record(revision, size), snapshot=lambda: record(revision, size))

        while not checkpoint.failure:
            await save()
            assert revision < 10
        assert "No space left on device" in checkpoint.failure
        full = revision
        for _ in range(3):  # it tries again each time, and nothing that was good is lost
            await save()
            assert checkpoint.failure
            kept = Checkpoint(path).load()
            assert kept and kept[-1].revision < full and all(one.ByteSize() >= size for one in kept)
        size = 10  # less is to be known now: there is room again
        await save()
        assert checkpoint.failure == ""
        assert Checkpoint(path).load() == [record(revision, size)]
        assert sorted(os.listdir(disk)) == ["checkpoint"]


async def test_a_file_that_vanishes_is_written_whole_again(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    checkpoint = await written(path, 1, 2)
    path.unlink()
    await checkpoint.save(record(3), snapshot=everything(3))
    assert checkpoint.failure
    await checkpoint.save(record(4), snapshot=everything(4))
    assert Checkpoint(path).load() == [record(4)]


async def test_it_is_written_when_the_disk_takes_it_again(tmp_path: Path) -> None:
    """Not only when there is news: a process that starts meanwhile would begin with something older."""
    path = tmp_path / "state" / "checkpoint"
    checkpoint = Checkpoint(path)
    newest = pbc.Checkpoint(revision=7)
    path.parent.write_text("not a directory")
    await checkpoint.save(pbc.Checkpoint(revision=7), snapshot=lambda: newest)
    assert checkpoint.is_behind and "could not be written" in checkpoint.failure
    await checkpoint.catch_up(lambda: newest)
    assert checkpoint.is_behind
    path.parent.unlink()
    await checkpoint.catch_up(lambda: newest)
    assert not checkpoint.is_behind and not checkpoint.failure
    assert [record.revision for record in Checkpoint(path).load()] == [7]
