"""What every process that makes a set does first, whoever started it."""

import os
from pathlib import Path

import pytest

from pipeline.execution.runner import run_node, run_shards
from pipeline.planning.config import load_recipe
from pipeline.planning.nodes import build, select
from pipeline.planning.plan import Planned, resolve
from storage.store import Store

SETTINGS = {"OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1"}


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Planned, Store]:
    """A small one of two parts, planned in an environment without settings."""
    for name in SETTINGS:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    sizes = ["corpus.count=64", "corpus.sequences_per_part=32"]
    store = Store(tmp_path)
    nodes = select(build(load_recipe("demo", overrides=sizes)), ["corpus"])
    (planned,) = resolve(nodes, store)
    return planned, store


@pytest.mark.parametrize("whole", [True, False])
def test_a_scheduler_starts_the_same_process_as_a_run(
    corpus: tuple[Planned, Store], *, whole: bool
) -> None:
    """Spinning threads cost small models most of their speed, wherever they run."""
    if whole:
        run_node(*corpus)
    else:
        run_shards(*corpus, [1])
    assert {name: os.environ.get(name) for name in SETTINGS} == SETTINGS
