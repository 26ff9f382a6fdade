"""Trainer against engine: right data passes, the usual mistakes do not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.models.facts import model_facts
from stages.models.model import load_model
from stages.training.agreement import Agreement, check_agreement
from storage.errors import EngineError
from storage.rows import Rows
from tests.world import VOCABULARY, commit, identity, rollouts, write_model

Check = Callable[..., Agreement | None]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("reference"), 2)


@pytest.fixture
def check(reference: Path, tmp_path: Path) -> Check:
    """Commits `rows` as a set and holds pi_ref against it."""

    def run(rows: Rows, dtype: torch.dtype = torch.float32, **meta: object) -> Agreement | None:
        manifest = commit(tmp_path / "set", rows, key="ab" * 32, generator=identity(reference))
        return check_agreement(
            load_model(reference, "float32", "cpu"),
            tmp_path / "set",
            dict(manifest.meta) | meta,
            vocab_size=model_facts(reference).vocab_size,
            dtype=dtype,
            rows_per_chunk=16,
        )

    return run


@pytest.fixture(scope="module")
def rows(reference: Path) -> Rows:
    return rollouts(load_model(reference, "float32", "cpu"), 24)


def with_columns(rows: Rows, **columns: np.ndarray) -> Rows:
    return Rows.from_columns(rows.columns | columns, rows.offsets)


def test_its_own_rollouts_agree(check: Check, rows: Rows) -> None:
    found = check(rows)
    assert found is not None
    assert found.mean <= found.quantile <= found.largest < 1e-4


def test_rows_that_pad_the_vocabulary_are_left_out_as_engines_do(tmp_path: Path) -> None:
    padded = write_model(tmp_path / "padded", 2, vocab_size=VOCABULARY + 40)
    model = load_model(padded, "float32", "cpu")
    manifest = commit(
        tmp_path / "set", rollouts(model, 24), key="ab" * 32, generator=identity(padded)
    )
    options = {"dtype": torch.float32, "rows_per_chunk": 16}
    vocab_size = model_facts(padded).vocab_size
    found = check_agreement(
        model, tmp_path / "set", manifest.meta, vocab_size=vocab_size, **options
    )
    assert found is not None
    assert found.largest < 1e-4
    with pytest.raises(EngineError, match="nats on average"):
        check_agreement(
            model, tmp_path / "set", manifest.meta, vocab_size=VOCABULARY + 40, **options
        )


def test_bfloat16_agrees_within_its_tolerance(check: Check, rows: Rows) -> None:
    found = check(rows, torch.bfloat16)
    assert found is not None
    assert 1e-4 < found.mean < 0.1


def test_log_probs_of_the_neighbouring_token_are_found_out(check: Check, rows: Rows) -> None:
    with pytest.raises(EngineError, match="off by one"):
        check(with_columns(rows, ref_lp=np.roll(rows["ref_lp"], 1)))


def test_a_token_too_many_before_the_response_is_found_out(check: Check, rows: Rows) -> None:
    """Another chat template: every prompt begins with something else."""
    prompt = rows["prompt"].copy()
    prompt[rows.offsets["prompt"][:-1]] = 5
    with pytest.raises(EngineError, match="chat template"):
        check(with_columns(rows, prompt=prompt))


def test_a_sampling_temperature_nobody_recorded_is_found_out(check: Check, rows: Rows) -> None:
    with pytest.raises(EngineError, match="sampling temperature"):
        check(rows, sampling={"temperature": 1.5})


def test_the_recorded_sampling_temperature_is_applied(reference: Path, check: Check) -> None:
    hot = rollouts(load_model(reference, "float32", "cpu"), 24, temperature=1.5)
    found = check(hot, sampling={"temperature": 1.5})
    assert found is not None
    assert found.largest < 1e-4


def test_one_token_far_off_is_found_out_and_named(check: Check, rows: Rows) -> None:
    """The mean over all tokens stays below its tolerance."""
    ref_lp = rows["ref_lp"].copy()
    second = int(rows.offsets["position"][3]) + 1
    ref_lp[second] -= 0.3
    assert 0.3 / rows.offsets["position"][8] < 1e-2
    seq_id = rows["seq_id"][3]
    with pytest.raises(EngineError, match=rf"sequence {seq_id}, position 1: .* look at that token"):
        check(with_columns(rows, ref_lp=ref_lp))


def test_penalties_leave_nothing_to_compare(check: Check, rows: Rows) -> None:
    assert check(rows, sampling={"temperature": 1.0, "presence_penalty": 0.5}) is None


def test_nan_is_no_agreement(check: Check, rows: Rows) -> None:
    with pytest.raises(EngineError):
        check(rows, sampling={"temperature": float("nan")})


def test_truncated_sampling_cannot_be_compared(check: Check, rows: Rows) -> None:
    assert check(rows, full_support=False) is None


def test_a_corpus_has_nothing_to_compare(check: Check, rows: Rows) -> None:
    columns = {name: values for name, values in rows.columns.items() if name != "ref_lp"}
    assert check(Rows.from_columns(columns, rows.offsets)) is None
