"""What `plan` says before anything runs: columns, totals, and figures for programs."""

from pathlib import Path

import pytest

from pipeline.planning import nodes, plan
from pipeline.planning.config import load_recipe, recipe_names
from pipeline.planning.duration import Rates, Work
from pipeline.planning.estimate import Estimate, Estimator
from pipeline.planning.machine import GPU, Machine
from pipeline.show import WIDTH, plan_lines
from stages.models.shape import shape_of
from storage.store import Store
from tests.world import write_model

CPU = Machine("any", 2, 2, 16 << 30)
H100 = Machine("any", 2, 2, 16 << 30, gpus=(GPU("NVIDIA H100 80GB HBM3", 80 << 30),))


def estimates(store: Path, *overrides: str, machine: Machine = CPU) -> dict[str, Estimate]:
    made = nodes.build(load_recipe("demo", overrides=list(overrides)))
    planned = plan.resolve(made, Store(store))
    estimator = Estimator(planned, Store(store), machine)
    return {one.node.name: estimator.of(one) for one in planned}


@pytest.mark.parametrize("name", recipe_names())
def test_no_line_is_wider_than_a_terminal(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    planned = plan.resolve(nodes.build(load_recipe(name)), store)
    lines, figures = plan_lines(store, planned)
    assert max(map(len, lines)) <= WIDTH
    assert [one["node"] for one in figures] == [one.node.name for one in planned]
    assert any("for this machine: " in line for line in lines)


def test_every_node_with_a_model_has_memory_and_time(tmp_path: Path) -> None:
    found = estimates(tmp_path)
    for name, one in found.items():
        has = name not in ("corpus", "report")
        assert (one.memory is not None, one.duration is not None) == (has, has), name
        assert not one.duration or one.duration.basis == "rough"


def test_a_training_node_writes_its_model_and_two_checkpoints(tmp_path: Path) -> None:
    short, long = ("pretrain.base.steps=10", "sft.steps=10000")
    found = estimates(tmp_path, short, long)
    parameters = (found["pretrain.base"].model or 0) / 4
    assert found["pretrain.base"].checkpoints == 0
    assert found["sft"].checkpoints == 2 * 12 * parameters
    assert found["sft"].disk == 4 * parameters + 24 * parameters


def test_a_round_keeps_the_state_that_the_next_one_starts_with(tmp_path: Path) -> None:
    found = estimates(tmp_path, "train.rounds=2")
    first, last = found["train.reverse_kl"], found["train.reverse_kl-2"]
    assert first.next_round == 3 * (first.model or 0)
    assert last.next_round == 0
    assert first.disk == (last.disk or 0) + first.next_round
    store = Store(tmp_path)
    for overrides, said in (
        (
            (),
            "_kl: 2 rounds of 120 steps, one optimiser and one schedule over 240 steps",
        ),
        (("train.round_start=restart",), "an optimiser and a schedule of its own in each"),
        (("train.schedule=constant", "train.warmup=0.0"), "one learning rate over 240 steps"),
    ):
        recipe = load_recipe("demo", overrides=["train.rounds=2", *overrides])
        lines, _ = plan_lines(store, plan.resolve(nodes.build(recipe), store))
        assert said in lines[-1]


def test_more_steps_take_longer_and_a_gpu_is_faster(tmp_path: Path) -> None:
    def seconds(machine: Machine, *overrides: str) -> float:
        one = estimates(tmp_path, *overrides, machine=machine)["train.reverse_kl"].duration
        assert one is not None
        return one.seconds

    many = ("train.steps=100000", "pretrain.base.architecture.hidden_size=2048")
    few = ("train.steps=1000", "pretrain.base.architecture.hidden_size=2048")
    assert seconds(CPU, *many) > 50 * seconds(CPU, *few)
    assert seconds(H100, *many) < seconds(CPU, *many)


def test_epochs_are_counted_in_prompts(tmp_path: Path) -> None:
    found = estimates(tmp_path, "train.epochs=2.0", "train.batch_size=1")
    steps = estimates(tmp_path, "train.steps=20", "train.batch_size=1")
    assert found["train.reverse_kl"].duration != steps["train.reverse_kl"].duration
    assert found["train.reverse_kl"].checkpoints > 0


def test_unknown_models_are_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    planned = plan.resolve(nodes.build(load_recipe("qwen3-4b-math")), store)
    lines, figures = plan_lines(store, planned)
    assert any("Qwen/Qwen3-8B, Qwen/Qwen3-4B-Base not here yet" in line for line in lines)
    assert figures[0]["memory"] is None


def test_a_model_in_a_directory_is_known(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher", layers=2)
    shape = shape_of(teacher)
    assert shape is not None
    found = estimates(tmp_path / "store", f"teacher.path={teacher}", "teacher.dtype=float32")
    memory = found["teacher-logits"].memory
    assert memory is not None
    assert memory.surely == 4 * shape.parameters


def test_reading_costs_two_operations_a_weight(tmp_path: Path) -> None:
    made = nodes.build(load_recipe("demo"))
    planned = {one.node.name: one for one in plan.resolve(made, Store(tmp_path))}
    shape = shape_of(write_model(tmp_path / "m", layers=2, hidden_size=256))
    assert shape is not None
    rates = Rates(CPU)

    def seconds(tokens: int) -> float:
        work = Work(read=tokens)
        return rates.duration(planned["teacher-logits"], work, shape, "float32").seconds

    per_token = (seconds(2_000_000) - seconds(1_000_000)) / 1e6
    assert per_token == pytest.approx(2 * shape.multiplied / (2 * 20e9))


def test_a_pruned_model_has_the_size_of_its_layers(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher", layers=4)
    text = f"""
[teacher]
path = "{teacher}"
[derive.student]
prune = "teacher"
layers = [0, 3]
[student]
path = "derive:student"
dtype = "float32"
[rollouts]
prompts = {{ task = "addition", limit = 8 }}
sampling = {{ max_tokens = 8 }}
[train]
steps = 1
"""
    (tmp_path / "my.toml").write_text(text)
    store = Store(tmp_path / "store")
    planned = plan.resolve(nodes.build(load_recipe(None, [tmp_path / "my.toml"])), store)
    estimator = Estimator(planned, store, CPU)
    found = {one.node.name: estimator.of(one) for one in planned}
    half = shape_of(write_model(tmp_path / "half", layers=2))
    assert half is not None
    assert found["train.reverse_kl"].model == 4 * half.parameters
    assert found["derive.student"].memory is None
