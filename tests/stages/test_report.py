"""The closing table: collected from real evaluate sets on disk, and summarised over seeds."""

import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest

from stages.config.evaluation import Report
from stages.evaluation.answers import ANSWERS, Answer, write_answers
from stages.job import Input, Job
from stages.report import at_most, run
from stages.reporting.table import (
    EVALUATION,
    format_table,
    legend,
    read_rows,
)
from storage.errors import DataError
from storage.schema import OUTCOME
from tests.stages.reporting.cases import SFT, STUDENT
from tests.world import make_job


def job(root: Path, evaluations: dict[str, dict[str, object]], **config: object) -> Job[Report]:
    """A report over evaluate sets written below `root`."""
    inputs = {}
    for name, content in evaluations.items():
        directory = root / f"evaluate-{name}"
        directory.mkdir(parents=True)
        (directory / EVALUATION).write_text(json.dumps(content))
        inputs[name] = Input(str(directory), key="0" * 64)
    return make_job(root, "report", Report.model_validate(config), inputs)


def evaluation(metrics: dict[str, object], **story: object) -> dict[str, object]:
    return {"metrics": metrics, "sampling": {"temperature": 1.0}, **story}


def test_every_evaluated_model_is_a_row(tmp_path: Path) -> None:
    promise = {"level": "unbiased", "reason": "exact on the head"}
    made = job(
        tmp_path,
        {"sft": evaluation(SFT), "reverse_kl": evaluation(STUDENT, guarantee=promise)},
    )
    manifest = run(made)
    assert manifest.kind == "metrics"
    names = {"report.txt", "report.md", "report.html", "rows.jsonl"}
    assert {file.path for file in manifest.files} == names

    table = (made.directory / "report.txt").read_text()
    lines = [line.split() for line in table.splitlines()]
    assert lines[0][:2] == ["model", "T=1"]
    assert [line[0] for line in lines[1:3]] == ["sft", "reverse_kl"]
    assert "50.0 +- 2.0" in table
    assert "+41.0" in table
    assert "0.2500 +- 0.0100" in table
    assert "pass@1" not in table  # the same number as the accuracy

    markdown = (made.directory / "report.md").read_text()
    assert "| reverse_kl |" in markdown
    assert "- `reverse_kl`: unbiased: exact on the head" in markdown

    rows = read_rows(made.directory)
    assert [row["model"] for row in rows] == ["sft", "reverse_kl"]
    assert rows[1]["gain"] == pytest.approx(0.41)
    assert "gain" not in rows[0]


def test_of_many_models_the_start_and_the_main_student_are_shown_token_by_token() -> None:
    names = ["sft", "a", "b", "c", "reverse_kl"]
    assert at_most(5, names) == names
    assert at_most(3, names) == ["sft", "c", "reverse_kl"]


def test_files_are_the_same_every_time(tmp_path: Path) -> None:
    made = job(tmp_path, {"sft": evaluation(SFT), "other": evaluation(STUDENT)})
    assert run(made) == run(made)


def test_without_sft_gains_are_measured_against_the_given_start(tmp_path: Path) -> None:
    made = job(tmp_path, {"reference": evaluation(SFT), "x": evaluation(STUDENT)})
    manifest = run(made)
    assert manifest.meta["baseline"] == "reference"
    reference, student = read_rows(made.directory)
    assert student["gain"] == pytest.approx(0.41)
    assert "gain" not in reference
    assert "gain over reference in points" in (made.directory / "report.txt").read_text()


def test_students_with_a_start_of_their_own_are_measured_from_it(tmp_path: Path) -> None:
    evaluations = {
        "sft": evaluation(SFT),
        "start": evaluation({"accuracy": 0.7}),
        "x": evaluation(STUDENT),
        "again": evaluation(STUDENT),
    }
    made = job(tmp_path, evaluations, baselines={"x": "start"})
    run(made)
    sft, start, student, again = read_rows(made.directory)
    assert student["gain"] == pytest.approx(0.21)
    assert again["gain"] == pytest.approx(0.41)
    assert "gain" not in sft
    assert "gain" not in start
    assert "gain over sft in points, of x over start" in (made.directory / "report.md").read_text()


