"""A new stage takes a module, a table and an entry of the graph; everything else follows."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from storage.manifest import read_manifest
from storage.shard import read_rows
from tests.docs.extending import extended

RECIPE = """\
[teacher]
path = "pretrain:teacher"
dtype = "float32"
[student]
path = "pretrain:base"
dtype = "float32"
[corpus]
task = "addition"
count = 96
sequence_length = 48
holdout = 0.0
tokenizer = { kind = "characters" }
[pretrain.teacher]
steps = 2
batch_size = 8
architecture = { hidden_size = 32, layers = 1, heads = 1, max_positions = 64 }
[pretrain.base]
init_only = true
architecture = { hidden_size = 32, layers = 1, heads = 1, max_positions = 64 }
[rollouts]
prompts = { task = "addition", limit = 48 }
sampling = { max_tokens = 16 }
verifier = { kind = "exact_match" }
holdout = 0.34
run = { engine = "transformers" }
[curate]
max_tokens = 8
[teacher-logits]
consistency = "warn"
[train]
steps = 2
batch_size = 8
rounds = 2
consistency = "warn"
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code with the stage of docs/extend.md between `rollouts` and `teacher-logits`."""
    copy = extended("Stage", tmp_path_factory.mktemp("tree"))
    (copy.root / "recipe.toml").write_text(RECIPE)
    return copy.root


def afterglow(tree: Path, *arguments: str) -> dict[str, Any]:
    """What the command of this tree says on its last line."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments, "--config", "recipe.toml"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


ROUND = ("rollouts", "curate", "teacher-logits", "train")


def test_two_rounds_run_through_a_new_stage(tree: Path) -> None:
    planned = {node["node"]: node for node in afterglow(tree, "plan", "train")["nodes"]}
    assert list(planned)[-8:] == [
        "rollouts", "curate", "teacher-logits", "train.reverse_kl",
        *(f"{stage}.reverse_kl-2" for stage in ROUND),
    ]  # fmt: skip
    for name in list(planned)[-8:]:
        assert planned[name]["tokens"] == (None if name.startswith("train") else 48 * 16)

    afterglow(tree, "run", "--here", *planned)
    made = {}
    for path in (tree / "store").glob("*/manifest.json"):
        manifest = read_manifest(path.parent)
        made[manifest.name] = (path.parent, manifest)
    assert set(made) == set(planned)
    for suffix in ("", ".reverse_kl-2"):
        (_, rollouts), (_, kept) = made[f"rollouts{suffix}"], made[f"curate{suffix}"]
        directory, scored = made[f"teacher-logits{suffix}"]
        inputs: Any = scored.payload["inputs"]
        assert inputs["sequences"]["key"] == kept.key
        assert 0 < scored.totals.sequences == kept.totals.sequences < rollouts.totals.sequences
        for part in scored.parts:
            for rows in read_rows(directory / part.file):
                assert (rows.lengths("position") <= 8).all()


def test_make_and_the_edges_of_schedulers_follow(tree: Path) -> None:
    def output(*command: str) -> str:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
        env = {**clean, "PYTHONPATH": str(tree)}
        return subprocess.run(
            command, cwd=tree, env=env, check=True, capture_output=True, text=True
        ).stdout

    assert "afterglow run curate " in output("make", "-n", "curate")
    assert "curate          keep short rollouts" in output("make", "help")
    program = "from pipeline.graph import *; print({s.name: s.needs for s in STAGES})"
    needs = eval(output(sys.executable, "-c", program))
    assert needs["curate"] == ("rollouts",)
    for reader in ("teacher-logits", "train"):
        assert "curate" in needs[reader]
