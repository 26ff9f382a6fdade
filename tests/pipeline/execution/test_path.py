"""The path from the command line to a stage and to the loss: short, and it reads its set once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command import ROOT, TINY, afterglow

RECIPE = (*TINY, "--set", "pretrain.teacher.steps=1")

WATCHED = """
import json, sys
from pipeline.cli import main

calls, reads = {}, {}

def watch(frame, event, _):
    code = frame.f_code
    if event == "call" and code.co_name == "read_manifest":
        name = frame.f_locals["directory"].name
        reads[name] = reads.get(name, 0) + 1
    elif event == "call" and code.co_qualname in ("run", "head_loss"):
        module, path = frame.f_globals["__name__"], []
        while frame.f_back is not None:
            path.append(frame.f_code.co_qualname)
            frame = frame.f_back
        calls.setdefault(f"{module}.{code.co_name}", path[::-1])

sys.setprofile(watch)
code = main(sys.argv[1:])
sys.setprofile(None)
print(json.dumps({"code": code, "calls": calls, "reads": reads}))
"""
"""The command, with the calls that lead to the stage and to the loss, and the manifests read."""


def watched(*arguments: str | Path, store: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *map(str, arguments), "--set", f"store={store}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=250,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["code"] == 0, done.stderr
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    assert afterglow("run", "corpus", *RECIPE, store=root).code == 0
    return root


def test_few_calls_lead_to_the_stage_and_to_the_loss(store: Path) -> None:
    """Manifests are read before the work, to check the files they list, and by the stream."""
    found = watched("run", "pretrain.teacher", "--here", *RECIPE, store=store)
    (corpus,) = store.glob("corpus-*")
    assert found["reads"] == {corpus.name: 2}
    calls = found["calls"]
    assert calls["stages.pretrain.run"] == ["main", "cmd_run", "run_node", "run"]
    to_loss = calls["stages.losses.head_loss.head_loss"]
    assert to_loss[0] == "main"
    assert len(to_loss) <= 10


@pytest.mark.parametrize("here", [(), ("--here",)])
def test_the_manifest_of_a_finished_set_is_read_once(store: Path, here: tuple[str, ...]) -> None:
    """By the process that runs the recipe, and by the one that makes the node."""
    (directory,) = store.glob("corpus-*")
    found = watched("run", "corpus", *here, *RECIPE, store=store)
    assert found["reads"] == {directory.name: 1}
