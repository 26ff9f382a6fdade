"""Weights in the `train` stage: on two processes over gloo as on one, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stages import train
from stages.config.training import Student
from stages.job import Input, Job
from stages.training.metrics import read
from storage.errors import ConfigError, DataError
from tests.stages.training.distributed_child import job, run_all
from tests.stages.weights.cases import graded_world
from tests.world import World, make_job, weights

ALL = {
    "weights": [
        {"name": "random", "keep": 0.8},
        {"name": "entropy", "keep": 0.6},
        {"name": "pass_rate"},
        {"name": "prefix", "cap": 1.2},
        {"name": "tip", "keep": 0.7},
    ],
    "objective": {"name": "lightning"},
    "steps": 4,
    "batch_size": 24,
}
ONE_PASS = {**ALL, "run": {"tokens_per_microbatch": 4096}}
"""The selection is made from the hidden states of the training pass itself."""
EMPTY = {"weights": [{"name": "entropy", "keep": 0.5}], "batch_size": 2, "steps": 3}
"""Of three processes, one has no sequence."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return graded_world(tmp_path_factory.mktemp("world"))


@pytest.mark.timeout(600)
def test_processes_do_not_change_a_weighted_run(world: World, tmp_path: Path) -> None:
    """Several micro-batches a process, one, none; killed and resumed to the same bits."""
    listed: list[tuple[str, int, dict[str, Any]]] = [
        ("cut-1", 1, {"settings": ALL}),
        ("cut-2", 2, {"settings": ALL}),
        ("rough-2", 2, {"settings": ALL, "die": [1, 4]}),
        ("rough-2", 2, {"settings": ALL}),
        ("whole-2", 2, {"settings": ONE_PASS}),
        ("empty-1", 1, {"settings": EMPTY}),
        ("empty-3", 3, {"settings": EMPTY}),
        ("single-3", 3, {"settings": {**EMPTY, "run": {"tokens_per_microbatch": 4096}}}),
    ]
    runs = [{"store": str(tmp_path / name), "processes": n, **more} for name, n, more in listed]
    ended = run_all(world, runs)
    codes = [one.codes for one in ended]
    assert codes[2] == [75, -9]
    assert all(not any(found) for found in codes[:2] + codes[3:]), [one.says for one in ended]

    def made(name: str) -> Path:
        more = next(more for known, _, more in listed if known == name)
        return job(world, tmp_path / name, **more["settings"]).site

    def assert_alike(a: str, b: str, atol: float) -> None:
        ours, theirs = weights(made(a)), weights(made(b))
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=atol)
        for mine, other in zip(*(read(made(x) / "metrics.jsonl") for x in (a, b)), strict=True):
            assert mine["kept"] == pytest.approx(other["kept"])
            assert mine["loss"] == pytest.approx(other["loss"], rel=2e-5)

    assert_alike("cut-2", "cut-1", 3e-6)
    assert_alike("whole-2", "cut-1", 3e-6)
    assert_alike("rough-2", "cut-2", 0.0)
    assert_alike("empty-3", "empty-1", 3e-6)
    assert_alike("single-3", "empty-1", 3e-6)


def student_job(world: World, store: Path, **settings: Any) -> Job[Student]:
    config = Student.model_validate({"steps": 2, "batch_size": 16, **settings})
    inputs = {"init": world.init, "data": world.records}
    if config.data == "live":
        inputs = {
            "init": world.init,
            "records": world.records,
            "teacher": Input(str(world.teacher)),
        }
    return make_job(store, "train", config, inputs)


def test_the_manifest_tells_weights_and_what_they_leave(world: World, tmp_path: Path) -> None:
    found = train.run(student_job(world, tmp_path, weights=[{"name": "pass_rate", "b": 2.0}])).meta
    assert found["weights"] == [{"name": "pass_rate", "a": 1.0, "b": 2.0}]
    assert found["normalise"] == "weights"
    assert found["guarantee"]["level"] == "biased"
    assert 0 < found["last"]["kept"] < 1


@pytest.mark.parametrize("live", ["record", "full"])
def test_weights_work_with_a_live_teacher(world: World, tmp_path: Path, live: str) -> None:
    settings = {"weights": [{"name": "entropy", "keep": 0.25}], "objective": {"name": "forward_kl"}}
    made = student_job(world, tmp_path, data="live", live=live, **settings)
    found = train.run(made).meta
    assert found["last"]["kept"] == pytest.approx(0.25, abs=0.02)
    assert "weighted by" in found["guarantee"]["reason"]


ROUTED = {"name": "mixture", "terms": [{"name": "lightning", "on": "wrong"}, {"name": "jsd"}]}


def test_routed_terms_train(world: World, tmp_path: Path) -> None:
    found = train.run(student_job(world, tmp_path, objective=ROUTED)).meta
    assert found["last"]["lightning"] > 0
    assert "another objective" in found["guarantee"]["reason"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": [{"name": "pass_rate"}]}, "weight `pass_rate`: reads whether a response is"),
        ({"objective": ROUTED}, "term `lightning` by `on`: reads whether a response is right"),
    ],
)
def test_a_set_without_outcomes_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    ungraded = graded_world(tmp_path / "world", outcomes=False)
    monkeypatch.setattr("stages.train.load_model", None)
    with pytest.raises(ConfigError, match=message):
        train.run(student_job(ungraded, tmp_path, **settings))
    with pytest.raises(ConfigError, match="fresh responses"):
        train.run(student_job(ungraded, tmp_path, data="live", **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": [{"name": "tip"}], "data": "live", "live": "full"}, "`tip` reads the"),
        ({"objective": {"name": "redi"}}, "objective `redi`: reads whether a response is right"),
    ],
)
def test_what_a_set_does_not_hold_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    ungraded = graded_world(tmp_path / "world", outcomes=False)
    monkeypatch.setattr("stages.train.load_model", None)
    settings = {"objective": {"name": "forward_kl"}, **settings}
    with pytest.raises(ConfigError, match=message):
        train.run(student_job(ungraded, tmp_path, **settings))


def test_redi_trains_on_outcomes(world: World, tmp_path: Path) -> None:
    settings = {"objective": {"name": "redi"}, "weights": [{"name": "length"}]}
    found = train.run(student_job(world, tmp_path, **settings)).meta
    assert found["last"]["right"] > 0 > found["last"]["wrong"]
    assert found["guarantee"]["level"] == "exact"
    assert "another objective" in found["guarantee"]["reason"]


def test_one_response_a_prompt_is_refused(tmp_path: Path) -> None:
    single = graded_world(tmp_path / "world", samples=1)
    with pytest.raises(DataError, match="every prompt has one response"):
        train.run(student_job(single, tmp_path, weights=[{"name": "pass_rate"}]))
