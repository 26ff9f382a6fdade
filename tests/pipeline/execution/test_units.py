"""Units of work for schedulers."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.execution.units import format_shards, parse_shards
from storage.errors import UsageError
from tests.e2e.command import Outcome, afterglow

SMALL = ("--set", "corpus.count=160", "--set", "corpus.sequences_per_part=32")


@given(st.sets(st.integers(0, 300)).map(sorted))
def test_shards_are_written_as_ranges_and_read_back(indices: list[int]) -> None:
    if indices:
        assert parse_shards(format_shards(indices)) == indices


def test_ranges_are_short() -> None:
    assert format_shards([0, 1, 2, 3, 5, 7, 8]) == "0-3,5,7-8"
    assert parse_shards("5, 0-2,1") == [5, 0, 1, 2]


@pytest.mark.parametrize("text", ["", "a", "3-", "-1", "5-2", "1;2"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        parse_shards(text)


def units(store: Path, *arguments: str) -> list[list[str]]:
    outcome = afterglow("units", "corpus", *SMALL, *arguments, store=store)
    assert outcome.code == 0, outcome.err
    return outcome.result["units"]


def run(store: Path, unit: list[str]) -> Outcome:
    """A unit names the whole command; the store is among its overrides already."""
    outcome = afterglow(*unit, store=store)
    assert outcome.code == 0, outcome.err
    return outcome


def test_units_together_complete_a_stage(store: Path) -> None:
    two = units(store, "--at-most", "2")
    assert [unit[:4] for unit in two] == [
        ["run", "corpus", "--shard", "0-1"],
        ["run", "corpus", "--shard", "2-4"],
    ]
    run(store, two[1])
    left = units(store, "--at-most", "9")
    assert [unit[3] for unit in left] == ["0", "1"]
    for unit in left:
        run(store, unit)
    assert units(store) == []
    assert afterglow("commit", "corpus", *SMALL, store=store).code == 0
    assert units(store) == []


def test_a_stage_the_recipe_lacks_has_no_units(store: Path) -> None:
    outcome = afterglow("units", "corpus", "--recipe", "qwen3-4b-math", store=store)
    assert (outcome.code, outcome.result["units"]) == (0, [])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"
