"""`train`: what it refuses, what it records, and that the student comes closer to the teacher."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stages import train
from stages.config.record_kinds import Counts, HeadTail
from stages.config.training import Student
from stages.job import Input, Job
from stages.models.identity import tokenizer_hash
from stages.models.model import load_model
from stages.training.metrics import read
from storage.batch import Batch
from storage.errors import ConfigError, DataError, EngineError
from storage.stream import read_split
from tests.world import (
    LETTERS,
    World,
    commit_model,
    identity,
    make_job,
    make_world,
    write_model,
)


def job(store: Path, data: Input, start: Input | None, **settings: object) -> Job[Student]:
    config = Student.model_validate(
        {
            "steps": 24,
            "batch_size": 16,
            "learning_rate": 3e-3,
            "run": {"log_every": 6},
            **settings,
        }
    )
    inputs = {"data": data} if start is None else {"data": data, "init": start}
    return make_job(store, "train", config, inputs)


def reverse_kl(student: Path, teacher: Path, batch: Batch) -> float:
    """Exact mean KL(student || teacher) over the positions of `batch`."""
    models = [load_model(path, "float32", "cpu") for path in (student, teacher)]
    total = 0.0
    for row in range(len(batch)):
        one = batch.select([row])
        ids = torch.from_numpy(np.concatenate([one.prompt, one.tok]))[None]
        with torch.no_grad():
            q, p = (m(input_ids=ids).logits[0, len(one.prompt) - 1 : -1] for m in models)
        total += float((q.softmax(-1) * (q.log_softmax(-1) - p.log_softmax(-1))).sum())
    return total / batch.tokens


@pytest.mark.parametrize("form", ["corrected", "bucketed"])
def test_the_student_comes_closer_to_the_teacher(world: World, tmp_path: Path, form: str) -> None:
    made = job(tmp_path, world.records, world.init, objective={"form": form})
    manifest = train.run(made)
    batch = next(read_split(world.records.directory, "train"))
    before = reverse_kl(world.reference, world.teacher, batch)
    assert reverse_kl(made.site, world.teacher, batch) < 0.4 * before
    assert manifest.teacher == identity(world.teacher).to_json()
    assert tokenizer_hash(made.directory) == tokenizer_hash(world.teacher)


def test_the_manifest_tells_what_was_trained_and_what_it_may_be_called(
    world: World, tmp_path: Path
) -> None:
    made = job(tmp_path, world.records, world.init, steps=2)
    meta = train.run(made).meta
    assert meta["objective"]["name"] == "reverse_kl"
    assert meta["guarantee"]["level"] == "unbiased"
    assert meta["agreement"] < 1e-3
    assert meta["steps"] == meta["planned_steps"] == 2
    assert meta["stopped_by_drift"] is False
    assert meta["last"] == {
        name: value
        for name, value in read(made.site / "metrics.jsonl")[-1].items()
        if name not in ("tokens_per_second", "waiting")
    }


def test_the_temperature_of_the_objective_is_no_drift(tmp_path: Path) -> None:
    record = HeadTail(tau=0.1, candidates=2, loss_temperature=2.0)
    world = make_world(tmp_path, record, count=32)
    settings = {"steps": 10, "learning_rate": 1e-6, "objective": {"temperature": 2.0}}
    meta = train.run(
        job(tmp_path, world.records, world.init, **settings, drift={"warn": 0.02})
    ).meta
    assert meta["last"]["drift"] > 0.02
    assert "drifted" not in meta
    made = job(tmp_path, world.records, world.init, **settings, drift={"stop": 0.02})
    assert train.run(made).meta["stopped_by_drift"] is True  # who asks for it gets it


def test_a_student_on_its_way_to_a_teacher_far_off_is_no_reason_to_warn(
    world: World, tmp_path: Path
) -> None:
    found: list[bool] = []
    for limits in ({}, {"warn": 0.5}):
        made = job(
            tmp_path,
            world.records,
            world.init,
            steps=40,
            objective={"name": "forward_kl"},
            drift=limits,
        )
        meta = train.run(made).meta
        assert 0.5 < meta["last"]["drift"] < meta["last"]["drift_teacher"]
        found.append("drifted" in meta)
    assert found == [False, True]


@pytest.mark.parametrize("limits", [{"stop": 0.01}, {"warn_chi2": 1e-6, "stop_chi2": 1e-3}])
def test_a_drift_stop_is_in_the_manifest_and_the_model_is_kept(
    world: World, tmp_path: Path, limits: dict[str, float]
) -> None:
    made = job(tmp_path, world.records, world.init, drift=limits)
    meta = train.run(made).meta
    assert meta["stopped_by_drift"] is True
    assert meta["steps"] == 10 < meta["planned_steps"]
    assert load_model(made.site, "float32", "cpu").num_parameters() == meta["parameters"]


def test_continued_sft_is_cross_entropy_on_the_answers(world: World, tmp_path: Path) -> None:
    made = job(tmp_path, world.sequences, world.init, objective={"name": "cross_entropy"})
    meta = train.run(made).meta
    assert meta["guarantee"]["level"] == "exact"
    assert meta["agreement"] is None
    losses = [float(line["loss"] or 0) for line in read(made.site / "metrics.jsonl")]
    assert losses[-1] < losses[0]


def test_records_that_cannot_serve_are_refused_before_anything_is_loaded(
    world: World, tmp_path: Path
) -> None:
    missing = Input(str(tmp_path / "no-such-model"))
    with pytest.raises(ConfigError, match="cannot be trained"):
        train.run(job(tmp_path, world.sequences, missing, objective={"name": "forward_kl"}))


def test_a_student_of_another_tokenizer_is_refused(world: World, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", 2, letters=LETTERS[::-1])
    commit_model(other, identity(world.teacher))
    with pytest.raises(DataError, match="token ids would not match") as caught:
        train.run(job(tmp_path / "store", world.records, Input(str(other))))
    assert tokenizer_hash(other)[:12] in str(caught.value)
    assert tokenizer_hash(world.teacher)[:12] in str(caught.value)


def test_pi_ref_of_another_teacher_is_refused_unless_told_otherwise(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = write_model(tmp_path / "student", 2)
    stranger = write_model(tmp_path / "stranger", 7)
    commit_model(student, identity(stranger))
    init = Input(str(student))
    with pytest.raises(DataError, match="needs the same teacher"):
        train.run(job(tmp_path / "store", world.records, init))
    train.run(job(tmp_path / "store", world.records, init, steps=1, consistency="warn"))
    assert "needs the same teacher" in caplog.text


def test_a_student_that_did_not_write_the_data_is_not_compared(
    world: World, tmp_path: Path
) -> None:
    other = write_model(tmp_path / "other", 3)
    made = job(tmp_path / "store", world.records, Input(str(other)), steps=1)
    assert train.run(made).meta["agreement"] is None


def test_pi_ref_in_other_weights_than_the_engine_saw_is_found_out(
    world: World, tmp_path: Path
) -> None:
    """The engine ran at a temperature the records do not name."""
    hot = make_world(tmp_path, temperature=2.0)
    with pytest.raises(EngineError, match="sampling temperature"):
        train.run(job(tmp_path / "store", hot.records, hot.init))


def test_from_scratch_takes_shape_from_the_recipe_and_ids_from_the_data(
    world: World, tmp_path: Path
) -> None:
    made = job(
        tmp_path,
        world.records,
        None,
        init="scratch",
        steps=40,
        objective={"name": "forward_kl"},
        architecture={"hidden_size": 32, "layers": 1, "heads": 2},
    )
    manifest = train.run(made)
    losses = [float(line["loss"] or 0) for line in read(made.site / "metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0]
    assert load_model(made.site, "float32", "cpu").config.hidden_size == 32
    assert manifest.tokenizer is not None
    assert manifest.tokenizer["tokenizer"] == tokenizer_hash(world.teacher)


def test_from_scratch_without_a_shape_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="architecture"):
        train.run(job(tmp_path, world.records, None, init="scratch"))


def test_counts_serve_forward_kl(tmp_path: Path) -> None:
    record = Counts(draws=20)
    world = make_world(tmp_path / "world", record)
    made = job(tmp_path / "store", world.records, world.init, objective={"name": "forward_kl"})
    assert train.run(made).meta["guarantee"]["level"] == "unbiased"
    losses = [float(line["loss"] or 0) for line in read(made.site / "metrics.jsonl")]
    assert losses[-1] < 0.5 * losses[0]
