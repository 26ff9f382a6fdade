"""Units of work for schedulers, slots of local workers, and what is tried again."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.execution.units import (
    Units,
    WorkerSlot,
    complete,
    format_shards,
    gpus_of_worker,
    parse_shards,
    worker_slots,
)
from stages.config.execution import Workers
from stages.config.generation import GenerateRun
from stages.config.records import ScoreRun
from storage.errors import ConfigError, UsageError
from tests.command import Outcome, afterglow

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


TWO = Workers(workers=2)
UNITS = [["run", "rollouts", "--shard", "0-3"], ["run", "rollouts", "--shard", "4-7"]]


class Scripted:
    """A stage of two units and an executor whose exit codes are given beforehand."""

    def __init__(self, *codes: tuple[int, ...]) -> None:
        self.codes = list(codes)
        self.left = list(UNITS)

    def ask(self) -> Units:
        """Units that have not ended well."""
        return self.left

    def run(self, units: Units, _: Workers) -> list[int]:
        """The next exit codes."""
        codes = self.codes.pop(0)
        pairs = list(zip(units, codes, strict=True))
        self.left = [unit for unit, code in pairs if code != 0]
        return [code for _, code in pairs]


@pytest.mark.parametrize(
    ("codes", "outcome"),
    [
        ([(0, 0)], 0),
        ([(0, -9), (0,)], 0),
        ([(75, 75), (75, 0), (0,)], 0),
        ([(0, 65)], 65),
        ([(-9, 78)], 78),
        ([(0, 75), (75,), (-15,), (75,)], 75),
    ],
)
def test_only_what_may_succeed_is_tried_again(codes: list[tuple[int, ...]], outcome: int) -> None:
    stage = Scripted(*codes)
    assert complete(stage.ask, TWO, stage.run) == outcome
    assert not stage.codes


def test_nothing_to_do_needs_no_executor() -> None:
    def refuse(units: Units, _: Workers) -> list[int]:
        raise AssertionError(units)

    assert complete(list, TWO, refuse) == 0


def test_cores_are_shared_out_and_gpus_are_not() -> None:
    four = Workers(workers=4)
    assert [slot.cores for slot in worker_slots(four, range(8), [])] == [
        (0, 1),
        (2, 3),
        (4, 5),
        (6, 7),
    ]
    assert [slot.cores for slot in worker_slots(four, [1, 3], [])] == [(1,), (3,), (1,), (3,)]
    assert [slot.cores for slot in worker_slots(Workers(workers=2, cpus=3), range(6), [])] == [
        (0, 1, 2),
        (3, 4, 5),
    ]
    pairs = GenerateRun(workers=2, tensor_parallel=2)
    assert [p.gpus for p in worker_slots(pairs, [0], list("abcd"))] == [("a", "b"), ("c", "d")]
    assert [p.gpus for p in worker_slots(pairs, [0], [])] == [(), ()]


@pytest.mark.parametrize("run", [ScoreRun(workers=3), ScoreRun(workers=1, gpus=0.5)])
def test_gpus_that_are_not_there_are_refused(run: Workers) -> None:
    with pytest.raises(ConfigError, match="this machine shows 2; lower `workers` or `gpus`"):
        worker_slots(run, [0], ["0", "1"])


def test_a_worker_takes_what_its_engine_needs() -> None:
    assert gpus_of_worker(ScoreRun(tensor_parallel=4), 8.0) == 4.0
    assert gpus_of_worker(ScoreRun(tensor_parallel=4, gpus=0.25), 8.0) == 0.25
    assert gpus_of_worker(ScoreRun(), 0.0) == 0.0


def test_a_slot_leaves_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert WorkerSlot((0, 1), ("3",)).environment()["OMP_NUM_THREADS"] == "2"
    assert WorkerSlot((0, 1), ("3",)).environment()["CUDA_VISIBLE_DEVICES"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert WorkerSlot((0, 1), ()).environment()["OMP_NUM_THREADS"] == "7"
