"""Only what a missing set reads is made: an adopted set needs nothing it was made from."""

import json
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.command import last_object
from pipeline.execution.runner import needed
from pipeline.planning.config import load_recipe
from pipeline.planning.nodes import build
from pipeline.planning.plan import Planned, resolve
from stages.models.identity import tokenizer_hash
from stages.models.model import load_model
from storage.manifest import SetIdentity, SetMeta, build_manifest, write_manifest
from storage.store import Store
from tests import world
from tests.storage.make import write_parts

RECIPE = """
seed = 0
[teacher]
path = "{root}/teacher"
dtype = "float32"
[student]
path = "{root}/student"
dtype = "float32"
[sft-data]
prompts = {{ path = "{root}/prompts.jsonl" }}
[sft]
steps = 1
[rollouts]
prompts = {{ path = "{root}/prompts.jsonl" }}
holdout = 0.0
[teacher-logits]
record = {{ kind = "sampled" }}
[train]
steps = 1
objective = {{ name = "lightning" }}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe over two small models; nothing is made yet."""
    for seed, name in enumerate(("teacher", "student")):
        world.write_model(tmp_path / name, seed)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "abc"}) + "\n")
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE.format(root=tmp_path))
    return file


def plan_of(recipe: Path, store: Store) -> dict[str, Planned]:
    nodes = build(load_recipe(None, [recipe]))
    return {one.node.name: one for one in resolve(nodes, store)}


def names(target: str, planned: dict[str, Planned], store: Store) -> list[str]:
    found = needed([planned[target]], list(planned.values()), store)
    return [one.node.name for one in found]


def test_what_lies_behind_a_committed_set_is_not_made(recipe: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    planned = plan_of(recipe, store)
    chain = ["sft-data", "sft", "rollouts", "teacher-logits"]
    assert names("teacher-logits", planned, store) == chain
    chosen = planned["rollouts"]
    assert chosen.key is not None
    directory = store.root / f"rollouts-{chosen.key[:12]}"
    directory.mkdir(parents=True)
    made = SetIdentity("rollouts", 1, chosen.key, "rollouts", "sequences", chosen.payload)
    write_manifest(directory, build_manifest(directory, made))
    assert names("teacher-logits", planned, store) == ["teacher-logits"]
    # A student starts as pi_ref, which is missing.
    assert names("train.lightning", planned, store) == [
        "sft-data",
        "sft",
        "teacher-logits",
        "train.lightning",
    ]
    assert names("rollouts", planned, store) == []


def test_adopted_rollouts_are_scored_without_the_model_that_wrote_them(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store")
    chosen = plan_of(recipe, store)["rollouts"]
    assert chosen.key is not None
    teacher, directory = tmp_path / "teacher", tmp_path / "elsewhere"
    meta = SetMeta(
        stage="rollouts",
        key=chosen.key,
        kind="sequences",
        vocab_size=world.VOCABULARY,
        tokenizer={"tokenizer": tokenizer_hash(teacher)},
        teacher=world.identity(teacher).to_json(),
    )
    rows = world.rollouts(load_model(tmp_path / "student", "float32", "cpu"), 12)
    write_parts(directory, meta, [(rows, "train")], payload=chosen.payload)
    options = ["--config", str(recipe), "--set", f"store={store.root}", "--json"]
    assert main(["adopt", str(directory), *options]) == 0
    assert main(["run", "teacher-logits", *options]) == 0
    assert last_object(capsys.readouterr().out)["ran"] == ["teacher-logits"]
    assert {path.name.rpartition("-")[0] for path in store.root.glob("*-*")} == {
        "rollouts",
        "teacher-logits",
    }
