"""Real teachers as benchmarks read them: the same logits whether hidden states were kept or not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.error_by_size import _against
from benchmarks.teachers import _SMOLLM2, Real
from pipeline.planning.config import load_recipe
from pipeline.planning.nodes import build
from tests.world import A_KEY, VOCABULARY, commit, load_model, rollouts, write_model


@pytest.fixture
def real(tmp_path: Path) -> Real:
    torch.set_num_threads(1)
    model = write_model(tmp_path / "model", 3)
    rows = rollouts(load_model(model, "float32", "cpu"), 40, seed=4)
    commit(tmp_path / "answers", rows, key=A_KEY, words=model)
    return Real("small", model, tmp_path / "answers")


def test_kept_hidden_states_give_the_same_logits(real: Real, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    keeping = Real("small", real.model, real.sequences, scratch)

    def logits(source: Real, positions: int) -> np.ndarray:
        return np.concatenate([block.z_RV for block in source.blocks(positions)])

    for positions in (20, 60, 30):  # more than were kept are computed anew, fewer read
        found = logits(keeping, positions)
        np.testing.assert_array_equal(found, logits(real, positions))
        assert found.shape == (positions, VOCABULARY)
    (file,) = scratch.iterdir()
    kept_TD = np.load(file)
    assert 60 <= len(kept_TD) < 120
    np.save(file, 0 * kept_TD)
    assert np.ptp(logits(keeping, 30)) == 0.0  # read they are


def test_frequencies_are_those_of_the_whole_set(real: Real) -> None:
    every = sum(real.lengths(10_000))
    count_V = real.frequencies()
    assert count_V.shape == (VOCABULARY,)
    assert count_V.sum() == every
    tok_T = np.concatenate([block.tok_R for block in real.blocks(10_000)])
    np.testing.assert_array_equal(count_V, np.bincount(tok_T, minlength=VOCABULARY))


def test_the_sets_of_the_real_model_are_those_of_its_recipes() -> None:
    nodes = {node.name: node for node in build(load_recipe(None, [Path(_SMOLLM2)]))}
    assert {"derive.teacher", "corpus", "sft-data"} <= nodes.keys()
    (origin,) = nodes["sft-data"].upstream()
    assert origin is nodes["derive.teacher"]
    other = {node.name: node for node in build(load_recipe("repro-rskd-smollm2"))}
    for name in ("derive.teacher", "corpus"):
        assert nodes[name].config == other[name].config


def test_errors_are_held_against_those_of_as_many_bytes() -> None:
    theirs = {10.0: 0.04, 20.0: 0.02, 40.0: 0.01}  # error times bytes is 0.4 throughout
    assert _against(theirs, 20.0, 0.01) == "0.50"
    assert _against(theirs, 15.0, 0.4 / 15) == "1.00"
    assert _against(theirs, 50.0, 0.01) == "-"
