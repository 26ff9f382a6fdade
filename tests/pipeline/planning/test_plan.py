"""Nodes, edges and keys of a plan, and what the plan of a recipe at scale says offline."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.graph import BY_NAME
from pipeline.planning import plan
from pipeline.planning.config import load_recipe
from pipeline.planning.estimate import bytes_per_position
from pipeline.planning.nodes import build, select
from pipeline.planning.plan import Planned, resolve
from stages.config.evaluation import Report
from stages.config.record_kinds import HeadTail, Record, Sampled
from stages.config.records import TeacherLogits
from stages.data.verifiers import MATH_RULES_VERSION
from storage.errors import ConfigError
from storage.store import Store


def planned(tmp_path: Path, *overrides: str, recipe: str = "demo") -> dict[str, Planned]:
    nodes = build(load_recipe(recipe, overrides=list(overrides)))
    return {p.node.name: p for p in resolve(nodes, Store(tmp_path))}


def test_edges_agree_with_the_graph() -> None:
    for recipe in ("demo", "demo-live", "qwen3-4b-math"):
        for node in build(load_recipe(recipe)):
            for upstream in node.upstream():
                assert upstream.stage.name in BY_NAME[node.stage.name].needs, node.name


def test_keys_differ_between_nodes_and_not_between_calls(tmp_path: Path) -> None:
    first, second = planned(tmp_path), planned(tmp_path)
    keys = [p.key for p in first.values()]
    assert len(set(keys)) == len(keys)
    assert keys == [p.key for p in second.values()]


def test_a_target_selects_what_it_needs_in_order() -> None:
    nodes = build(load_recipe("demo"))
    chosen = [node.name for node in select(nodes, ["rollouts"])]
    assert chosen == [
        "corpus", "pretrain.teacher", "pretrain.base", "sft-data", "sft", "rollouts",
    ]  # fmt: skip
    only = [node.name for node in select(nodes, ["train.continued-sft"])]
    assert "teacher-logits" not in only


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ConfigError, match="`teach`: this recipe has no such stage; it has corpus"):
        select(build(load_recipe("demo")), ["teach"])


def test_the_live_student_reads_the_teacher_and_the_offline_one_does_not(tmp_path: Path) -> None:
    nodes = planned(tmp_path, recipe="demo-live")
    assert "teacher" in nodes["train.live"].inputs
    for name, chosen in nodes.items():
        if name.startswith("train.") and name != "train.live":
            assert "teacher" not in chosen.inputs


def test_adding_a_comparison_changes_no_other_student(tmp_path: Path) -> None:
    demo, live = planned(tmp_path), planned(tmp_path, recipe="demo-live")
    assert {name: p.key for name, p in live.items() if name in demo and name != "report"} == {
        name: p.key for name, p in demo.items() if name != "report"
    }


def test_the_recipe_at_scale_plans_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    nodes = planned(tmp_path, recipe="qwen3-4b-math")
    assert nodes["rollouts"].key is None
    assert {p.node.stage.name for p in nodes.values()} >= {"sft-data", "teacher-logits", "report"}


def test_a_set_from_elsewhere_must_be_committed(tmp_path: Path) -> None:
    recipe = load_recipe("demo", overrides=[f"train.data={tmp_path / 'nowhere'}"])
    with pytest.raises(ConfigError, match="nor the directory of a committed set"):
        build(recipe)


def test_scratch_needs_an_architecture() -> None:
    with pytest.raises(ConfigError, match=r"needs \[train.architecture\]"):
        build(load_recipe("demo", overrides=["train.init=scratch"]))


def test_smaller_tau_costs_more_bytes() -> None:
    small = bytes_per_position(HeadTail(tau=0.01), 3)
    large = bytes_per_position(HeadTail(tau=0.1), 3)
    sampled = bytes_per_position(Sampled(), 3)
    assert sampled < large < small


def test_more_entries_copies_and_columns_cost_more_bytes() -> None:
    for plain in ({"entries": 10.0}, {"kind": "counts"}, {"kind": "top_k", "k": 10}):
        size = bytes_per_position(Record.model_validate(plain), 3)
        own = {"copies": 2, "logp": True} if plain.get("kind") != "top_k" else {"k": 20}
        more = {"entries": 20.0} if "entries" in plain else {}
        for change in (own, more, {"loss_temperature": 2.0}):
            changed = Record.model_validate(plain | change)
            assert (bytes_per_position(changed, 3) > size) == bool(change)


def test_model_content_not_its_path_decides_the_key(tmp_path: Path) -> None:
    config = load_recipe("demo")
    assert config.teacher is not None
    teachers = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "config.json").write_text("{}")
        (folder / "tokenizer.json").write_text("{}")
        teacher = config.teacher.model_copy(update={"path": str(folder)})
        nodes = build(config.model_copy(update={"teacher": teacher}))
        teachers.append({p.node.name: p.key for p in resolve(nodes, Store(tmp_path))}["sft-data"])
    assert teachers[0] == teachers[1]
    (tmp_path / "b" / "model.safetensors").write_bytes(b"other weights")
    nodes = build(config.model_copy(update={"teacher": teacher}))
    changed = {p.node.name: p.key for p in resolve(nodes, Store(tmp_path))}["sft-data"]
    assert changed != teachers[0]


def test_a_node_without_key_gives_no_job(tmp_path: Path) -> None:
    chosen = replace(planned(tmp_path)["corpus"], key=None)
    with pytest.raises(ConfigError, match="corpus: its key is unknown"):
        chosen.job(Store(tmp_path))


SYSTEMATIC = "teacher-logits.compare.systematic.record.kind=counts"


def test_each_record_set_has_its_own_key_and_changes_no_other(tmp_path: Path) -> None:
    alone, more = planned(tmp_path), planned(tmp_path, SYSTEMATIC)
    assert set(more) - set(alone) == {"teacher-logits.systematic"}
    assert {name: p.key for name, p in more.items() if name in alone} == {
        name: p.key for name, p in alone.items()
    }
    main, other = more["teacher-logits"], more["teacher-logits.systematic"]
    assert main.key != other.key
    assert main.inputs == other.inputs


def test_a_student_reads_the_record_set_it_names(tmp_path: Path) -> None:
    student = ('train.compare.x.data="teacher-logits:systematic"',)
    nodes = planned(tmp_path, SYSTEMATIC, *student)
    assert nodes["train.x"].inputs["data"].key == nodes["teacher-logits.systematic"].key
    assert nodes["train.reverse_kl"].inputs["data"].key == nodes["teacher-logits"].key
    with pytest.raises(ConfigError, match=r"no \[teacher-logits.compare.systematic\] table"):
        planned(tmp_path, *student)


def test_a_stage_means_all_its_sets_unless_one_node_is_asked_for(tmp_path: Path) -> None:
    chosen = list(planned(tmp_path, SYSTEMATIC).values())

    def names(*targets: str, exact: bool) -> list[str]:
        return [p.node.name for p in plan.select(chosen, list(targets), exact=exact)]

    both = ["teacher-logits", "teacher-logits.systematic"]
    assert names("teacher-logits", exact=False) == both
    assert names("teacher-logits", exact=True) == ["teacher-logits"]
    assert names("teacher-logits.systematic", exact=True) == ["teacher-logits.systematic"]
    assert len(names("train", exact=True)) == len(names("train", exact=False)) == 3


SCRATCH = """
[teacher]
path = "pretrain:teacher"
[corpus]
text = ["{stdlib}/json/*.py"]
[pretrain.teacher]
steps = 3
[teacher-logits]
source = "corpus"
record = { kind = "counts" }
[teacher-logits.compare.fine]
record = { draws = 200 }
[train]
steps = 3
init = "scratch"
architecture = { hidden_size = 16 }
objective = { name = "forward_kl" }
[train.compare.fine]
data = "teacher-logits:fine"
[train.compare.full]
data = "live"
live = "full"
[evaluate]
text = { sequences = 8 }
records = false
record_bytes = true
gradient = { at = "full" }
"""


def scratch(tmp_path: Path, *overrides: str) -> dict[str, Planned]:
    file = tmp_path / "scratch.toml"
    file.write_text(SCRATCH)
    nodes = build(load_recipe(None, [file], list(overrides)))
    for node in nodes:
        for upstream in node.upstream():
            assert upstream.stage.name in BY_NAME[node.stage.name].needs, node.name
    return {p.node.name: p for p in resolve(nodes, Store(tmp_path))}


def test_students_from_scratch_need_no_student_model(tmp_path: Path) -> None:
    nodes = scratch(tmp_path)
    names = {name.partition(".")[2] for name in nodes if name.startswith("evaluate.")}
    assert names == {"teacher", "forward_kl", "fine", "full"}
    assert all("init" not in p.inputs for name, p in nodes.items() if name.startswith("train."))
    with pytest.raises(ConfigError, match=r"\[student\] is missing: \[train.compare.fine\]"):
        scratch(tmp_path, "train.compare.fine.init=sft")


def test_an_evaluation_reads_what_its_table_asks_for(tmp_path: Path) -> None:
    nodes = scratch(tmp_path)
    reads = {
        name: {role: p.inputs[role].key for role in p.inputs}
        for name, p in nodes.items()
        if name.startswith("evaluate.")
    }
    shared = {
        "text": nodes["corpus"].key,
        "teacher": nodes["pretrain.teacher"].key,
        "at": nodes["train.full"].key,
    }
    for name, sources in reads.items():
        assert {role: sources[role] for role in shared} == shared, name
        assert "records" not in sources
    assert reads["evaluate.fine"]["data"] == nodes["teacher-logits.fine"].key
    assert reads["evaluate.forward_kl"]["data"] == nodes["teacher-logits"].key
    assert "data" not in reads["evaluate.full"]
    assert "data" not in reads["evaluate.teacher"]


def test_gradients_are_compared_at_a_student_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`nobody`, which is no student; there are fine, full"):
        scratch(tmp_path, "evaluate.gradient.at=nobody")


CORRECTED = ("residualize.folds=5", "train.compare.two.data=residualize")


def test_a_corrected_set_is_made_where_the_recipe_asks_for_it(tmp_path: Path) -> None:
    alone, more = planned(tmp_path), planned(tmp_path, *CORRECTED)
    assert "residualize" not in alone
    assert set(more) - set(alone) >= {"residualize", "train.two"}
    assert more["residualize"].inputs["records"].key == more["teacher-logits"].key
    assert more["train.two"].inputs["data"].key == more["residualize"].key
    with pytest.raises(ConfigError, match=r"has no \[residualize\] table"):
        planned(tmp_path, CORRECTED[1])


def test_another_teacher_may_score_what_will_be_corrected_and_no_key_changes(
    tmp_path: Path,
) -> None:
    other = (SYSTEMATIC, 'residualize.source="teacher-logits:systematic"')
    alone, more = planned(tmp_path, SYSTEMATIC), planned(tmp_path, *other)
    assert {name: p.key for name, p in more.items() if name in alone} == {
        name: p.key for name, p in alone.items()
    }

    def consistency(nodes: dict[str, Planned], name: str) -> object:
        return getattr(nodes[name].node.config, "consistency", None)

    assert consistency(more, "teacher-logits.systematic") == "warn"
    assert consistency(more, "teacher-logits") == "refuse"
    assert consistency(alone, "teacher-logits.systematic") == "refuse"


@pytest.mark.parametrize(
    "change",
    [
        "residualize.folds=4",
        "residualize.token_share=0.4",
        "residualize.pseudo_count=10.0",
        "residualize.position_bins=4",
        "residualize.surprisal_bins=4",
        "teacher-logits.record.tau=0.05",
    ],
)
def test_each_parameter_and_the_source_decide_the_key_of_a_corrected_set(
    tmp_path: Path, change: str
) -> None:
    before, after = planned(tmp_path, *CORRECTED), planned(tmp_path, *CORRECTED, change)
    assert before["residualize"].key != after["residualize"].key
    assert before["train.two"].key != after["train.two"].key


def privileged(tmp_path: Path, *overrides: str, path: str = "a.jsonl") -> Planned:
    prompts = f'rollouts.prompts={{path="{tmp_path / path}", limit=3}}'
    return planned(tmp_path, prompts, *overrides)["teacher-logits"]


def test_a_teacher_prompt_is_made_from_the_prompts_of_the_sequences(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "1", "hint": "2"}\n')
    template = "teacher-logits.teacher_prompt.template="
    node = privileged(tmp_path, f"{template}{{prompt}} {{hint}}").node
    assert isinstance(node.config, TeacherLogits)
    assert node.config.teacher_prompt is not None
    assert node.config.teacher_prompt.prompts is not None
    assert node.config.teacher_prompt.prompts.path == str(tmp_path / "a.jsonl")
    with pytest.raises(
        ConfigError, match=r'source = "corpus" does not say .*teacher_prompt\.prompts'
    ):
        privileged(tmp_path, f"{template}{{prompt}}", "teacher-logits.source=corpus")


def test_template_by_value_and_prompts_by_content_are_in_the_key(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"prompt": "1", "hint": "2"}\n')
    template = "teacher-logits.teacher_prompt.template="
    one = f"{template}{{prompt}}{{hint}}"
    keys = [
        privileged(tmp_path).key,
        privileged(tmp_path, one).key,
        privileged(tmp_path, f"{template}{{hint}}{{prompt}}").key,
    ]
    assert len({*keys}) == 3
    assert privileged(tmp_path, one, path="b.jsonl").key == keys[1]
    # rows the student's prompts came from, given apart from them: the digest alone tells
    apart = f'teacher-logits.teacher_prompt.prompts={{path="{tmp_path / "b.jsonl"}", limit=3}}'
    assert privileged(tmp_path, one, apart).key == keys[1]
    (tmp_path / "b.jsonl").write_text('{"prompt": "1", "hint": "3"}\n')
    assert privileged(tmp_path, one, apart).key not in keys
    (tmp_path / "b.jsonl").unlink()
    assert privileged(tmp_path, one, apart).key is None


def test_an_upgrade_of_the_verifier_changes_what_it_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = "sft-data.verifier.kind=math_verify"
    before = planned(tmp_path, checked)
    newer = tmp_path / "site" / "math_verify-99.1.dist-info"
    newer.mkdir(parents=True)
    (newer / "METADATA").write_text("Metadata-Version: 2.1\nName: math-verify\nVersion: 99.1\n")
    monkeypatch.syspath_prepend(newer.parent)
    after = planned(tmp_path, checked)
    content = after["sft-data"].payload["content"]
    assert isinstance(content, dict)
    assert content["verifier"] == f"math-verify 99.1, rules {MATH_RULES_VERSION}"
    changed = {name for name in before if before[name].key != after[name].key}
    assert changed >= {"sft-data", "sft", "rollouts"}
    assert not changed & {"corpus", "pretrain.teacher", "pretrain.base"}


def starts(tmp_path: Path, *overrides: str) -> tuple[dict[str, Planned], Report]:
    """The demo with models of the user's own beside it, and the table its report is made with."""
    for name in ("mine", "other"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "tokenizer.json").write_text("{}")
    nodes = planned(tmp_path / "store", *overrides)
    report = nodes["report"].node.config
    assert isinstance(report, Report)
    return nodes, report


