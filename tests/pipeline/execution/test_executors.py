"""Slots of local workers, and what is tried again."""

import pytest

from pipeline.execution.executors import Units, WorkerSlot, complete, gpus_of_worker, worker_slots
from stages.config import GenerateRun, ScoreRun, Workers
from storage.errors import ConfigError

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
