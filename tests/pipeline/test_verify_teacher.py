"""`afterglow verify --teacher` in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.config.record_kinds import Sampled
from tests.command import ROOT, Outcome
from tests.stages.attribution.cases import answers, perturbed, records, train_teacher


def verify(*arguments: str | Path) -> Outcome:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "verify", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def sets(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Answers of the teacher, and its records of them."""
    root = tmp_path_factory.mktemp("sets")
    drawn = answers(root, teacher, 200)
    return [drawn, records(drawn, root / "records", teacher, Sampled())]


def test_the_teacher_is_behind_both_sets(teacher: Path, sets: list[Path]) -> None:
    done = verify("--teacher", teacher, *sets, "--tokens", "3000")
    assert done.code == 0, done.err
    drawn, scored = done.result["findings"]
    assert (drawn["kind"], drawn["verdict"]) == ("sequences", "consistent")
    assert abs(drawn["z"]) < 4
    assert drawn["p_mean"] > 1e-4
    assert 3000 <= drawn["tokens"] < 5000
    assert (scored["kind"], scored["verdict"]) == ("records", "consistent")
    for directory in sets:
        assert f"{directory}: consistent" in done.out


def test_another_model_is_not(teacher: Path, sets: list[Path], tmp_path: Path) -> None:
    other = perturbed(teacher, tmp_path / "other", 0.2)
    done = verify("--teacher", other, *sets)
    assert done.code == 65
    assert [finding["verdict"] for finding in done.result["findings"]] == ["rejected"] * 2
    assert f"{other} did not make {sets[0]}" in done.err
    json.loads(done.out.strip().splitlines()[-1])


def test_another_temperature_is_not(teacher: Path, sets: list[Path]) -> None:
    done = verify("--teacher", teacher, sets[0], "--temperature", "0.6", "--level", "0.001")
    assert done.code == 65
    (found,) = done.result["findings"]
    assert (found["sampling"]["temperature"], found["level"]) == (0.6, 0.001)
    assert "mean of log p + H is not zero" in found["reasons"]
