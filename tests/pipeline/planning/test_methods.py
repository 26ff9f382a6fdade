"""Methods: what the overlays say of themselves, and what laying them over a recipe makes of it."""

from pathlib import Path

import pytest

from pipeline.planning.config import Recipe, load_recipe
from pipeline.planning.methods import lay_methods, method_names, read_method
from pipeline.planning.node import Node
from pipeline.planning.nodes import build
from pipeline.planning.plan import resolve
from pipeline.preflight.objectives import described
from stages.config.training import Student
from stages.objectives.contract import guarantee
from storage.errors import ConfigError
from storage.store import Store

PLAIN = """
[teacher]
path = "some/teacher"
[student]
path = "some/student"
[sft-data]
prompts = { path = "sft.jsonl" }
[sft]
steps = 1
[rollouts]
prompts = { path = "opd.jsonl" }
[train]
steps = 10
"""


def laid(root: Path, *methods: str, more: str = "") -> Recipe:
    """A recipe without comparisons, with methods laid over it."""
    file = root / "plain.toml"
    file.write_text(PLAIN + more)
    return load_recipe(None, [file], [], methods)


def student(recipe: Recipe, name: str) -> tuple[Node, Student]:
    node = next(node for node in build(recipe) if node.name == f"train.{name}")
    assert isinstance(node.config, Student)
    return node, node.config


@pytest.mark.parametrize("name", method_names())
def test_a_method_is_offline_what_it_says(name: str, tmp_path: Path) -> None:
    """As the contract has it, of default records of rollouts or of whatever it trains on."""
    node, config = student(laid(tmp_path, name), name)
    meta = described(node)
    assert meta is not None
    found = guarantee(config.objective, meta, None, config.weights)
    stated = read_method(name).offline
    level = "another objective" if "another objective" in found.reason else found.level
    assert stated == level.replace("_", " ")


@pytest.mark.parametrize("name", method_names())
def test_a_method_says_all_there_is_to_say(name: str) -> None:
    method = read_method(name)
    assert method.arxiv or "(" in method.paper or method.mechanism == "control"
    assert method.train, "it does something otherwise"
    assert all(not text.endswith(".") for text in (method.title, method.why, method.claim))


def test_only_the_students_of_methods_are_made_anew(tmp_path: Path) -> None:
    """All else has the keys it has without, so rollouts and records are found as done."""

    def keys(*methods: str) -> dict[str, str | None]:
        planned = resolve(build(load_recipe("demo", [], [], methods)), Store(tmp_path))
        return {one.node.name: one.key for one in planned}

    plain, with_tip = keys(), keys("tip")
    new = {name: key for name, key in with_tip.items() if plain.get(name) != key}
    assert set(new) == {"train.tip", "evaluate.tip", "report"}
    assert plain.keys() < with_tip.keys()


def test_several_methods_are_one_student_whose_weights_multiply(tmp_path: Path) -> None:
    _, both = student(laid(tmp_path, "tip", "jsd", "random"), "tip-jsd-random")
    assert [one.name for one in both.weights] == ["tip", "random"]
    assert both.objective.name == "jsd"
    assert both.steps == 10


def test_weights_and_rounds_of_the_recipe_stay(tmp_path: Path) -> None:
    more = 'rounds = 2\nweights = [{ name = "prefix" }, { name = "random", keep = 0.1 }]\n'
    recipe = laid(tmp_path, "random", more=more)
    _, found = student(recipe, "random")
    assert [one.model_dump() for one in found.weights] == [
        {"name": "prefix", "cap": 1.0, "each_place": True},
        {"name": "random", "keep": 0.5},
    ]
    assert found.rounds == 2
    assert [one.name for one in recipe.train.weights] == ["prefix", "random"]


def test_options_of_a_method_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "plain.toml").write_text(PLAIN)
    settings = ["train.compare.nkd.objective.gamma=0.5", "train.compare.nkd.learning_rate=1e-3"]
    recipe = load_recipe(None, [tmp_path / "plain.toml"], settings, ["nkd"])
    _, found = student(recipe, "nkd")
    assert found.objective.model_dump() == {
        "name": "nkd",
        "temperature": 1.0,
        "target": "teacher",
        "gamma": 0.5,
    }
    assert found.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["tpi"], r"no method called `tpi`; did you mean `tip`"),
        (["zzzzzz"], r"no method called `zzzzzz`\. `afterglow methods` lists all"),
        (["nkd", "pld"], r"--method nkd --method pld: both set train\.objective"),
        (["tip", "tip"], r"both set train\.weights\.tip"),
    ],
)
def test_methods_that_cannot_be_laid_over_each_other(methods: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("demo", methods=methods)


def test_a_name_that_the_recipe_has_is_not_taken_from_it() -> None:
    with pytest.raises(ConfigError, match=r"\[train\.compare\.lightning\] of its own"):
        load_recipe("demo", methods=["lightning"])
    with pytest.raises(ConfigError, match="called `jsd` after its objective"):
        lay_methods({"train": {"objective": {"name": "jsd"}}}, ["jsd"])


def test_a_recipe_without_methods_is_what_it_was() -> None:
    tree: dict[str, object] = {"train": {"steps": 1}}
    assert lay_methods(tree, []) is tree
    lay_methods(tree, ["tip"])
    assert tree == {"train": {"steps": 1}}
