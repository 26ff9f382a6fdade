"""What a set weighs, against the files themselves."""

from pathlib import Path

import pytest

from stages.config.record_kinds import Counts, Sampled
from stages.models.model import load_model
from storage.errors import DataError
from storage.manifest import read_manifest
from storage.parquet.reader import column_bytes
from storage.sizes import weight
from tests.stages.evaluation.cases import COUNT, LENGTH, scored
from tests.world import commit, rollouts, write_model


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("teacher"), 1)


def test_all_of_the_parts_and_the_record_alone(tmp_path: Path, teacher: Path) -> None:
    whole = weight(scored(tmp_path / "a", teacher, Counts(draws=20)))
    (part,) = read_manifest(tmp_path / "a").parts
    size = (tmp_path / "a" / part.file).stat().st_size
    assert whole.part == size / (COUNT * LENGTH)
    columns = column_bytes(tmp_path / "a" / part.file)
    assert sum(columns.values()) < size  # the footer is not a column
    own = sum(columns[name] for name in ("nu", "ids", "cnt"))
    assert whole.record == own / (COUNT * LENGTH)
    assert 0 < whole.record < whole.part


def test_a_record_of_the_realised_token_alone_weighs_nothing(tmp_path: Path, teacher: Path) -> None:
    alone = weight(scored(tmp_path / "b", teacher, Sampled()))
    assert alone.record == 0
    assert alone.part > 0


def test_sequences_hold_no_records(tmp_path: Path, teacher: Path) -> None:
    commit(tmp_path / "c", rollouts(load_model(teacher, "float32", "cpu"), 4), key="aa" * 32)
    with pytest.raises(DataError, match="holds no records to weigh"):
        weight(tmp_path / "c")
