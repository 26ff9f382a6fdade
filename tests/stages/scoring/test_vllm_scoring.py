"""Scoring inside vLLM against scoring with transformers: real models, real vLLM.

The engine these tests share takes 48 tokens a step, less than most sequences have, so that every
test runs on prompts and responses that come in pieces.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from stages.config.data import Sampling
from stages.config.record_kinds import Counts, HeadTail, Record, Sampled, TopK
from stages.config.records import ScoreRun
from stages.engines.base import Request
from stages.models.model import load_model
from stages.scoring import vllm_scorer
from stages.scoring.drawn import REST_BITS
from stages.scoring.scorer import Scorer, open_scorer
from storage.errors import ConfigError, DataError, EngineError
from storage.rows import Rows
from storage.schema import COLUMNS
from tests.conftest import EngineSlot
from tests.stages.scoring.cases import LETTERS, REAL, ROWS, log_probs, write_teacher
from tests.world import tokenizer

pytestmark = pytest.mark.engine

CONTEXT = 256
BLOCK = 32
"""Tokens in a block of vLLM's cache on a CPU."""
IN_PIECES: Any = {"tokens_per_batch": 48, "rows_per_chunk": 9}
WHOLE: Any = {"tokens_per_batch": 4096, "rows_per_chunk": 500}
SEED = 11
NAN_ID = 7
"""Id whose embedding is NaN in the damaged teacher."""

RECORDS = {
    "sampled": Sampled(),
    "systematic": Counts(draws=20),
    "multinomial": Counts(draws=20, sampler="multinomial", copies=2, logp=True),
    "head_tail": HeadTail(tau=0.05),
    "copies": HeadTail(tau=0.05, copies=3, logp=True, candidates=2),
    "temperature": HeadTail(temperature=0.7, loss_temperature=2.0, candidates=0),
    "calibrated": HeadTail(entries=12.0).calibrated(0.1),
    "top_k": TopK(k=10),
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, 90 ids and 6 rows of padding, a context of 256."""
    directory = tmp_path_factory.mktemp("teacher")
    return write_teacher(directory, head_dim=32, context=CONTEXT)


@pytest.fixture
def vllm(vllm_slot: EngineSlot, teacher: Path) -> Scorer:
    return vllm_slot.open_scorer(teacher, **IN_PIECES)


@pytest.fixture(scope="module")
def transformers(teacher: Path) -> Iterator[Scorer]:
    with open_scorer(teacher, "float32", ScoreRun(device="cpu")) as scorer:
        yield scorer


def sequence(
    seq_id: int, prompt: np.ndarray, tok: np.ndarray, rng: np.random.Generator
) -> dict[str, Any]:
    return {
        "seq_id": seq_id,
        "prompt_id": seq_id,
        "sample": 0,
        "finish": 0,
        "prompt": prompt,
        "tok": tok,
        "ref_lp": -rng.random(len(tok)),
        "cand": np.array([rng.permutation(REAL)[:4] for _ in tok], int).reshape(-1),
    }


def sequences(count: int, seed: int = 0) -> Rows:
    """Sequences of 2 to 150 tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, (70, 80), (count, 2))
    return Rows.from_sequences(
        sequence(500 + 3 * i, rng.integers(0, REAL, p), rng.integers(0, REAL, t), rng)
        for i, (p, t) in enumerate(lengths)
    )


def assert_same(found: Rows, expected: Rows, atol: float = 2e-5) -> None:
    """The same columns of the same types; equal integers, and numbers equal within `atol`.

    In a position or two a uniform number may lie between what two engines make of a distribution
    function, and select a neighbour; all others hold the same ids.
    """
    assert list(found.columns) == list(expected.columns)
    for name in (name for name, column in COLUMNS.items() if column.level in ("row", "prompt")):
        if name in expected:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert found.tokens == expected.tokens
    one, two = by_position(found), by_position(expected)
    same_T = [drawn(one, t) == drawn(two, t) for t in range(found.tokens)]
    assert sum(same_T) >= found.tokens - 2
    one, two = one.take(np.flatnonzero(same_T)), two.take(np.flatnonzero(same_T))
    for name, values in two.columns.items():
        assert one[name].dtype == values.dtype, name
        if values.dtype.kind == "f":
            eps = 2.0**-REST_BITS if name == "rest" else float(np.finfo(values.dtype).eps)
            steps = 2 * eps  # what is stored in few bits may round apart
            np.testing.assert_allclose(one[name], values, steps, atol, err_msg=name)


