"""Several rounds of rollouts, scoring and training: nodes, order, keys, and what is refused."""

from pathlib import Path

import pytest

from pipeline.planning.config import load_recipe
from pipeline.planning.node import Node
from pipeline.planning.nodes import build, select
from pipeline.planning.plan import resolve
from stages.config.generation import Rollouts
from stages.config.records import TeacherLogits
from storage.errors import ConfigError
from storage.store import Store

THREE = "train.rounds=3"


def nodes(*overrides: str, recipe: str = "demo") -> dict[str, Node]:
    return {n.name: n for n in build(load_recipe(recipe, overrides=list(overrides)))}


def keys(store: Path, *overrides: str) -> dict[str, str | None]:
    planned = resolve(list(nodes(*overrides).values()), Store(store))
    return {p.node.name: p.key for p in planned}


def reads(node: Node) -> set[str]:
    return {upstream.name for upstream in node.upstream()}


def test_every_round_starts_from_the_student_of_the_one_before() -> None:
    made = nodes(THREE)
    assert reads(made["rollouts.reverse_kl-2"]) == {"train.reverse_kl"}
    assert reads(made["teacher-logits.reverse_kl-2"]) == {
        "pretrain.teacher", "rollouts.reverse_kl-2",
    }  # fmt: skip
    assert reads(made["train.reverse_kl-2"]) == {"train.reverse_kl", "teacher-logits.reverse_kl-2"}
    assert reads(made["rollouts.reverse_kl-3"]) == {"train.reverse_kl-2"}
    assert "train.lightning-2" not in made
    assert "evaluate.reverse_kl-3" in made


def test_nodes_come_after_what_they_read() -> None:
    made = nodes(THREE, "train.compare.lightning.rounds=2")
    chosen = select(list(made.values()), ["report"])
    before: set[str] = set()
    for node in chosen:
        assert reads(node) <= before, node.name
        before.add(node.name)
    assert chosen[-1].name == "report"


def test_prompts_and_seeds_of_rounds_are_fresh() -> None:
    made = nodes(THREE, "seed=1")
    rounds = [made[f"rollouts{suffix}"] for suffix in ("", ".reverse_kl-2", ".reverse_kl-3")]
    tables = [node.config for node in rounds]
    assert all(isinstance(table, Rollouts) for table in tables)
    firsts = [table.prompts.first for table in tables if isinstance(table, Rollouts)]
    assert firsts == [600_000, 607_808, 615_616]
    others = {node.seed for node in nodes(THREE, "seed=2").values()}
    assert len({node.seed for node in rounds}) == 3
    assert not others & {node.seed for node in rounds}
    assert [t.holdout for t in tables if isinstance(t, Rollouts)] == [0.0164, 0.0, 0.0]


def changed(fewer: dict[str, str | None], more: dict[str, str | None]) -> set[str]:
    """Names of nodes whose keys differ, the report and rows of students left out."""
    left_out = ("report", "evaluate")
    return {n for n, key in fewer.items() if more[n] != key and n.partition(".")[0] not in left_out}


def test_another_round_changes_none_before_it_where_each_starts_afresh(tmp_path: Path) -> None:
    one, two, three = (
        keys(tmp_path, f"train.rounds={number}", "train.round_start=restart")
        for number in (1, 2, 3)
    )
    assert one == keys(tmp_path)
    assert not changed(one, two)
    assert not changed(two, three)


LEVEL = ("train.schedule=constant", "train.warmup=0.0")


def test_another_round_at_a_constant_rate_changes_none_before_it(tmp_path: Path) -> None:
    """A lone student keeps no optimiser state, so it cannot be the first of several."""
    one, two, three = (keys(tmp_path, f"train.rounds={n}", *LEVEL) for n in (1, 2, 3))
    assert changed(one, two) == {"train.reverse_kl"}
    assert not changed(two, three)


@pytest.mark.parametrize(
    "changes",
    [
        ("train.schedule=cosine",),
        (*LEVEL, "train.warmup=0.1"),
        (*LEVEL, "train.objective={name='taid'}"),
        (
            *LEVEL,
            "train.objective={name='mixture',terms=[{name='jsd',weight=[[0.0,1.0],[1.0,0.1]]}]}",
        ),
    ],
)
def test_another_round_changes_students_of_a_schedule_over_all_rounds(
    tmp_path: Path, changes: tuple[str, ...]
) -> None:
    two, three = keys(tmp_path, "train.rounds=2", *changes), keys(tmp_path, THREE, *changes)
    again = changed(two, three)
    assert any(name.startswith("train.") and name.endswith("-2") for name in again)
    assert {name for name in again if not name.endswith("-2")} == {
        name.removesuffix("-2") for name in again if name.startswith("train.")
    }
    assert "rollouts" not in again
    assert "teacher-logits" not in again


def test_a_teacher_prompt_reads_the_prompts_of_its_round() -> None:
    template = "teacher-logits.teacher_prompt.template={prompt} {answer}"
    scored = nodes(THREE, template)["teacher-logits.reverse_kl-2"].config
    assert isinstance(scored, TeacherLogits)
    assert scored.teacher_prompt is not None
    assert scored.teacher_prompt.prompts is not None
    assert scored.teacher_prompt.prompts.first == 607_808


def test_rounds_need_records_made_here() -> None:
    with pytest.raises(ConfigError, match=r'rounds = 2.*not "live"'):
        load_recipe("demo", overrides=["train.rounds=2", "train.data=live"])
    with pytest.raises(ConfigError, match=r'needs records of rollouts, but .* reads "sft-data"'):
        nodes("train.rounds=2", "teacher-logits.source=sft-data")


def test_a_table_named_like_a_round_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"round 2 of .train. and .train.compare.reverse_kl-2. are both called"
    ):
        nodes("train.rounds=2", "train.compare.reverse_kl-2.objective.name=lightning")
