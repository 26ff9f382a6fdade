"""Every benchmark runs at toy size and says what it has to say."""

import importlib
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import BENCHMARKS, machine, page, raw_lines
from benchmarks.harness import Options, Report

WITHOUT_A_LINE = {"containers", "error_by_size"}
WITH_AN_ENGINE = {"vllm_scoring", "drawing"}
"""Run by themselves: a minute long, and a process holds one vLLM engine."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", [n for n in BENCHMARKS if n not in WITH_AN_ENGINE])
def test_runs_at_toy_size(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    report: Report = module.run(Options(quick=True, rounds=1, store=tmp_path))
    assert bool(report.lines) == (name not in WITHOUT_A_LINE)
    assert report.lines or report.tables
    for line in report.lines:
        assert line.ours > 0
        assert line.peer > 0
        assert line.goals
    text = page({name: report}, {name: 1.0}, machine(0.0, 60.0))
    assert report.title in text
    assert all(line.what in text for line in report.lines)
    assert raw_lines({name: Report.from_json(report.to_json())})


def test_every_module_is_run() -> None:
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    runnable = {path.stem for path in folder.glob("*.py") if "\ndef run(" in path.read_text()}
    assert runnable == set(BENCHMARKS)
