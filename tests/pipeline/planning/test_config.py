"""Recipes: layers, overrides, and what a wrong one says."""

from pathlib import Path

import pytest

from pipeline.ledger import to_toml
from pipeline.planning.config import load_recipe, recipe_names
from pipeline.planning.nodes import build
from stages.config.records import TeacherLogits
from storage.errors import ConfigError

OWN = """
[teacher]
path = "some/teacher"
[student]
path = "some/student"
[train]
steps = 10
data = "records"
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_loads_and_names_itself(name: str) -> None:
    assert load_recipe(name).name == name


def test_layers_and_overrides_apply_in_order(tmp_path: Path) -> None:
    first = write(tmp_path / "a.toml", OWN + "learning_rate = 1e-3\nbatch_size = 2\n")
    second = write(tmp_path / "b.toml", "[train]\nbatch_size = 4\n")
    recipe = load_recipe(None, [first, second], ["train.learning_rate=2e-6"])
    assert recipe.train.learning_rate == 2e-6
    assert recipe.train.batch_size == 4
    assert recipe.train.steps == 10


def test_a_file_can_extend_a_packaged_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(None, [write(tmp_path / "a.toml", 'extends = "demo"\nseed = 7\n')])
    assert recipe.seed == 7
    assert recipe.corpus is not None


def test_epochs_replace_steps_across_layers() -> None:
    recipe = load_recipe("demo", overrides=["train.epochs=2.0"])
    assert (recipe.train.steps, recipe.train.epochs) == (None, 2.0)


def test_a_comparison_table_overrides_the_main_record_set() -> None:
    overrides = ["consistency=warn", "record.tau=0.1", "compare.fine.record.tau=0.01"]
    recipe = load_recipe("demo", overrides=[f"teacher-logits.{text}" for text in overrides])
    sets = recipe.teacher_logits.variants()
    assert list(sets) == ["", "fine"]
    assert (sets[""].record.tau, sets["fine"].record.tau) == (0.1, 0.01)
    assert sets["fine"].consistency == "warn"


def test_another_source_replaces_the_table_that_named_the_old_one() -> None:
    recipe = load_recipe("demo", overrides=["rollouts.prompts.path=mine.jsonl"])
    assert recipe.rollouts is not None
    assert recipe.rollouts.prompts.model_dump(exclude_defaults=True) == {"path": "mine.jsonl"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollouts.sampling.temprature=0.5", r"rollouts\.sampling\.temprature: Extra inputs"),
        ("train.learning_rate=-1", r"train\.learning_rate: Input should be greater than 0"),
        ("teacher-logits.record.tau=0", r"teacher-logits\.record\.tau"),
        ("teacher-logits.record.candidates=9", "raise rollouts.candidates"),
        (
            "rollouts.candidates=65",
            r"rollouts\.candidates: Input should be less than or equal to 64",
        ),
        ("rollouts.candidates.mass=2", r"rollouts\.candidates\.mass: Input should be less than"),
        ("rollouts.candidates={at_most=9}", r"rollouts\.candidates\.mass: Field required"),
        ("teacher-logits.record.candidates.mass=0.9", r"is 0\.9, but rollouts keep 4 per position"),
        ("teacher.path=pretrain:nobody", r"no \[pretrain.nobody\] table"),
        ("train.compare.x.init=pretrain:nobody", r"no \[pretrain.nobody\] table"),
        ('rollouts.prompts={path="x", task="addition", limit=1}', "exactly one of `path`"),
        ("train.epochs", "written table.field=value"),
        ("train.compare.x.objective.name=best", "objective.name"),
        ("teacher-logits.compare.x.record.kind=best", "record.kind is `best`; it must be one of"),
        ("teacher-logits.compare.x.record.candidates=9", r"compare\.x\]: record\.candidates is 9"),
        ('teacher-logits.compare={"a.b"={}}', "letters, digits"),
    ],
)
def test_wrong_fields_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(load_recipe("demo", overrides=[override]))
    assert caught.value.exit_code == 78


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read"):
        load_recipe(None, [tmp_path / "nowhere.toml"])
    with pytest.raises(ConfigError, match=r"a\.toml: not TOML"):
        load_recipe(None, [write(tmp_path / "a.toml", "x = = 1")])
    with pytest.raises(ConfigError, match=r"there are: .*demo"):
        load_recipe("no-such-recipe")


@pytest.mark.parametrize("name", recipe_names())
def test_resolved_toml_reads_back_to_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    again = load_recipe(None, [write(tmp_path / "resolved.toml", to_toml(recipe))])
    assert again == recipe


LIGHTNING = "objective.name=lightning"


@pytest.mark.parametrize(
    ("overrides", "tables"),
    [
        ([f"train.compare.sft.{LIGHTNING}"], ("[train.compare.sft]", "[sft]")),
        ([f"train.compare.teacher.{LIGHTNING}"], ("[train.compare.teacher]", "[teacher]")),
        (["train.compare.reverse_kl.epochs=1.0"], ("[train]", "[train.compare.reverse_kl]")),
        ([f"train.{LIGHTNING}"], ("[train]", "[train.compare.lightning]")),
        (
            ["train.rounds=2", f"train.compare.reverse_kl-2.{LIGHTNING}"],
            ("round 2 of [train]", "[train.compare.reverse_kl-2]"),
        ),
        (
            ["train.compare.x.rounds=2", f"train.compare.x-2.{LIGHTNING}"],
            ("round 2 of [train.compare.x]", "[train.compare.x-2]"),
        ),
        (
            ["train.rounds=2", "teacher-logits.compare.reverse_kl-2.record.tau=0.1"],
            ("round 2 of [train]", "[teacher-logits.compare.reverse_kl-2]"),
        ),
    ],
)
def test_two_tables_of_one_name_are_an_error_that_names_both(
    overrides: list[str], tables: tuple[str, str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(load_recipe("demo", overrides=overrides))
    assert all(table in str(caught.value) for table in tables), caught.value
    assert "rename" in str(caught.value)


def test_without_sft_the_start_of_training_is_a_row_of_its_own(tmp_path: Path) -> None:
    text = OWN + 'data = "sft-data"\n[sft-data]\nprompts = { path = "p.jsonl" }\n[evaluate]\n'
    text = text.replace('data = "records"\n', "")
    named = {n.name for n in build(load_recipe(None, [write(tmp_path / "a.toml", text)]))}
    assert "evaluate.reference" in named
    text += "[train.compare.reference]\nsteps = 3\n"
    with pytest.raises(ConfigError, match=r"\[train.compare.reference\] and \[student\]"):
        build(load_recipe(None, [write(tmp_path / "b.toml", text)]))


TEMPLATE = """
[template]
date = 2026-01-31
kwargs = { enable_thinking = false, effort = "low" }
[sft-data]
prompts = { path = "a.jsonl" }
[rollouts]
prompts = { path = "a.jsonl", template = { kwargs = { effort = "high" }, system = "s" } }
[evaluate.prompts]
path = "b.jsonl"
[teacher-logits.compare.hint.teacher_prompt]
prompts = { path = "c.jsonl" }
"""


def test_the_template_lies_under_all_prompts(tmp_path: Path) -> None:
    recipe = load_recipe(None, [write(tmp_path / "a.toml", OWN + TEMPLATE)])
    shared = {"enable_thinking": False, "effort": "low"}
    hint = recipe.teacher_logits.variants()["hint"].teacher_prompt
    assert hint is not None
    for prompts in (recipe.sft_data.prompts, recipe.evaluate.prompts, hint.prompts):
        assert prompts is not None
        assert (prompts.template.kwargs, prompts.template.system) == (shared, None)
        assert prompts.template.date == "2026-01-31"
    own = recipe.rollouts.prompts.template
    assert own.kwargs == {"enable_thinking": False, "effort": "high"}
    assert (own.system, own.date) == ("s", "2026-01-31")


def test_the_teachers_own_prompts_have_the_template_of_the_rollouts(tmp_path: Path) -> None:
    own = "[teacher-logits.teacher_prompt]\ntemplate = '{prompt}!'\n"
    text = OWN.replace('data = "records"', "") + own
    text += "[template]\nsystem = 's'\n[rollouts]\nprompts = { task = 'addition', limit = 4 }\n"
    nodes = {node.name: node for node in build(load_recipe(None, [write(tmp_path / "a", text)]))}
    config = nodes["teacher-logits"].config
    assert isinstance(config, TeacherLogits)
    assert config.teacher_prompt is not None
    assert config.teacher_prompt.prompts is not None
    assert config.teacher_prompt.prompts.template.system == "s"


def test_a_wrong_template_is_said_once(tmp_path: Path) -> None:
    text = OWN + TEMPLATE.replace("date", "dates")
    with pytest.raises(ConfigError, match=r"template\.dates: Extra inputs") as caught:
        load_recipe(None, [write(tmp_path / "a.toml", text)])
    assert str(caught.value).count("dates") == 1


def test_home_and_variables_are_expanded_wherever_a_path_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MODELS", "/models")
    file = write(
        tmp_path / "a.toml",
        'store = "~/sets"\n'
        '[teacher]\npath = "$MODELS/teacher"\n'
        '[student]\npath = "${MODELS}/student"\n'
        '[rollouts]\nprompts = { path = "~/p.jsonl", field = "a$b" }\n'
        '[train]\nsteps = 1\n[train.compare.x]\ninit = "~/other"\n',
    )
    recipe = load_recipe(None, [file], ["rollouts.prompts.path=$MODELS/q.jsonl"])
    assert recipe.teacher is not None
    assert recipe.student is not None
    assert recipe.store == f"{tmp_path}/sets"
    assert (recipe.teacher.path, recipe.student.path) == ("/models/teacher", "/models/student")
    assert (recipe.rollouts.prompts.path, recipe.rollouts.prompts.field) == (
        "/models/q.jsonl",
        "a$b",
    )
    assert recipe.train.variants()["x"].init == f"{tmp_path}/other"
    assert load_recipe(None, [file], ["store=s3://a/b//c"]).store == "s3://a/b//c"


def test_a_variable_that_is_not_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the environment has no variable NOT_SET_HERE"):
        load_recipe("demo", overrides=["teacher.path=$NOT_SET_HERE/x"])


def test_students_of_stored_records_need_no_teacher(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "manifest.json").write_text("{}")
    text = OWN.replace('[teacher]\npath = "some/teacher"\n', "")
    text = text.replace('data = "records"', f'data = "{tmp_path / "records"}"') + "[evaluate]\n"
    named = {node.name for node in build(load_recipe(None, [write(tmp_path / "a.toml", text)]))}
    assert named == {"train.reverse_kl", "evaluate.reference", "evaluate.reverse_kl", "report"}
    text += '[sft-data]\nprompts = { path = "p.jsonl" }\n'
    with pytest.raises(ConfigError, match=r"\[teacher\] is missing: \[sft-data\] would read it"):
        build(load_recipe(None, [write(tmp_path / "b.toml", text)]))