def test_students_that_started_from_nothing_have_no_gain(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = job(tmp_path, {"teacher": evaluation(SFT), "x": evaluation(STUDENT)})
    with caplog.at_level(logging.WARNING):
        run(made)
    assert caplog.text == ""
    assert "gain" not in format_table(read_rows(made.directory))


def test_an_absent_baseline_leaves_gains_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluations = {"reference": evaluation(SFT), "x": evaluation(STUDENT)}
    made = job(tmp_path, evaluations, baseline="sft")
    with caplog.at_level(logging.WARNING):
        run(made)
    assert "no row `sft`" in caplog.text
    assert "gain" not in format_table(read_rows(made.directory))


def test_what_an_evaluation_lacks_is_a_dash(tmp_path: Path) -> None:
    bare = {"accuracy": 0.25, "ece": None, "reverse_kl": math.nan}
    made = job(tmp_path, {"sft": evaluation(SFT), "bare": evaluation(bare)})
    run(made)
    (line,) = [
        line
        for line in (made.directory / "report.txt").read_text().splitlines()
        if line.startswith("bare")
    ]
    assert line.split() == ["bare", "25.0", "-", "-25.0", *["-"] * 7]


@pytest.mark.parametrize("content", ["{", "[]", '{"metrics": 3}'])
def test_a_damaged_evaluation_is_named(tmp_path: Path, content: str) -> None:
    made = job(tmp_path, {"sft": evaluation(SFT)})
    broken = made.inputs["sft"].directory / EVALUATION
    broken.write_text(content)
    with pytest.raises(DataError, match=r"evaluate-sft/evaluation\.json.*Run `evaluate` again"):
        run(made)


def test_evaluations_and_reports_of_the_previous_version_are_read(tmp_path: Path) -> None:
    made = job(tmp_path, {"sft": evaluation(SFT)})
    evaluated = Path(made.inputs["sft"].path)
    (evaluated / EVALUATION).rename(evaluated / "metrics.json")
    run(made)
    rows = read_rows(made.directory)
    assert rows[0]["accuracy"] == 0.5
    (made.site / "rows.jsonl").rename(made.site / "metrics.jsonl")
    assert read_rows(made.directory) == rows


def test_reading_rows_of_no_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a report"):
        read_rows(tmp_path)


def test_a_table_of_text_has_no_word_on_accuracy(tmp_path: Path) -> None:
    figures: dict[str, object] = {
        "text_loss": 3.21,
        "text_loss_se": 0.02,
        "acceptance": 0.625,
        "bytes": 30.5,
    }
    gradient: dict[str, object] = {
        "gradient_angle": 12.34,
        "gradient_norm": 1.05,
        "record_bytes": 18.25,
    }
    made = job(tmp_path, {"plain": evaluation(figures), "drawn": evaluation(figures | gradient)})
    run(made)
    header, _, drawn = (made.directory / "report.txt").read_text().splitlines()[:3]
    assert " ".join(header.split()) == "model loss accept % angle norm B/pos record B"
    assert " ".join(drawn.split()) == "drawn 3.210 +- 0.020 62.5 12.3 1.05 30.5 18.2"
    about = "\n".join(legend(read_rows(made.directory), "sft"))
    assert "accuracy" not in about
    assert "1 - TVD" in about
    assert "bytes of the student's set per position" in about
    assert "ECE" not in about


def test_calibration_is_drawn_where_evaluations_kept_the_bins(tmp_path: Path) -> None:
    bins = [{"count": 10, "confidence": 0.9, "truth": 0.5}]
    kept = evaluation(STUDENT, calibration={"held-out rollouts": bins})
    made = job(tmp_path, {"sft": evaluation(SFT), "x": kept})
    run(made)
    page = (made.directory / "report.html").read_text()
    assert "confidence 0.900, teacher&#x27;s probability 0.500, 10 tokens" in page
    assert page.count("<h2>Calibration</h2>") == 1


def test_accuracy_by_difficulty_is_drawn_from_the_answers(tmp_path: Path) -> None:
    made = job(tmp_path, {"sft": evaluation(SFT), "x": evaluation(STUDENT)})
    right, wrong = OUTCOME["right"], OUTCOME["wrong"]
    for name, outcome in (("sft", wrong), ("x", right)):
        answers = [Answer(prompt, 0, False, 3, "stop", outcome, "") for prompt in range(4)]
        write_answers(made.inputs[name].directory / ANSWERS, answers)
    run(made)
    page = (made.directory / "report.html").read_text()
    assert "x, 25-50 % (4): 100 ± 0 (4 prompts)" in page
    assert "sft, 25-50 % (4): 0 ± 0 (4 prompts)" in page


def test_the_error_of_a_gain_is_that_of_the_differences_prompt_by_prompt(tmp_path: Path) -> None:
    made = job(tmp_path, {"sft": evaluation(SFT), "x": evaluation(STUDENT)})
    right, wrong = OUTCOME["right"], OUTCOME["wrong"]
    outcomes = {"sft": [right, wrong] * 50, "x": [right, wrong] * 49 + [right, right]}
    for name, given in outcomes.items():
        answers = [Answer(i, 0, False, 3, "stop", one, "") for i, one in enumerate(given)]
        write_answers(made.inputs[name].directory / ANSWERS, answers)
    run(made)
    _, student = read_rows(made.directory)
    assert student["gain_se"] == pytest.approx(0.01)  # one prompt of a hundred differs
    assert "+41.0 +- 1.0" in (made.directory / "report.txt").read_text()


def test_report_imports_no_torch() -> None:
    code = "import sys, stages.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
