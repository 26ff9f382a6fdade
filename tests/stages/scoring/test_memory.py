"""Running out of memory while scoring: tried with the largest pass first, and explained."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.config.record_kinds import HeadTail
from stages.config.records import ScoreRun
from stages.scoring.memory import rehearsal
from stages.scoring.score import batches
from stages.scoring.scorer import TransformersScorer, open_scorer
from storage.errors import EngineError
from tests.stages.scoring.cases import sequences, write_teacher

RUN = ScoreRun(tokens_per_batch=64, rows_per_chunk=16, device="cpu")
RECORD = HeadTail(tau=0.1, candidates=2)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.mark.parametrize(("longest", "count"), [(2, 32), (9, 7), (64, 1), (90, 1)])
def test_the_rehearsal_fills_one_forward_pass(teacher: Path, longest: int, count: int) -> None:
    rows = rehearsal(longest, RUN, RECORD)
    length_N = rows.lengths("prompt") + rows.lengths("position")
    assert length_N.tolist() == [longest] * count
    assert len(list(batches(length_N, RUN.tokens_per_batch))) == 1
    if longest <= 16:
        with open_scorer(teacher, "float32", RUN) as scorer:
            assert len(scorer.score(rows, RECORD, 0)) == count


def test_running_out_of_memory_is_explained_with_its_sizes(teacher: Path) -> None:
    """The allocation is real, and larger than any address space."""
    rows = sequences(3)
    longest = int((rows.lengths("prompt") + rows.lengths("position")).max())
    with open_scorer(teacher, "float32", RUN) as scorer:
        assert isinstance(scorer, TransformersScorer)
        hook = scorer.model.register_forward_pre_hook(lambda *_: torch.empty(1 << 55))
        body = scorer.model.base_model.register_forward_pre_hook(lambda *_: torch.empty(1 << 55))
        with pytest.raises(EngineError, match="out of memory while scoring") as caught:
            scorer.score(rows, HeadTail(tau=0.1, candidates=0), 0)
        hook.remove()
        body.remove()
        width, logits = scorer.head.weight.shape[1], scorer.logits
    text = str(caught.value)
    assert f"longest sequence {longest}" in text
    assert f"64 x {width} x 4 bytes" in text
    assert f"16 x {logits} x 4 bytes" in text
    assert "neither is in the key" in text


def test_other_errors_pass_as_they_are(teacher: Path) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    with open_scorer(teacher, "float32", RUN) as scorer:
        assert isinstance(scorer, TransformersScorer)
        scorer.model.base_model.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="shapes do not match"):
            scorer.score(sequences(3), HeadTail(tau=0.1, candidates=0), 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU; run `pytest -m gpu` on one")
def test_a_gpu_that_is_too_small_says_so_before_the_first_part(teacher: Path) -> None:
    run = ScoreRun(tokens_per_batch=1 << 40, rows_per_chunk=1 << 34, device="cuda")
    with open_scorer(teacher, "float32", run) as scorer, pytest.raises(EngineError, match="memory"):
        scorer.score(rehearsal(64, ScoreRun(tokens_per_batch=1 << 28), RECORD), RECORD, 0)
    assert np.isfinite(torch.zeros(1, device="cuda").item())
