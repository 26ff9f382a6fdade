"""`score_rows` on a small real teacher, against plain float32 forwards."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from stages.config.candidates import Coverage
from stages.config.record_kinds import Counts, HeadTail, Record, Sampled, TopK
from stages.models.model import Head
from stages.scoring.drawn import REST_BITS
from stages.scoring.score import batches, score_rows, scoring_head
from storage.errors import ConfigError, DataError, EngineError
from storage.rows import Rows
from tests.stages.scoring.cases import CONTEXT, REAL, load, log_probs, sequences, write_teacher

RECORDS = {
    "sampled": Sampled(),
    "systematic": Counts(draws=20),
    "multinomial": Counts(draws=20, sampler="multinomial"),
    "head_tail": HeadTail(tau=0.05),
    "top_k": TopK(k=9),
    "copies": HeadTail(tau=0.05, copies=3, logp=True, loss_temperature=2.0),
}
every_record = pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def teacher(directory: Path) -> PreTrainedModel:
    return load(directory)


def score(model: PreTrainedModel, rows: Rows, record: Record, **changes: Any) -> Rows:
    settings = {"vocab_size": REAL, "tokens_per_batch": 60, "rows_per_chunk": 7, **changes}
    return score_rows(model, scoring_head(model), rows, record, 3, **settings)


@every_record
def test_log_p_and_entropy_are_those_of_a_plain_forward(
    teacher: PreTrainedModel, record: Record
) -> None:
    rows = sequences(12)
    log_p_TV = log_probs(teacher, rows)
    scored = score(teacher, rows, record)
    expected_T = log_p_TV[np.arange(rows.tokens), rows["tok"]]
    np.testing.assert_allclose(scored["lp"], expected_T, atol=1e-4)
    entropy_T = -(np.exp(log_p_TV) * log_p_TV).sum(axis=1)
    np.testing.assert_allclose(scored["ent"], entropy_T, atol=2e-3)  # float16
    assert scored["ent"].dtype == np.float16


def test_one_position_off_would_show(teacher: PreTrainedModel) -> None:
    """The check above is sharp: hidden states one step late give nothing like it."""
    rows = sequences(12)
    log_p_TV = log_probs(teacher, rows)
    scored = score(teacher, rows, RECORDS["sampled"])
    late_T = np.roll(log_p_TV, -1, axis=0)[np.arange(rows.tokens), rows["tok"]]
    assert np.abs(scored["lp"] - late_T).mean() > 1


def test_heads_hold_candidates_and_exact_log_p(teacher: PreTrainedModel) -> None:
    rows = sequences(10, candidates=4)
    log_p_TV = log_probs(teacher, rows, temperature=1.5)
    scored = score(teacher, rows, HeadTail(tau=0.05, candidates=3, temperature=1.5))
    entry = np.concatenate([[0], np.cumsum(scored["nu"], dtype=np.int64)])
    head = np.concatenate([[0], np.cumsum(scored["nh"], dtype=np.int64)])
    cand_TC = rows["cand"].reshape(-1, 4)
    for t in range(rows.tokens):
        ids = scored["ids"][entry[t] : entry[t] + scored["nh"][t]].astype(int)
        assert set(cand_TC[t, :3]) <= set(ids)
        assert set(np.flatnonzero(np.exp(log_p_TV[t]) > 0.0501)) <= set(ids)
        stored = scored["hlp"][head[t] : head[t + 1]].astype(float)
        np.testing.assert_allclose(stored, log_p_TV[t, ids], rtol=1e-3, atol=1e-3)
        rest = 1 - np.exp(log_p_TV[t, ids]).sum()
        assert scored["rest"][t] == pytest.approx(rest, abs=1e-5, rel=2**-12)


def test_heads_hold_as_many_candidates_as_a_position_has(teacher: PreTrainedModel) -> None:
    """With `nc`, positions differ; a record that takes fewer takes the first."""
    rows = sequences(10, candidates=4)
    rng = np.random.default_rng(2)
    nc_T = rng.integers(1, 5, rows.tokens)
    cand_TC = rows["cand"].reshape(-1, 4)
    offsets = {level: rows.offsets[level] for level in ("prompt", "position")}
    columns = rows.columns | {"nc": nc_T, "cand": cand_TC[np.arange(4) < nc_T[:, None]]}
    varying = Rows.from_columns(columns, offsets)
    alike = score(teacher, rows, HeadTail(tau=0.05, candidates=4))
    for most in (4, 2):
        record = HeadTail(tau=0.05, candidates=Coverage(mass=0.9, at_most=most))
        order = rng.permutation(10)
        scored = score(teacher, varying.take(order), record).take(np.argsort(order))
        entry = np.concatenate([[0], np.cumsum(scored["nu"], dtype=np.int64)])
        for t in range(rows.tokens):
            head = set(scored["ids"][entry[t] : entry[t] + scored["nh"][t]].tolist())
            assert set(cand_TC[t, : min(nc_T[t], most)].tolist()) <= head
        assert (alike["nh"] >= scored["nh"]).all()
        assert (alike["nh"] > scored["nh"]).any()
        number = score(teacher, varying, HeadTail(tau=0.05, candidates=most))
        np.testing.assert_array_equal(number["ids"], scored["ids"])


@every_record
def test_what_the_sequences_held_is_carried_over(teacher: PreTrainedModel, record: Record) -> None:
    rows = sequences(9)
    scored = score(teacher, rows, record)
    for name in ("seq_id", "prompt_id", "sample", "finish", "outcome", "prompt", "tok", "ref_lp"):
        np.testing.assert_array_equal(scored[name], rows[name], err_msg=name)
    np.testing.assert_array_equal(scored.offsets["position"], rows.offsets["position"])
    assert "cand" not in scored


def test_a_corpus_has_neither_candidates_nor_reference(teacher: PreTrainedModel) -> None:
    rows = sequences(5, candidates=0, reference=False)
    scored = score(teacher, rows, HeadTail(candidates=0))
    assert "ref_lp" not in scored
    assert scored.tokens == rows.tokens


@every_record
@pytest.mark.parametrize(
    "execution",
    [
        {"tokens_per_batch": 1, "rows_per_chunk": 1},
        {"tokens_per_batch": 10_000, "rows_per_chunk": 10_000},
        {"tokens_per_batch": 45, "rows_per_chunk": 3},
    ],
    ids=["one by one", "all at once", "in between"],
)
def test_neither_batching_nor_order_changes_a_record(
    teacher: PreTrainedModel, record: Record, execution: dict[str, int]
) -> None:
    rows = sequences(15)
    expected = score(teacher, rows, record)
    order = np.random.default_rng(1).permutation(15)
    found = score(teacher, rows.take(order), record, **execution).take(np.argsort(order))
    for name in expected.columns:
        tolerance = 2e-3 if expected[name].dtype == np.float16 else 1e-5
        step = 2.0**-REST_BITS if name == "rest" else 1e-7  # it may round apart by one
        one, other = found[name].astype(float), expected[name].astype(float)
        np.testing.assert_allclose(one, other, step, tolerance, err_msg=name)


def test_another_seed_gives_other_draws_of_the_same_distribution(teacher: PreTrainedModel) -> None:
    rows, record = sequences(8), HeadTail(candidates=0)
    head = scoring_head(teacher)
    one, two = (score_rows(teacher, head, rows, record, seed, vocab_size=REAL) for seed in (1, 2))
    np.testing.assert_array_equal(one["nh"], two["nh"])
    np.testing.assert_array_equal(one["rest"], two["rest"])
    assert np.any(one["ids"] != two["ids"])


def test_padding_rows_of_the_vocabulary_hold_no_probability(teacher: PreTrainedModel) -> None:
    """The surplus rows are as likely as any here; counting them in would shift every log p."""
    rows = sequences(10)
    padded_T = log_probs(teacher, rows, real=96)[np.arange(rows.tokens), rows["tok"]]
    scored = score(teacher, rows, Counts(draws=200))
    assert (scored["lp"] - padded_T).mean() > 0.01
    assert scored["ids"].max() < REAL


def test_bfloat16_weights_keep_float32_logits(directory: Path) -> None:
    """Rounded to bfloat16, log p would be off by far more than its stored precision."""
    model, rows = load(directory, "bfloat16"), sequences(10)
    scored = score(model, rows, RECORDS["sampled"])
    head = scoring_head(model)
    assert head.weight.dtype == torch.float32
    off: list[float] = []
    for index in range(len(rows)):
        one = rows.sequence(index)
        ids = torch.from_numpy(np.concatenate([one["prompt"], one["tok"]]).astype(np.int64))[None]
        with torch.no_grad():
            hidden = model.base_model(ids).last_hidden_state[0, len(one["prompt"]) - 1 : -1]
            log_p = torch.log_softmax((hidden.float() @ head.weight.T)[:, :REAL], -1)
        expected = log_p[torch.arange(len(one["tok"])), one["tok"].astype(np.int64)]
        found = scored.sequence(index)["lp"]
        off.append(float((torch.from_numpy(found) - expected).abs().max()))
    assert np.median(off) < 1e-5  # bfloat16 matmuls may differ between batch shapes


def test_no_sequences_give_no_records(teacher: PreTrainedModel) -> None:
    for record in RECORDS.values():
        scored = score(teacher, sequences(3).take([]), record)
        assert len(scored) == 0
        assert "lp" in scored


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


def test_logits_exist_for_one_chunk_at_a_time(teacher: PreTrainedModel) -> None:
    rows = sequences(40)
    head = scoring_head(teacher)
    with _Largest() as largest:
        score_rows(
            teacher, head, rows, HeadTail(), 0, vocab_size=REAL,
            tokens_per_batch=120, rows_per_chunk=8,
        )  # fmt: skip
    assert largest.numel < 120 * 96 < rows.tokens * 96


def test_progress_counts_every_position(teacher: PreTrainedModel) -> None:
    rows, seen = sequences(20), list[int]()
    score(teacher, rows, RECORDS["sampled"], advance=seen.append)
    assert sum(seen) == rows.tokens
    assert len(seen) > 1


# ---------------------------------------------------------------------------------------------
# What is refused


def test_a_sequence_longer_than_the_context_is_named(teacher: PreTrainedModel) -> None:
    row = {**sequences(1).sequence(0), "seq_id": 4242, "tok": np.zeros(1, int)}
    row |= {"cand": np.arange(4), "ref_lp": np.zeros(1), "prompt": np.zeros(CONTEXT, int)}
    score(teacher, Rows.from_sequences([row]), HeadTail())  # the last token is predicted, never fed
    row["prompt"] = np.zeros(CONTEXT + 1, int)
    with pytest.raises(DataError, match=r"sequence 4242 has 26 tokens.*context of 24"):
        score(teacher, Rows.from_sequences([row]), HeadTail())


@pytest.mark.parametrize("column", ["prompt", "tok", "cand"])
def test_ids_outside_the_vocabulary_are_named(teacher: PreTrainedModel, column: str) -> None:
    rows = sequences(6)
    values = rows[column].copy()
    level = {"prompt": "prompt", "tok": "position", "cand": "candidate"}[column]
    values[rows.offsets[level][3]] = REAL  # a row of the head, but not of the tokenizer
    broken = Rows(rows.columns | {column: values}, rows.offsets)
    with pytest.raises(DataError, match=f"sequence 1003: id {REAL} in column '{column}'"):
        score(teacher, broken, HeadTail())


def test_too_few_candidates_are_refused(teacher: PreTrainedModel) -> None:
    with pytest.raises(ConfigError, match=r"record.candidates is 4, but the sequences keep 2"):
        score(teacher, sequences(3, candidates=2), HeadTail(candidates=4))
    with pytest.raises(ConfigError, match=r"mass is 0.9, but the sequences keep 4 per position"):
        score(teacher, sequences(3), HeadTail(candidates=Coverage(mass=0.9)))
    with pytest.raises(ConfigError, match="keep 0"):
        score(teacher, sequences(3, candidates=0), HeadTail(candidates=4))


def test_nan_logits_are_refused_by_sequence_and_position(teacher: PreTrainedModel) -> None:
    weight = scoring_head(teacher).weight.clone()
    weight[17] = torch.nan
    with pytest.raises(EngineError, match=r"sequence 1000, position 0 .*NaN"):
        score_rows(teacher, Head(weight), sequences(1), HeadTail(), 0, vocab_size=REAL)
    weight[17], weight[REAL] = 0, torch.nan  # what a padding row says is nobody's business
    score_rows(teacher, Head(weight), sequences(1), HeadTail(), 0, vocab_size=REAL)


def test_an_impossible_realised_token_is_refused_by_name(teacher: PreTrainedModel) -> None:
    rows = sequences(5)
    tok = int(rows["tok"][rows.offsets["position"][2] + 1])
    bias = torch.zeros(96)
    bias[tok] = -torch.inf
    head = Head(scoring_head(teacher).weight, bias)
    first = np.flatnonzero(rows["tok"] == tok)[0]
    row = int(np.searchsorted(rows.offsets["position"], first, side="right")) - 1
    place = first - rows.offsets["position"][row]
    with pytest.raises(EngineError, match=rf"sequence \d+, position \d+ \(token {tok}\)") as caught:
        score_rows(teacher, head, rows.take([row]), HeadTail(), 0, vocab_size=REAL)
    assert f"sequence {1000 + row}, position {place} " in str(caught.value)


def test_impossible_other_tokens_are_fine(teacher: PreTrainedModel) -> None:
    rows = sequences(5)
    unused = sorted(set(range(REAL)) - set(rows["tok"].tolist()))[:5]
    bias = torch.zeros(96)
    bias[unused] = -torch.inf
    head = Head(scoring_head(teacher).weight, bias)
    scored = score_rows(teacher, head, rows, HeadTail(), 0, vocab_size=REAL)
    for name in ("lp", "ent", "rest", "hlp"):
        assert np.isfinite(scored[name]).all(), name


# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 7, 30, 1000])
def test_batches_cover_every_sequence_within_the_budget(budget: int) -> None:
    length_N = np.random.default_rng(0).integers(1, 12, 50)
    made = list(batches(length_N, budget))
    assert sorted(index for batch in made for index in batch) == list(range(50))
    for batch in made:
        assert len(batch) == 1 or len(batch) * length_N[batch].max() <= budget


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU; run `pytest -m gpu` on one")
@every_record
def test_a_gpu_makes_the_same_records(directory: Path, record: Record) -> None:
    rows = sequences(30)
    expected = score(load(directory), rows, record)
    found = score(load(directory).to("cuda"), rows, record)  # type: ignore[reportArgumentType]
    np.testing.assert_allclose(found["lp"], expected["lp"], atol=1e-3)
    if "ids" in expected:
        assert len(found["ids"]) == len(expected["ids"])
        assert (found["ids"] != expected["ids"]).mean() < 0.01
