"""Durability: what is synced, and in which order, relative to the name a file gets."""

import hashlib
import os
from pathlib import Path

import pytest

from storage.errors import RetryError
from storage.files.write import HashingFile, create_once, disk_errors, sha256_file
from storage.manifest import FILE_NAME, write_manifest
from storage.shard import PartWriter
from tests.storage.make import commit, meta_of, random_rows

META = meta_of("sampled")


@pytest.fixture
def syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """For every fsync: the name of what was synced, and the visible files at that moment."""
    seen: list[tuple[str, list[str]]] = []
    fsync = os.fsync

    def record(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        visible = sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("."))
        seen.append((name, visible))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    return seen


def test_a_part_is_synced_then_named_then_its_directory_is_synced(
    tmp_path: Path, syncs: list[tuple[str, list[str]]]
) -> None:
    with PartWriter(tmp_path, 0, META) as writer:
        writer.write(random_rows(META, 40))
    (file, before), (directory, after) = syncs
    assert file.startswith(".part-00000.")
    assert before == []
    assert directory == tmp_path.name
    assert after == [writer.part.file]


def test_a_manifest_is_synced_then_named_then_its_directory_is_synced(
    tmp_path: Path, syncs: list[tuple[str, list[str]]]
) -> None:
    with PartWriter(tmp_path, 0, META) as writer:
        writer.write(random_rows(META, 4))
    syncs.clear()
    write_manifest(tmp_path, commit(tmp_path, META, 1))
    (file, before), (directory, after) = syncs
    assert file.startswith(f".{FILE_NAME}.")
    assert before == [writer.part.file]
    assert directory == tmp_path.name
    assert after == [FILE_NAME, writer.part.file]


def test_created_once(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert create_once(path, b"first")
    assert not create_once(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_hashed_while_written(tmp_path: Path) -> None:
    path = tmp_path / "x"
    file = HashingFile(path.open("xb", buffering=0))
    for block in (b"some ", b"", b"bytes"):
        assert file.write(block) == len(block)
    assert file.tell() == file.size == 10
    file.discard = True
    assert file.write(b"dropped") == 7
    file.sync()
    file.close()
    assert file.closed
    assert path.read_bytes() == b"some bytes"
    assert file.digest.hexdigest() == sha256_file(path) == hashlib.sha256(b"some bytes").hexdigest()
    with pytest.raises(FileExistsError):
        HashingFile(path.open("xb", buffering=0))


def _fail(path: Path, error: OSError) -> None:
    with disk_errors(path):
        raise error


def test_disk_errors_are_errors_to_try_again(tmp_path: Path) -> None:
    with pytest.raises(RetryError, match=r"x: cannot write \(No space left\).*run again") as caught:
        _fail(tmp_path / "x", OSError(28, "No space left"))
    assert isinstance(caught.value, OSError)
    assert caught.value.exit_code == 75
    inner = RetryError("as it is")
    with pytest.raises(RetryError) as again:
        _fail(tmp_path / "x", inner)
    assert again.value is inner
