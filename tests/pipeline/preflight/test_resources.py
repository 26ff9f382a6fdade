"""Memory and disk: refused where it surely does not fit, with the sum and the next thing to try."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.planning import nodes, plan
from pipeline.planning.config import load_recipe
from pipeline.planning.machine import GPU, Machine
from pipeline.preflight.finding import Finding
from pipeline.preflight.resources import check_disk, check_memory
from pipeline.preflight.scope import Scope
from storage.errors import ConfigError
from storage.store import Store
from tests.command import Outcome, afterglow

# The layers of Qwen3-8B: seven billion weights
SHAPE = ("hidden_size=4096", "layers=36", "heads=32", "kv_heads=8", "intermediate_size=12288")
LARGE = [f"pretrain.teacher.architecture.{size}" for size in SHAPE]
LARGE += ["pretrain.teacher.dtype=bfloat16", "pretrain.teacher.architecture.max_positions=40960"]
NODE = Machine("any", 64, 64, 1 << 40, gpus=(GPU("NVIDIA H100 80GB HBM3", 80 << 30),) * 8)


def scope(store: Path, *overrides: str, target: str = "pretrain", elsewhere: bool = False) -> Scope:
    made = nodes.build(load_recipe("demo", overrides=list(overrides)))
    found = Store(store)
    planned = plan.resolve(nodes.select(made, [target]), found)
    return Scope(planned, found, elsewhere=elsewhere)


def of_teacher(found: list[Finding]) -> Finding:
    (one,) = [one for one in found if one.subject == "pretrain.teacher: memory"]
    return one


def cli(*arguments: str, store: Path) -> Outcome:
    large = [part for override in LARGE for part in ("--set", override)]
    more = ("--set", "pretrain.teacher.architecture.layers=400")  # no machine of ours has as much
    return afterglow(*arguments, "--recipe", "demo", *large, *more, store=store)


def test_a_model_that_cannot_fit_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    outcome = cli("run", "pretrain", store=tmp_path / "store")
    assert outcome.code == ConfigError.exit_code, outcome.err
    assert "pretrain.teacher: memory: needs at least" in outcome.err
    assert "gradients" in outcome.err
    assert "8 bytes x" in outcome.err
    assert "disk: not enough" in outcome.err
    assert not (tmp_path / "store").exists()


def test_what_a_scheduler_runs_elsewhere_is_not_refused(tmp_path: Path) -> None:
    outcome = cli("units", "pretrain", store=tmp_path / "store")
    assert outcome.code == 0, outcome.err
    assert "note: pretrain.teacher: memory: needs about" in outcome.err


def test_a_7b_model_on_one_80_gb_card_is_told_what_it_needs(tmp_path: Path) -> None:
    one = of_teacher(list(check_memory(scope(tmp_path, *LARGE), NODE)))
    assert one.level == "refused"
    assert "needs at least 103.5 GiB, a GPU with 80.0 GiB" in one.message
    assert "weights 25.9 GiB (4 bytes x 6.95 B weights)" in one.message
    assert "pretrain.teacher.run: processes = 2, gradient_checkpointing = true" in one.mend


def test_the_advice_fits(tmp_path: Path) -> None:
    run = ("processes=2", "gradient_checkpointing=true", "tokens_per_microbatch=2048")
    advised = [f"pretrain.teacher.run.{option}" for option in run]
    found = list(check_memory(scope(tmp_path, *LARGE, *advised), NODE))
    assert [one.level for one in found] == ["ok"]


def test_activations_that_may_not_fit_are_a_note_with_a_way_out(tmp_path: Path) -> None:
    larger = replace(NODE, gpus=(GPU("NVIDIA H200", 141 << 30),))
    one = of_teacher(list(check_memory(scope(tmp_path, *LARGE), larger)))
    assert one.level == "note"
    assert "activations" in one.message
    assert "Set pretrain.teacher.run: " in one.mend


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_fits_is_one_line(tmp_path: Path, elsewhere: bool) -> None:
    found = scope(tmp_path, target="report", elsewhere=elsewhere)
    memory, disk = *check_memory(found, NODE), *check_disk(found)
    assert (memory.level, memory.subject) == ("ok", "GPU memory")
    assert (disk.level, disk.subject) == ("ok", "disk")
