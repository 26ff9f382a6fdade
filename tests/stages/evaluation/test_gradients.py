"""Gradients from records against the whole one: exact, noisy and biased records told apart."""

from pathlib import Path

import pytest
import torch

from stages.config.record_kinds import Counts, HeadTail, Record, TopK
from stages.evaluation.gradients import Measured, compare_gradients
from stages.losses.full_teacher import FullTeacher
from stages.models.model import load_model
from stages.objectives.objective import Objective
from stages.objectives.temper import build_objective
from tests.stages.evaluation.cases import LENGTH, scored
from tests.world import VOCABULARY, write_model

SIZE = 32


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    root = tmp_path_factory.mktemp("models")
    return Measured(
        model=load_model(write_model(root / "student", 2), "float32", "cpu"),
        teacher=FullTeacher.load(write_model(root / "teacher", 1), "float32", torch.device("cpu")),
        batch_size=SIZE,
        batches=3,
        tokens_per_batch=100,
    )


def compare(
    setting: Measured, where: Path, record: Record, objective: str = "forward_kl"
) -> tuple[float, float]:
    teacher = Path(str(setting.teacher.model.name_or_path))
    directory = where if where.exists() else scored(where, teacher, record)
    function = build_objective(Objective.model_validate({"name": objective}))
    found = compare_gradients(setting, directory, function, seed=0)
    assert found["gradient_positions"] == SIZE * LENGTH
    return float(str(found["gradient_angle"])), float(str(found["gradient_norm"]))


def test_records_that_hold_everything_give_the_whole_gradient(
    setting: Measured, tmp_path: Path
) -> None:
    """All twelve ids are candidates, so all of them are stored exactly, up to float16."""
    before = [weight.clone() for weight in setting.model.parameters()]
    angle, norm = compare(setting, tmp_path / "all", HeadTail(candidates=VOCABULARY))
    assert angle < 0.2
    assert norm == pytest.approx(1.0, abs=1e-3)
    after = list(setting.model.parameters())
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert all(weight.grad is None for weight in after)


def test_noise_shrinks_with_draws_and_bias_stays(setting: Measured, tmp_path: Path) -> None:
    few, _ = compare(setting, tmp_path / "few", Counts(draws=2))
    many, norm = compare(setting, tmp_path / "many", Counts(draws=200))
    biased, _ = compare(setting, tmp_path / "top", TopK(k=1))
    assert many < 0.5 * few
    assert biased > 3 * many
    assert norm == pytest.approx(1.0, abs=0.02)
    tokens, _ = compare(setting, tmp_path / "many", HeadTail(), "cross_entropy")
    assert tokens > few  # the realised tokens are random here, they know nothing of the teacher
