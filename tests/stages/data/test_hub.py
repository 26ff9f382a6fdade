"""Prompts from a data set of the Hub, served on this machine to the real libraries."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.data.hub import hub_dataset
from tests.hub import COMMIT, hub


def lines(first: int, stop: int) -> bytes:
    rows = [{"question": f"{n}", "answer": f"so {n}"} for n in range(first, stop)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


FILES = {
    "README.md": (
        b"---\nconfigs:\n"
        b"- config_name: main\n  data_files:\n"
        b"  - split: train\n    path: main/train.jsonl\n"
        b"  - split: test\n    path: main/test.jsonl\n"
        b"- config_name: other\n  data_files: other/*.jsonl\n---\n"
    ),
    "main/train.jsonl": lines(0, 3),
    "main/test.jsonl": lines(3, 5),
    "other/a.jsonl": lines(5, 6),
}
# The libraries read the address of the Hub when they are imported.
SCRIPT = """
import json, sys
from pathlib import Path
from pipeline.planning.config import load_recipe
from pipeline.planning.nodes import build, select
from pipeline.planning.plan import resolve
from stages.data.prompts import numbered_rows
from storage.errors import AfterglowError
from storage.store import Store

root = Path(sys.argv[1])

def plan(*settings, ready):
    recipe = load_recipe(None, [root / "own.toml"], [f"sft-data.prompts.{one}" for one in settings])
    return resolve(select(build(recipe), ["sft-data"]), Store(root), ready=ready)[-1]

def rows(*settings):
    try:
        config = plan(*settings, ready=True).job(Store(root)).config
        return [row for _, row in numbered_rows(config.prompts, ("question", "answer"))]
    except AfterglowError as error:
        return [type(error).__name__, str(error)]

before, asked, after = (plan("split=train", ready=ready) for ready in (False, True, False))
print(json.dumps({
    "before": before.key,
    "lacks": len(before.lacks),
    "keys": [asked.key, after.key],
    "revision": after.job(Store(root)).config.prompts.revision,
    "content": after.payload["content"],
    "train": rows("split=train"),
    "splits": rows(),
    "absent": rows("path=me/other"),
    "config": rows("config=x"),
}))
"""
RECIPE = """
[teacher]
path = "{model}"
[student]
path = "{model}"
[sft-data.prompts]
path = "me/sums"
config = "main"
field = "question"
[sft]
epochs = 1
[rollouts.prompts]
task = "addition"
limit = 1
[train]
steps = 1
"""


def test_a_data_set_of_the_hub_is_its_commit(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "own.toml").write_text(RECIPE.format(model=tiny_model))
    with hub("me/sums", FILES) as endpoint:
        environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["before"], found["lacks"]) == (None, 0), "unknown until the Hub is asked"
    assert found["keys"][0] is not None
    assert found["keys"][0] == found["keys"][1]
    assert found["revision"] == COMMIT, "every process reads the commit that is in the key"
    assert found["content"]["dataset"] == "me/sums"
    assert found["content"]["commit"] == COMMIT
    assert found["train"] == [{"question": f"{n}", "answer": f"so {n}"} for n in range(3)]
    assert found["splits"][0] == "DataError"
    assert "several splits (test, train). Set `prompts.split`" in found["splits"][1]
    assert found["absent"][0] == "ConfigError"
    assert "the Hub has no such data set at revision `main`" in found["absent"][1]
    assert "available: ['main', 'other']" in found["config"][1].lower()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("openai/gsm8k", "openai/gsm8k"),
        ("hub:data/train.jsonl", "data/train.jsonl"),
        ("data/train.jsonl", None),
        ("data/train.csv.gz", None),
        ("train", None),
        ("a/b/c", None),
        (None, None),
    ],
)
def test_which_paths_mean_the_hub(path: str | None, name: str | None) -> None:
    assert hub_dataset(path) == name


def test_a_directory_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "me" / "sums").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_dataset("me/sums") is None
    assert hub_dataset("hub:me/sums") == "me/sums"