def by_position(rows: Rows) -> Rows:
    """Every position as a sequence of its own."""
    columns = {n: v for n, v in rows.columns.items() if COLUMNS[n].level not in ("row", "prompt")}
    off = np.arange(rows.tokens + 1)
    return Rows.from_columns(columns, {"position": off, "prompt": np.zeros_like(off)})


def drawn(rows: Rows, index: int) -> list[bytes]:
    """All integers of a sequence."""
    one = rows.slice(index, index + 1).columns
    return [value.tobytes() for value in one.values() if value.dtype.kind != "f"]


# ---------------------------------------------------------------------------------------------
# Agreement


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_every_record_is_the_one_transformers_makes(
    vllm: Scorer, transformers: Scorer, record: Record
) -> None:
    rows = sequences(25)
    assert rows.lengths("prompt").max() + rows.lengths("position").max() > 2 * 48
    assert (vllm.vocab_size, vllm.logits) == (transformers.vocab_size, transformers.logits)
    done: list[int] = []
    found = vllm.score(rows, record, SEED, done.append)
    assert_same(found, transformers.score(rows, record, SEED))
    assert sum(done) == rows.tokens


def test_log_p_is_that_of_a_plain_forward(vllm: Scorer, teacher: Path) -> None:
    rows = sequences(12)
    log_p_TV = log_probs(load_model(teacher, "float32", "cpu"), rows)
    found = vllm.score(rows, HeadTail(tau=0.05), SEED)
    expected_T = log_p_TV[np.arange(rows.tokens), rows["tok"]]
    np.testing.assert_allclose(found["lp"], expected_T, atol=2e-5)
    entropy_T = -(np.exp(log_p_TV) * log_p_TV).sum(axis=1)
    np.testing.assert_allclose(found["ent"], entropy_T, atol=2e-3)  # float16


def test_other_seeds_draw_other_ids(vllm: Scorer) -> None:
    rows, record = sequences(6), Counts(draws=8)
    one, two = (vllm.score(rows, record, seed)["ids"] for seed in (-1, 2**70 + 5))
    assert len(one) != len(two) or (one != two).any()


def test_sequences_of_no_and_of_one_position(vllm: Scorer, transformers: Scorer) -> None:
    rng = np.random.default_rng(5)
    lengths = [(4, 0), (3, 1), (BLOCK, 1), (1, 1), (40, 0), (1, CONTEXT)]
    rows = Rows.from_sequences(
        sequence(i, rng.integers(0, REAL, p), rng.integers(0, REAL, t), rng)
        for i, (p, t) in enumerate(lengths)
    )
    for record in RECORDS.values():
        assert_same(vllm.score(rows, record, SEED), transformers.score(rows, record, SEED))
        empty = rows.take([0, 4])
        assert_same(vllm.score(empty, record, SEED), transformers.score(empty, record, SEED))
    nothing = rows.take([])
    assert_same(
        vllm.score(nothing, HeadTail(), SEED), transformers.score(nothing, HeadTail(), SEED)
    )


def with_prompt(rows: Rows, prompt: np.ndarray) -> Rows:
    return Rows.from_sequences([rows.sequence(0) | {"seq_id": 99, "prompt": prompt}])


def test_what_cannot_be_scored_is_refused_as_transformers_does(
    vllm: Scorer, transformers: Scorer
) -> None:
    rows = sequences(2)
    cases: list[tuple[type[Exception], Rows, Record]] = [
        (DataError, with_prompt(rows, np.zeros(CONTEXT, int)), HeadTail()),
        (DataError, with_prompt(rows, np.zeros(0, int)), HeadTail()),
        (DataError, with_prompt(rows, np.array([REAL])), HeadTail()),
        (ConfigError, rows, HeadTail(candidates=5)),
    ]
    for kind, bad, record in cases:
        with pytest.raises(kind) as expected:
            transformers.score(bad, record, SEED)
        with pytest.raises(kind) as found:
            vllm.score(bad, record, SEED)
        assert str(found.value) == str(expected.value)


# ---------------------------------------------------------------------------------------------
# Whatever the engine does in between


def test_neither_order_nor_batches_matter(
    vllm: Scorer, vllm_slot: EngineSlot, teacher: Path
) -> None:
    rows, record = sequences(25), RECORDS["copies"]
    in_pieces = vllm.score(rows, record, SEED)
    order = np.random.default_rng(1).permutation(len(rows))
    assert_same(vllm.score(rows.take(order), record, SEED), in_pieces.take(order))
    assert_same(vllm.score(rows.take([4]), record, SEED), in_pieces.take([4]))
    whole = vllm_slot.open_scorer(teacher, **WHOLE)
    assert_same(whole.score(rows, record, SEED), in_pieces)


