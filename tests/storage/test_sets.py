"""Committing the parts of a set, finding what is wrong with one, and what a position weighs."""

from dataclasses import replace
from pathlib import Path

import pytest

from stages.config.record_kinds import Counts, Sampled
from stages.models.model import load_model
from storage.errors import DataError, RetryError
from storage.manifest import SetIdentity, build_manifest, read_manifest, write_manifest
from storage.parquet.reader import column_bytes
from storage.sets import position_bytes, verify_set
from storage.shard import PartWriter
from tests.stages.evaluation.cases import COUNT, LENGTH, scored
from tests.storage.make import commit, meta_of, random_rows, write_set
from tests.world import commit as commit_rollouts
from tests.world import rollouts, write_model

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


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("teacher"), 1)


def test_all_of_the_parts_and_the_record_alone(tmp_path: Path, teacher: Path) -> None:
    whole = position_bytes(scored(tmp_path / "a", teacher, Counts(draws=20)))
    (part,) = read_manifest(tmp_path / "a").parts
    size = (tmp_path / "a" / part.file).stat().st_size
    assert whole.part == size / (COUNT * LENGTH)
    columns = column_bytes(tmp_path / "a" / part.file)
    assert sum(columns.values()) < size  # the footer is not a column
    own = sum(columns[name] for name in ("nu", "ids", "cnt"))
    assert whole.record == own / (COUNT * LENGTH)
    assert 0 < whole.record < whole.part


def test_a_record_of_the_realised_token_alone_weighs_nothing(tmp_path: Path, teacher: Path) -> None:
    alone = position_bytes(scored(tmp_path / "b", teacher, Sampled()))
    assert alone.record == 0
    assert alone.part > 0


def test_sequences_hold_no_records(tmp_path: Path, teacher: Path) -> None:
    commit_rollouts(
        tmp_path / "c", rollouts(load_model(teacher, "float32", "cpu"), 4), key="aa" * 32
    )
    with pytest.raises(DataError, match="holds no records to weigh"):
        position_bytes(tmp_path / "c")
