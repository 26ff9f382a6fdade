"""The make targets: which commands they stand for, and in which order."""

import os
import subprocess

import pytest

from pipeline.graph import STAGES
from tests.command import ROOT

# What an outer make hands down when `make test` runs this file.
OUTER_MAKE = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL"}


def make(*arguments: str) -> list[str]:
    """The lines that make prints, as in a user's shell."""
    environment = {name: value for name, value in os.environ.items() if name not in OUTER_MAKE}
    done = subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.splitlines()


def commands(*arguments: str) -> list[str]:
    """What make would run, without the set-up of the environment; nothing is run."""
    lines = [line for line in make("-n", *arguments) if "setup_env.py" not in line]
    return [line.removeprefix(".venv/bin/") for line in lines]


@pytest.mark.parametrize("stage", [stage.name for stage in STAGES if stage.name != "train"])
def test_every_stage_is_a_target(stage: str) -> None:
    assert commands(stage) == [f"afterglow run {stage} --recipe demo "]


def test_stages_run_in_the_order_given_even_with_parallel_jobs() -> None:
    assert commands("-j4", "rollouts", "teacher-logits", "train") == [
        "afterglow run rollouts --recipe demo ",
        "afterglow run teacher-logits --recipe demo ",
        "afterglow run train report --recipe demo ",
    ]


def test_own_recipes_and_arguments_are_passed_on() -> None:
    assert commands("sft", "CONFIG=a.toml b.toml", "ARGS=--set seed=3") == [
        "afterglow run sft --config a.toml --config b.toml --set seed=3"
    ]
    assert commands("train", "METHOD=tip jsd") == [
        "afterglow run train report --recipe demo --method tip --method jsd "
    ]
    assert commands("status", "RECIPE=qwen3-4b-math") == [
        "afterglow status --recipe qwen3-4b-math "
    ]


def test_the_environment_comes_first() -> None:
    first, second = make("-n", "train", "PYTHON=python3.12", "VENV=elsewhere", "DEVICE=cuda")
    assert first == 'python3.12 tools/setup_env.py --venv "elsewhere" --device cuda'
    assert second.startswith("elsewhere/bin/afterglow run train report")


def test_a_recipe_brings_the_packages_that_it_needs() -> None:
    first, second = make("-n", "rollouts", "RECIPE=smollm2")
    assert first.endswith("--device auto --also smollm2")
    assert second == ".venv/bin/afterglow run rollouts --recipe smollm2 "
    assert make("-n", "rollouts", "RECIPE=draft")[0].endswith("--also smollm2")
    assert "--also" not in make("-n", "rollouts", "RECIPE=demo")[0]
    assert "--also" not in make("-n", "rollouts", "CONFIG=my.toml", "RECIPE=smollm2")[0]


def test_benchmarks_bring_their_peers() -> None:
    lines = make("-n", "bench", "ARGS=--quick")
    assert lines[-3].endswith("--also smollm2")
    assert lines[-2].endswith("--also bench")
    assert lines[-1] == ".venv/bin/python -m benchmarks --quick"


def test_the_comparison_of_records_has_a_form_with_a_real_model() -> None:
    assert commands("repro-rskd") == ["afterglow seeds --count 3 --recipe repro-rskd "]
    first, second = make("-n", "repro-rskd", "RECIPE=repro-rskd-smollm2", "SEEDS=1")
    assert first.endswith("--also smollm2")
    assert second == ".venv/bin/afterglow seeds --count 1 --recipe repro-rskd-smollm2 "


def test_seeds_are_passed_on() -> None:
    assert commands("demo", "SEEDS=2") == ["afterglow seeds --count 2 --recipe demo "]
    assert commands("live", "SEEDS=5") == ["python -m benchmarks.live --seeds 5 "]
    assert commands("repro-lightning", "SEEDS=5") == ["python -m benchmarks.lightning --seeds 5 "]


def test_help_lists_every_target() -> None:
    described = {line.split()[0] for line in make("help") if line.startswith("  ")}
    phony = next(
        line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY:")
    )
    targets = set(phony.split()[1:]) - {"$(STAGES)", "help"}
    assert targets | {stage.name for stage in STAGES} <= described