def responses_alike() -> Rows:
    """Twelve responses to two prompts: several begin alike, two are the same throughout."""
    rng = np.random.default_rng(3)
    items: list[dict[str, Any]] = []
    for length in (3 * BLOCK + 7, BLOCK - 5):
        prompt = rng.integers(0, REAL, length)
        common = rng.integers(0, REAL, 3 * BLOCK)
        for alike in (0, 0, BLOCK, 2 * BLOCK + 9, 3 * BLOCK, 3 * BLOCK):
            tok = np.concatenate([common[:alike], rng.integers(0, REAL, 3 * BLOCK - alike)])
            items.append(sequence(len(items), prompt, tok, rng))
    return Rows.from_sequences(items)


@contextmanager
def spied(scorer: Any, name: str) -> Iterator[list[Any]]:
    """Calls of a method of the scorer's engine: (arguments, result)."""
    engine, calls = scorer._engine, []
    original = getattr(engine, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        calls.append((args, result))
        return result

    setattr(engine, name, wrapper)
    try:
        yield calls
    finally:
        delattr(engine, name)


@pytest.mark.parametrize("options", [WHOLE, IN_PIECES], ids=["whole", "in pieces"])
def test_prompts_are_shared_and_no_position_is_lost(
    vllm_slot: EngineSlot, teacher: Path, transformers: Scorer, options: Any
) -> None:
    rows, record = responses_alike(), RECORDS["head_tail"]
    scorer = vllm_slot.open_scorer(teacher, **options)
    with spied(scorer, "add_request") as asked, spied(scorer, "step") as steps:
        found = scorer.score(rows, record, SEED)
    assert_same(found, transformers.score(rows, record, SEED))
    cached = [output.num_cached_tokens for _, outputs in steps for output in outputs]
    assert sum(n >= 3 * BLOCK for n in cached) >= 5  # the first prompt was computed once
    again = [args for args, _ in asked if args[2].skip_reading_prefix_cache]
    assert 3 <= len(again) == len(asked) - len(rows) <= 7  # responses that begin alike


def test_records_are_the_same_with_and_without_the_prefix_cache(
    vllm_slot: EngineSlot, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight responses to a prompt: cold, from a cache that has all of it, and without reading it.

    On a GPU this is the other model runner of vLLM.
    """
    rng = np.random.default_rng(4)
    prompt = rng.integers(0, REAL, 3 * BLOCK + 7)
    responses = [rng.integers(0, REAL, 2 * BLOCK) for _ in range(8)]
    rows = Rows.from_sequences([sequence(i, prompt, tok, rng) for i, tok in enumerate(responses)])
    scorer, record = vllm_slot.open_scorer(teacher, **WHOLE), RECORDS["head_tail"]
    cold = scorer.score(rows, record, SEED)
    with spied(scorer, "step") as steps:
        warm = scorer.score(rows, record, SEED)
    assert sum(output.num_cached_tokens >= BLOCK for _, found in steps for output in found) >= 7
    monkeypatch.setattr(vllm_scorer, "_Ask", partial(vllm_scorer._Ask, cached=False))
    with spied(scorer, "step") as steps:
        without = scorer.score(rows, record, SEED)
    assert not any(output.num_cached_tokens for _, found in steps for output in found)
    assert_same(warm, cold)
    assert_same(without, cold)


def test_a_sequence_that_is_preempted_starts_over(vllm: Any, transformers: Scorer) -> None:
    rows, record = sequences(25), RECORDS["head_tail"]
    with spied(vllm, "step") as undisturbed:
        vllm.score(rows, record, SEED)
    preempt_at = {n * (n + 5) // 2 for n in range(1, 20)}  # ever longer pauses: it comes to an end
    original: Callable[[], Any] = vllm._engine.step
    steps = itertools.count(1)

    def step() -> Any:
        if next(steps) in preempt_at:  # every sequence under way loses its cache and waits again
            vllm._engine.reset_prefix_cache(reset_running_requests=True)
        return original()

    vllm._engine.step = step
    try:
        found = vllm.score(rows, record, SEED)
    finally:
        del vllm._engine.step
    assert next(steps) - 1 > len(undisturbed) > 10
    assert_same(found, transformers.score(rows, record, SEED))


# ---------------------------------------------------------------------------------------------
# Other models


def test_a_head_of_another_kind(tmp_path: Path, vllm_slot: EngineSlot) -> None:
    """Tied weights, a softcap on the logits, attention over a window."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=ROWS, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, query_pre_attn_scalar=32,
        max_position_embeddings=CONTEXT, sliding_window=40, final_logit_softcapping=3.0,
        layer_types=["sliding_attention", "full_attention"], bos_token_id=None, eos_token_id=1,
        pad_token_id=0,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(5.0)
    model.save_pretrained(tmp_path)
    tokenizer(LETTERS).save_pretrained(tmp_path)
    rows, record = sequences(15), Sampled()
    with open_scorer(tmp_path, "float32", ScoreRun(device="cpu")) as scorer:
        expected = scorer.score(rows, record, SEED)
    assert expected["lp"].std() > 0.5
    assert_same(vllm_slot.open_scorer(tmp_path).score(rows, record, SEED), expected, atol=2e-3)


def test_bfloat16_stays_as_near_to_float32_as_transformers_does(
    teacher: Path, vllm_slot: EngineSlot, transformers: Scorer
) -> None:
    rows, record = sequences(25), RECORDS["head_tail"]
    exact = transformers.score(rows, record, SEED)
    with open_scorer(teacher, "bfloat16", ScoreRun(device="cpu")) as scorer:
        expected = scorer.score(rows, record, SEED)
    found = vllm_slot.open_scorer(teacher, "bfloat16").score(rows, record, SEED)
    error = np.abs(found["lp"] - exact["lp"])
    own = np.abs(expected["lp"] - exact["lp"])
    assert error.max() < 2 * own.max() < 0.1
    assert error.mean() < 1.5 * own.mean() < 0.02
    np.testing.assert_allclose(found["lp"], expected["lp"], atol=0.08)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that says NaN once it has seen a certain token, of a long context."""
    directory = tmp_path_factory.mktemp("damaged")
    write_teacher(directory, head_dim=32, context=1 << 16)
    model = load_model(directory, "float32", "cpu")
    embeddings: Any = model.get_input_embeddings()
    with torch.no_grad():
        embeddings.weight[NAN_ID] = torch.nan
    model.save_pretrained(directory)
    return directory


def test_nan_is_named_by_sequence_and_position(damaged: Path, vllm_slot: EngineSlot) -> None:
    rng = np.random.default_rng(0)
    clean = rng.integers(NAN_ID + 1, REAL, 100)
    bad = clean.copy()
    bad[-10] = NAN_ID
    rows = Rows.from_sequences(
        [sequence(6, clean[:5], clean, rng), sequence(8, clean[:5], bad, rng)]
    )
    scorer = vllm_slot.open_scorer(damaged, kv_cache_mib=1, **IN_PIECES)
    with pytest.raises(EngineError) as found:
        scorer.score(rows, HeadTail(candidates=0), SEED)
    named = re.match(
        r"sequence 8, position (\d+) \(token (\d+)\): the logits hold NaN", str(found.value)
    )
    assert named, found.value
    position = int(named[1])
    # Attention may spread NaN over the tokens of the step that meets it, but to none before.
    assert 92 - 48 < position <= 91
    assert int(named[2]) == bad[position]
    again = scorer.score(rows.take([0]), HeadTail(candidates=0), SEED)
    assert np.isfinite(again["lp"]).all()


def test_a_sequence_beyond_the_cache_is_refused(damaged: Path, vllm_slot: EngineSlot) -> None:
    scorer = vllm_slot.open_scorer(damaged, kv_cache_mib=1, **IN_PIECES)
    long = with_prompt(sequences(1), np.full(1 << 15, NAN_ID + 1))
    with pytest.raises(ConfigError, match=r"sequence 99 has 3\d+ tokens.*cache holds .*run.kv_ca"):
        scorer.score(long, HeadTail(), SEED)


def test_generation_goes_on_after_scoring(
    vllm: Scorer, vllm_slot: EngineSlot, teacher: Path, tiny_model: Path
) -> None:
    """What is registered for scoring does not stay behind, and can come back."""
    rows, record = sequences(3), Sampled()
    before = vllm.score(rows, record, SEED)
    generate = vllm_slot.open(tiny_model).generate
    request = Request(0, np.array([1, 5], np.uint32), 0)
    assert [len(c.tok) for c in generate([request], Sampling(max_tokens=3, temperature=0))] == [3]
    assert_same(vllm_slot.open_scorer(teacher).score(rows, record, SEED), before)
