"""metrics.jsonl across kills and resumes."""

import math
from pathlib import Path

from stages.training.metrics import Metrics, describe, read


def test_resuming_drops_lines_behind_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Metrics(path, 0) as metrics:
        for step in (10, 20, 30):
            metrics.write({"step": step, "loss": step / 10})
    with Metrics(path, 20) as metrics:
        assert metrics.last == {"step": 20, "loss": 2.0}
        metrics.write({"step": 30, "loss": 9.0})
    assert [line["loss"] for line in read(path)] == [1.0, 2.0, 9.0]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read(path) == [{"step": 1}]
    with Metrics(path, 2) as metrics:
        metrics.write({"step": 2, "loss": 0.5})
    assert read(path) == [{"step": 1}, {"step": 2, "loss": 0.5}]


def test_lines_are_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Metrics(path, 0) as metrics:
        metrics.write({"step": 1, "loss": math.nan, "rate": math.inf})
        assert metrics.last == {"step": 1, "loss": None, "rate": None}
    assert path.read_text() == '{"step": 1, "loss": null, "rate": null}\n'


def test_a_line_for_people() -> None:
    line = {"step": 3, "loss": 1.23456, "tokens_per_second": 61234.5, "waiting": 0.014}
    assert describe(line, 9) == "step 3/9, loss 1.235, 61,234 tok/s, 1% waiting"


def test_negative_estimates_say_what_they_are() -> None:
    line = {"step": 3, "loss": -0.002, "drift": -0.42}
    shown = describe(line, 9)
    assert "loss -0.002 (an estimate, which may be below 0)" in shown
    assert "drift -0.42 (an estimate, which may be below 0)" in shown
    assert "(" not in describe({"step": 3, "loss": 0.002, "drift": 0.42}, 9)


def test_one_figure_of_drift_is_shown() -> None:
    line = {"step": 3, "drift": 0.1, "drift_mean": 0.9, "drift_ess": 0.2, "drift_teacher": 1.6}
    assert describe(line, 9) == "step 3/9, drift 0.1"
