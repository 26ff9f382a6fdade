"""Keys are a promise: sets made by an earlier version are found again.

`keys.json` holds what version 0.1.0 computed before the packages were rearranged: every node of
every shipped recipe, and of the demo under one override for each objective and kind of record. Of
rounds that are one training it holds what was computed when they came. A key in it changes only
together with the `version` of a stage in `pipeline/graph.py`: where a shipped recipe changes, its
cases restate what it was.
"""

import json
from pathlib import Path

import pytest

from pipeline.planning.config import load_recipe, recipe_names
from pipeline.planning.nodes import build
from pipeline.planning.plan import resolve
from storage.store import Store

KNOWN = json.loads(Path(__file__).with_name("keys.json").read_text())
PROMPTS = ("openthoughts3-prompts.parquet", "dapo-math-17k.parquet", "aime24.jsonl")


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the recipes read; content decides, so any will do."""
    (tmp_path / "text.txt").write_text("one line of text\n" * 100)
    (tmp_path / "words.gguf").write_text("words.gguf")
    (tmp_path / "data").mkdir()
    for name in PROMPTS:
        (tmp_path / "data" / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", KNOWN)
def test_keys_are_those_of_the_previous_version(case: str, outside: Path) -> None:
    known = KNOWN[case]
    recipe = load_recipe(known["recipe"], [], known["overrides"])
    planned = resolve(build(recipe), Store(outside / "store"))
    assert {one.node.name: one.key for one in planned} == known["keys"]


def test_every_shipped_recipe_has_its_keys_held() -> None:
    assert {known["recipe"] for known in KNOWN.values()} == set(recipe_names())
