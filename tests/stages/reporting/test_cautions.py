"""What a report warns of, and what it keeps quiet about."""

from stages.reporting.cautions import cautions
from storage.manifest import Manifest
from tests.stages.reporting.cases import SFT, STUDENT


def manifest(name: str, **meta: object) -> Manifest:
    return Manifest(
        stage="train", version=1, key="0" * 64, name=name, kind="model", payload={}, meta=meta
    )


def test_a_healthy_report_says_nothing() -> None:
    rows = [{"model": "sft", **SFT}, {"model": "x", **STUDENT, "reverse_kl": 0.1, "gain": 0.41}]
    assert cautions(rows, {"x": "unbiased: on the head"}, [manifest("train.x")]) == []


def test_a_student_below_its_start_is_named_only_beyond_the_noise() -> None:
    def said(gain: float) -> list[str]:
        return cautions([{"model": "x", "gain": gain, "accuracy_se": 0.02}], {}, [])

    assert said(-0.03) == []
    assert "x: 5.0 points below" in said(-0.05)[0]


def test_a_divergence_that_is_mostly_noise_is_named() -> None:
    (line,) = cautions([{"model": "x", "reverse_kl": 1413.0, "reverse_kl_se": 1415.0}], {}, [])
    assert "reverse KL of 1.41e+03 has a standard error of 1.42e+03" in line
    tiny = [{"model": "x", "reverse_kl": 6e-6, "reverse_kl_se": 7e-6}]
    assert cautions(tiny, {}, []) == []  # nothing to compare by


def test_models_with_cut_answers_share_a_line() -> None:
    rows = [{"model": "a", "truncated": 0.5}, {"model": "b", "truncated": 0.05}]
    (line,) = cautions([*rows, {"model": "c", "truncated": 1.0}], {}, [])
    assert "a 50 %, c 100 %" in line
    assert "b" not in line.partition(":")[2].partition(".")[0]


def test_bias_drift_and_dropped_rows_are_named() -> None:
    sets = [
        manifest("train.x", stopped_by_drift=True, drifted=True),
        manifest("train.y", stopped_by_drift=False, drifted=True),
        manifest("rollouts", prompts={"rows": 100, "kept": 90, "over_long": 6, "duplicates": 4}),
        manifest("sft-data", prompts={"rows": 100, "kept": 99, "duplicates": 1}),
    ]
    found = cautions([], {"x": "biased: top k alone", "y": "lower_bound: one bucket"}, sets)
    assert len(found) == 4
    assert found[0].startswith("train.x: training stopped early")
    assert found[1].startswith("train.y: at the end the student no longer wrote")
    assert found[2].startswith("x: its objective is biased")
    assert found[3].startswith("rollouts: 10 of 100 rows")
