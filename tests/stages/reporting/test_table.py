"""The closing table: columns, the summary over seeds, and what the legend says."""

import math

import pytest

from stages.reporting.table import Row, format_table, legend, summarise, with_gain
from storage.errors import DataError
from tests.stages.reporting.cases import SFT, STUDENT


def test_text_columns_line_up() -> None:
    rows: list[Row] = [
        {"model": "a", "accuracy": 0.05},
        {"model": "longer-name", "accuracy": 1.0, "gain": 0.95},
    ]
    text = format_table(rows)
    header, first, second = text.splitlines()
    assert first.index("5.0") + 3 == header.index("sampled %") + len("sampled %")
    assert len(header) == len(second)


def test_markdown_has_as_many_cells_in_every_line() -> None:
    rows: list[Row] = [{"model": "a", **SFT}, {"model": "b", "greedy": 0.5}]
    counts = {line.count("|") for line in format_table(rows, "markdown").splitlines()}
    assert len(counts) == 1


def test_summary_over_seeds() -> None:
    runs: list[list[Row]] = [
        [{"model": "sft", **SFT}, {"model": "x", **STUDENT, "accuracy": accuracy}]
        for accuracy in (0.90, 0.94)
    ]
    runs = [with_gain(rows, "sft") for rows in runs]
    sft, student = summarise(runs)
    assert student["accuracy"] == pytest.approx(0.92)
    assert student["accuracy_sd"] == pytest.approx(math.sqrt(2) * 0.02)
    assert student["gain_sd"] == pytest.approx(student["accuracy_sd"])
    assert sft["accuracy_sd"] == 0.0
    assert student["seeds"] == 2
    assert student["reverse_kl_level"] == "unbiased"
    assert "accuracy_se" not in student
    assert "92.0 +- 2.8" in format_table([sft, student])
    assert "standard deviation over seeds" in legend([sft, student], "sft")[0]


def test_summary_of_one_seed_has_no_spread() -> None:
    (row,) = summarise([[{"model": "sft", **SFT}]])
    assert row["accuracy"] == 0.5
    assert not any(key.endswith("_sd") for key in row)


def test_summary_keeps_texts_only_where_seeds_agree() -> None:
    runs: list[list[Row]] = [
        [{"model": "x", "reverse_kl_level": level, "kind": "same"}]
        for level in ("unbiased", "biased")
    ]
    (row,) = summarise(runs)
    assert row["kind"] == "same"
    assert "reverse_kl_level" not in row


def test_summary_refuses_reports_of_other_recipes() -> None:
    with pytest.raises(DataError, match=r"different rows \(sft against sft, x\)"):
        summarise([[{"model": "sft"}], [{"model": "sft"}, {"model": "x"}]])


def test_legend_says_what_the_divergences_are() -> None:
    text = "\n".join(legend([{"model": "x", **SFT}], "sft"))
    assert "forward KL is unbiased, reverse KL is unbiased" in text
    assert "standard error over prompts" in text


def test_the_legend_says_what_the_acceptance_from_records_is() -> None:
    row: Row = {
        "model": "a", "record_acceptance": 0.5, "record_acceptance_se": 0.01,
        "record_acceptance_level": "upper_bound",
    }  # fmt: skip
    assert " ".join(format_table([row]).split()) == "model rec. accept % a 50.0 +- 1.0"
    (about,) = [line for line in legend([row], None) if "speculative" in line]
    assert about.endswith("from the records; upper bound")
