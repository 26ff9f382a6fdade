"""Committing the parts of a set, and finding what is wrong with one."""

from dataclasses import replace
from pathlib import Path

import pytest

from storage.errors import DataError, RetryError
from storage.manifest import SetIdentity, build_manifest, write_manifest
from storage.sets import verify_set
from storage.shard import PartWriter
from tests.storage.make import commit, meta_of, random_rows, write_set

META = meta_of("head_tail")


def test_commit_names_missing_parts(tmp_path: Path) -> None:
    for index in (0, 2):
        with PartWriter(tmp_path, index, META) as writer:
            writer.write(random_rows(META, 2))
    with pytest.raises(RetryError, match=r"parts 1, 3 of 4 are missing or damaged \(2 in all\)"):
        commit(tmp_path, META, 4)


def test_commit_refuses_parts_of_another_set(tmp_path: Path) -> None:
    with PartWriter(tmp_path, 0, replace(META, key="f" * 64)) as writer:
        writer.write(random_rows(META, 2))
    with pytest.raises(DataError, match="belongs to set ffffffffffff, not 0123456789ab"):
        commit(tmp_path, META, 1)


def test_verify_finds_every_kind_of_damage(tmp_path: Path) -> None:
    manifest = write_set(tmp_path, META, [40, 40, 40, 40])
    assert verify_set(tmp_path) == []
    missing, short, flipped, swapped = (tmp_path / part.file for part in manifest.parts)
    missing.unlink()
    short.write_bytes(short.read_bytes()[:-20])
    data = bytearray(flipped.read_bytes())
    data[len(data) // 4] ^= 1
    flipped.write_bytes(data)
    with PartWriter(tmp_path / "other", 3, META) as writer:
        writer.write(random_rows(META, 40, seed=9))
    (tmp_path / "other" / writer.part.file).replace(swapped)
    problems = verify_set(tmp_path)
    assert [p for p in problems if str(missing) in p] == [f"{missing}: missing"]
    assert sum(str(short) in p for p in problems) == 3  # size, sha256, footer
    assert any(p.startswith(f"{flipped}, row group 0: damaged") for p in problems)
    assert any(p.startswith(f"{flipped}: sha256 is") for p in problems)
    assert any(p.startswith(f"{swapped}: its row groups are not those") for p in problems)


def test_verify_hashes_the_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "b.json").write_text("{}")
    identity = SetIdentity("sft", 1, META.key, "sft", "model", {})
    write_manifest(tmp_path, build_manifest(tmp_path, identity, files=["a.txt", "b.json"]))
    assert verify_set(tmp_path) == []
    (tmp_path / "a.txt").write_text("hullo")
    (tmp_path / "b.json").unlink()
    changed, missing = verify_set(tmp_path)
    assert "a.txt: sha256 is" in changed
    assert missing.endswith("b.json: missing")


def test_verify_of_what_is_no_set(tmp_path: Path) -> None:
    (problem,) = verify_set(tmp_path)
    assert "not a committed set" in problem