def test_a_start_of_their_own_is_evaluated_and_gains_are_measured_from_it(tmp_path: Path) -> None:
    nodes, report = starts(tmp_path, f"train.init={tmp_path}/mine")
    assert nodes["evaluate.start"].inputs["model"] == nodes["train.reverse_kl"].inputs["init"]
    assert "evaluate.sft" in nodes
    assert report.baseline == "start"
    assert report.baselines == {}
    assert starts(tmp_path)[1].baseline is None


def test_a_comparison_with_a_start_of_its_own_is_measured_from_that(tmp_path: Path) -> None:
    nodes, report = starts(tmp_path, f"train.compare.lightning.init={tmp_path}/other")
    assert nodes["evaluate.start-lightning"].inputs["model"].path == f"{tmp_path}/other"
    assert report.baseline is None
    assert report.baselines == {"lightning": "start-lightning"}
    both = (f"train.init={tmp_path}/mine", "train.compare.lightning.init=sft")
    nodes, report = starts(tmp_path, *both)
    assert "evaluate.start-lightning" not in nodes
    assert (report.baseline, report.baselines) == ("start", {"lightning": "sft"})


def test_a_model_that_has_a_row_gets_no_second(tmp_path: Path) -> None:
    nodes, report = starts(tmp_path, "train.compare.x.init=pretrain:teacher")
    assert not any(name.startswith("evaluate.start") for name in nodes)
    assert report.baselines == {"x": "teacher"}


def test_later_rounds_are_measured_from_the_start_of_the_first(tmp_path: Path) -> None:
    nodes, report = starts(tmp_path, f"train.init={tmp_path}/mine", "train.rounds=3")
    evaluated = {name for name in nodes if name.startswith("evaluate.")}
    assert evaluated >= {"evaluate.start", "evaluate.reverse_kl-3"}
    assert (report.baseline, report.baselines) == ("start", {})


def test_a_baseline_that_is_asked_for_stands(tmp_path: Path) -> None:
    _, report = starts(tmp_path, f"train.init={tmp_path}/mine", "report.baseline=sft")
    assert (report.baseline, report.baselines) == ("sft", {})


def test_no_student_may_be_called_like_the_row_of_a_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[train.compare.start\] has the name of a row"):
        starts(tmp_path, f"train.init={tmp_path}/mine", "train.compare.start.learning_rate=0.1")
