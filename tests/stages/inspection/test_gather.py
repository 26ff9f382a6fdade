"""Reading a set for the inspector: a line for everything, tokens of the worst and of others."""

from pathlib import Path

import numpy as np
import pytest

from stages.inspection.gather import Gathered, gather_set
from storage.manifest import read_manifest
from storage.rows import Rows
from tests.storage.make import meta_of, sequence, write_parts

COUNT, LENGTH = 200, 5


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sets") / "teacher-logits-1"
    meta = meta_of("head_tail", vocab_size=50)
    rng = np.random.default_rng(0)
    made = [sequence(rng, meta, 1000 + number, positions=LENGTH) for number in range(COUNT)]
    parts = [
        (Rows.from_sequences(made[:150]), "train"),
        (Rows.from_sequences(made[150:]), "holdout"),
    ]
    write_parts(path, meta, parts)
    return path


def read(directory: Path, **options: object) -> Gathered:
    given = {"models": {}, "limit": None, "tokens": 10**6} | options
    return gather_set(directory, read_manifest(directory), **given)  # pyright: ignore


def test_everything_is_kept_where_it_fits(directory: Path) -> None:
    found = read(directory)
    assert found.kept is not None
    assert found.table["seq_id"].tolist() == list(range(1000, 1000 + COUNT))
    assert found.kept.batch.seq_id.tolist() == found.table["seq_id"].tolist()
    assert found.table["holdout"].sum() == 50


@pytest.mark.parametrize("tokens", [100, 300])
def test_a_budget_keeps_the_worst_by_every_quantity_and_a_random_sample(
    directory: Path, tokens: int
) -> None:
    """The budget of 100 is exceeded while reading, so that sequences are dropped on the way."""
    found = read(directory, tokens=tokens)
    assert found.kept is not None
    assert found.kept.batch.tokens <= tokens
    assert len(found.table["seq_id"]) == COUNT
    kept = found.kept.number_N.tolist()
    for one in found.quantities:
        means = found.table[f"mean:{one.key}"]
        worst = int(np.argmin(means) if one.worst == "low" else np.argmax(means))
        assert worst in kept
    whole = read(directory).kept
    assert whole is not None
    for column, values in found.kept.columns.items():  # every value belongs to its token
        expected = whole.columns[column].reshape(COUNT, LENGTH)[found.kept.number_N]
        np.testing.assert_array_equal(values.reshape(len(kept), LENGTH), expected)
    at_random = set(kept)
    for one in found.quantities:
        bad = found.table[f"mean:{one.key}"] * (-1 if one.worst == "low" else 1)
        at_random -= set(np.argsort(-bad, kind="stable")[: tokens // LENGTH].tolist())
    assert at_random  # sequences that no quantity calls bad


def test_a_split_a_limit_and_numbers_select(directory: Path) -> None:
    assert len(read(directory, split="holdout").table["seq_id"]) == 50
    some = read(directory, limit=60).table["seq_id"]
    assert 30 < len(some) < 90
    assert some.tolist() == read(directory, limit=60).table["seq_id"].tolist()
    assert read(directory, only=[1003, 1190, 7]).table["seq_id"].tolist() == [1003, 1190]
    assert read(directory, only=[7]).kept is None
