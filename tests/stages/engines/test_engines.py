"""Both engines against a plain float32 forward pass, and against each other."""

import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.config.candidates import Candidates, Coverage
from stages.config.data import Sampling
from stages.config.generation import EngineRun
from stages.engines.base import Completion, Generator, Request, needed_context, sequence_seed
from stages.engines.open import open_generator
from stages.models.facts import ModelFacts, model_facts
from stages.models.model import load_model
from stages.models.tokenizer import load_tokenizer
from storage.errors import ConfigError, DataError, EngineError
from tests.conftest import CONTEXT, EngineSlot, write_chat_model

pytestmark = pytest.mark.engine

PLAIN = Sampling(max_tokens=20)
EOS = 2


@pytest.fixture(params=["vllm", "transformers"])
def engine(request: pytest.FixtureRequest) -> Generator:
    """Each engine in turn."""
    return request.getfixturevalue(f"{request.param}_engine")


def prompts(count: int) -> list[NDArray[np.uint32]]:
    """Prompts of different lengths, a begin token first."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 12, count)
    return [np.concatenate([[1], rng.integers(3, 17, n)]).astype(np.uint32) for n in lengths]


def requests(count: int) -> list[Request]:
    return [Request(i, ids, sequence_seed(0, i)) for i, ids in enumerate(prompts(count))]


def run(
    engine: Generator,
    asked: Sequence[Request],
    sampling: Sampling = PLAIN,
    candidates: Candidates = 0,
) -> dict[int, Completion]:
    """Completions by seq_id; every request is answered exactly once."""
    done = list(engine.generate(asked, sampling, candidates))
    assert sorted(c.seq_id for c in done) == sorted(r.seq_id for r in asked)
    return {completion.seq_id: completion for completion in done}


def logits(directory: Path, request: Request, completion: Completion) -> Tensor:
    """[T, V] logits of a float32 forward pass over the whole sequence."""
    model = load_model(directory, "float32", "cpu")
    sequence = np.concatenate([request.prompt_ids, completion.tok]).astype(np.int64)
    with torch.no_grad():
        out = model(torch.from_numpy(sequence)[None]).logits[0]
    return out[len(request.prompt_ids) - 1 : -1]


def open_here(directory: Path, name: str) -> AbstractContextManager[Generator]:
    """An engine opened by the test itself."""
    options = EngineRun.model_validate({"engine": name, "max_sequences": 8, "kv_cache_mib": 64})
    return open_generator(directory, dtype="float32", run=options, max_model_len=CONTEXT)


# ---------------------------------------------------------------------------------------------
# What is recorded is what happened


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_those_of_the_distribution_drawn_from(
    engine: Generator, tiny_model: Path, temperature: float
) -> None:
    asked = requests(6)
    done = run(engine, asked, Sampling(max_tokens=20, temperature=temperature))
    for request in asked:
        completion = done[request.seq_id]
        logp = (logits(tiny_model, request, completion) / temperature).log_softmax(1)
        tok = torch.from_numpy(completion.tok.astype(np.int64))
        expected = logp.gather(1, tok[:, None])[:, 0].numpy()
        np.testing.assert_allclose(completion.logprob, expected, atol=1e-4)


def test_log_probs_are_renormalised_over_restricted_support(
    engine: Generator, tiny_model: Path
) -> None:
    asked = requests(4)
    done = run(engine, asked, Sampling(max_tokens=12, top_k=5, top_p=0.8))
    for request in asked:
        completion = done[request.seq_id]
        p = logits(tiny_model, request, completion).softmax(1).double()
        for row, tok, logprob in zip(p, completion.tok, completion.logprob, strict=True):
            top = row.topk(5)
            kept = top.values / top.values.sum()
            inside = int((kept.cumsum(0) - kept < 0.8).sum())
            assert int(tok) in top.indices[:inside]
            expected = torch.log(row[int(tok)] / top.values[:inside].sum())
            assert logprob == pytest.approx(float(expected), abs=1e-4)


PENALTIES = {"repetition_penalty": 1.3, "presence_penalty": 0.7, "frequency_penalty": -0.4}


def penalised(z_TV: Tensor, request: Request, completion: Completion) -> Tensor:
    """Logits [T, V] under `PENALTIES`, one position after the other."""
    z_TV = z_TV.clone()
    for row, z_V in enumerate(z_TV):
        said = completion.tok[:row].tolist()
        for token in {*request.prompt_ids.tolist(), *said}:
            z_V[token] *= 1.3 if z_V[token] < 0 else 1 / 1.3
        for token in said:
            z_V[token] += 0.4
        for token in set(said):
            z_V[token] -= 0.7
    return z_TV


@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_penalties_are_in_the_log_probs_and_the_candidates(
    engine: Generator, tiny_model: Path, temperature: float
) -> None:
    """What is stored is what was drawn from; greedy answers are the likeliest under penalties."""
    asked = requests(6)
    sampling = Sampling.model_validate({"max_tokens": 16, "temperature": temperature, **PENALTIES})
    for seq_id, completion in run(engine, asked, sampling, candidates=3).items():
        z_TV = penalised(logits(tiny_model, asked[seq_id], completion), asked[seq_id], completion)
        logp_TV = (z_TV / (temperature or 1.0)).log_softmax(1)
        tok_T = torch.from_numpy(completion.tok.astype(np.int64))
        expected = logp_TV.gather(1, tok_T[:, None])[:, 0]
        np.testing.assert_allclose(completion.logprob, expected.numpy(), atol=2e-4)
        found = completion.cand.reshape(-1, 3).astype(np.int64)
        np.testing.assert_array_equal(found, logp_TV.topk(3, dim=1).indices.numpy())
        if temperature == 0:
            np.testing.assert_array_equal(completion.tok, found[:, 0])


def test_min_p_keeps_what_is_probable_beside_the_likeliest(
    engine: Generator, tiny_model: Path
) -> None:
    asked = requests(6)
    sampling = Sampling(max_tokens=16, min_p=0.2, temperature=1.5)
    cut = 0
    for seq_id, completion in run(engine, asked, sampling).items():
        p_TV = (logits(tiny_model, asked[seq_id], completion) / 1.5).double().softmax(1)
        for p_V, tok, logprob in zip(p_TV, completion.tok, completion.logprob, strict=True):
            kept = p_V >= 0.2 * p_V.max()
            assert kept[int(tok)]
            assert logprob == pytest.approx(
                float((p_V[int(tok)] / p_V[kept].sum()).log()), abs=2e-4
            )
            cut += int((~kept).sum())
    assert cut > 100


def test_a_response_ends_with_the_token_that_completes_a_stop_string(
    engine: Generator, tiny_model: Path
) -> None:
    """Every token up to there is kept as it would have been drawn without the string."""
    asked, words = requests(24), load_tokenizer(tiny_model)
    free = run(engine, asked, candidates=2)
    texts = {seq_id: str(words.decode(one.tok.tolist())) for seq_id, one in free.items()}
    pairs = [text[4:6] for text in texts.values() if re.fullmatch(r"[\d+=,]{2}", text[4:6])]
    strings = (pairs[0], pairs[-1])
    stopped = PLAIN.model_copy(update={"stop": strings})
    ended = run(engine, asked, stopped, candidates=2)
    covered = run(engine, asked, stopped, candidates=Coverage(mass=0.9))
    by_string = 0
    for seq_id, whole in free.items():
        one, length = ended[seq_id], len(ended[seq_id].tok)
        np.testing.assert_array_equal(one.tok, whole.tok[:length])
        np.testing.assert_allclose(one.logprob, whole.logprob[:length], atol=1e-4)
        np.testing.assert_array_equal(one.cand, whole.cand[: 2 * length])
        nc_T = covered[seq_id].nc
        assert (len(nc_T), int(nc_T.sum())) == (length, len(covered[seq_id].cand))
        text = str(words.decode(one.tok.tolist()))
        if any(string in texts[seq_id] for string in strings):
            by_string += 1
            assert one.finish == "stop"
            assert text.endswith(strings)
            assert not any(string in text[:-1] for string in strings)
        else:
            assert (length, one.finish) == (len(whole.tok), whole.finish)
    assert by_string > 2


def test_special_tokens_may_be_stop_strings(engine: Generator, tiny_model: Path) -> None:
    begin = load_tokenizer(tiny_model).bos_token
    sampling = Sampling.model_validate({"max_tokens": 20, "temperature": 2.0, "stop": [begin]})
    done = run(engine, requests(32), sampling).values()
    begun = [one for one in done if 1 in one.tok]
    assert begun
    assert all(one.tok.tolist().index(1) == len(one.tok) - 1 for one in begun)
    assert all(one.finish == "stop" for one in begun)


def test_engines_agree_on_greedy_answers_under_every_option(
    vllm_engine: Generator, transformers_engine: Generator, tiny_model: Path
) -> None:
    options = {"max_tokens": 30, "temperature": 0.0, "stop": ["+1", "7"], **PENALTIES}
    sampling = Sampling.model_validate(options)
    found = [run(one, requests(24), sampling) for one in (vllm_engine, transformers_engine)]
    for seq_id, one in found[0].items():
        assert one.tok.tolist() == found[1][seq_id].tok.tolist()
        assert one.finish == found[1][seq_id].finish
    assert {one.finish for one in found[0].values()} == {"stop", "length"}


def test_candidates_are_the_likeliest_ids_whatever_was_drawn(
    engine: Generator, tiny_model: Path
) -> None:
    asked, k = requests(6), 4
    done = run(engine, asked, candidates=k)
    drawn_elsewhere = 0
    for request in asked:
        completion = done[request.seq_id]
        expected = logits(tiny_model, request, completion).topk(k, dim=1).indices
        found = completion.cand.reshape(-1, k).astype(np.int64)
        np.testing.assert_array_equal(found, expected.numpy())
        drawn_elsewhere += int((found != completion.tok[:, None]).all(1).sum())
    assert drawn_elsewhere > 10


@pytest.mark.parametrize("kept", [Coverage(mass=0.6), Coverage(mass=0.9, at_most=5)])
def test_candidates_are_the_fewest_that_cover_a_mass(
    engine: Generator, tiny_model: Path, kept: Coverage
) -> None:
    """Whatever was drawn; 64 at most is no error with a vocabulary of 17."""
    asked = requests(6)
    cut = 0
    for seq_id, completion in run(engine, asked, candidates=kept).items():
        p_TV = logits(tiny_model, asked[seq_id], completion).double().softmax(1)
        sorted_TV, order_TV = p_TV.sort(dim=1, descending=True)
        before_TV = sorted_TV.cumsum(1) - sorted_TV
        wanted_T = (before_TV < kept.mass).sum(1)
        count_T = wanted_T.clamp(max=kept.at_most)
        assert completion.nc.tolist() == count_T.tolist()
        expected = [ids[:n] for ids, n in zip(order_TV.tolist(), count_T.tolist(), strict=True)]
        assert completion.cand.tolist() == [i for ids in expected for i in ids]
        cut += int((wanted_T > count_T).sum())
    assert (cut > 0) == (kept.at_most == 5)


def test_eight_samples_of_one_prompt_have_the_log_probs_of_the_model(
    engine: Generator, tiny_model: Path
) -> None:
    """Twice, so that a prefix cache, where an engine has one, is read by all of them."""
    ids = np.concatenate([[1], np.random.default_rng(5).integers(3, 17, 39)]).astype(np.uint32)
    for attempt in range(2):
        asked = [Request(i, ids, sequence_seed(attempt, i)) for i in range(8)]
        for seq_id, completion in run(engine, asked, candidates=2).items():
            logp_TV = logits(tiny_model, asked[seq_id], completion).log_softmax(1)
            tok_T = torch.from_numpy(completion.tok.astype(np.int64))
            expected = logp_TV.gather(1, tok_T[:, None])[:, 0].numpy()
            np.testing.assert_allclose(completion.logprob, expected, atol=1e-4)


def test_without_candidates_none_are_kept(engine: Generator) -> None:
    assert all(len(c.cand) == 0 for c in run(engine, requests(2)).values())


def test_draws_follow_the_model(engine: Generator, tiny_model: Path) -> None:
    """Pearson's chi-square over single draws; its 99.99 % point for 16 degrees is 44."""
    ids, draws = prompts(1)[0], 2000
    asked = [Request(i, ids, sequence_seed(1, i)) for i in range(draws)]
    done = run(engine, asked, Sampling(max_tokens=1))
    p = logits(tiny_model, asked[0], done[0]).softmax(1)[0].double().numpy()
    counts = np.bincount([int(c.tok[0]) for c in done.values()], minlength=len(p))
    common = p * draws >= 5
    rest_p, rest_n = p[~common].sum(), counts[~common].sum()
    expected = np.append(p[common], rest_p) * draws
    observed = np.append(counts[common], rest_n)
    assert (np.square(observed - expected) / np.maximum(expected, 1e-9)).sum() < 44


def test_responses_end_with_the_end_token_or_at_the_limit(engine: Generator) -> None:
    done = run(engine, requests(48), Sampling(max_tokens=12)).values()
    stopped = [c for c in done if c.finish == "stop"]
    cut = [c for c in done if c.finish == "length"]
    assert stopped
    assert cut
    assert all(c.tok[-1] == EOS and EOS not in c.tok[:-1] for c in stopped)
    assert all(len(c.tok) == 12 and EOS not in c.tok for c in cut)
    assert all(len(c.tok) == len(c.logprob) for c in done)


def test_the_end_token_drawn_last_is_a_stop(engine: Generator) -> None:
    """At the token limit the end token still counts as the end."""
    ids = prompts(1)[0]
    asked = [Request(i, ids, sequence_seed(2, i)) for i in range(200)]
    done = run(engine, asked, Sampling(max_tokens=1, temperature=1.5)).values()
    assert {c.finish for c in done if c.tok[0] == EOS} == {"stop"}
    assert {c.finish for c in done if c.tok[0] != EOS} == {"length"}


# ---------------------------------------------------------------------------------------------
# Seeds and batches


def test_responses_do_not_depend_on_the_batch(engine: Generator) -> None:
    asked = requests(24)
    together = run(engine, asked, candidates=2)
    for alone in (list(reversed(asked))[::5], asked[3:4]):
        for seq_id, completion in run(engine, alone, candidates=2).items():
            np.testing.assert_array_equal(completion.tok, together[seq_id].tok)
            np.testing.assert_allclose(completion.logprob, together[seq_id].logprob, atol=1e-5)
            np.testing.assert_array_equal(completion.cand, together[seq_id].cand)


def test_other_seeds_give_other_responses(engine: Generator) -> None:
    ids = prompts(1)[0]
    asked = [Request(i, ids, sequence_seed(0, i)) for i in range(16)]
    said = {c.tok.tobytes() for c in run(engine, asked).values()}
    assert len(said) > 12


def test_both_engines_agree_greedily(
    vllm_engine: Generator, transformers_engine: Generator
) -> None:
    greedy = Sampling(max_tokens=20, temperature=0)
    one = run(vllm_engine, requests(10), greedy, candidates=3)
    other = run(transformers_engine, requests(10), greedy, candidates=3)
    for seq_id, completion in one.items():
        np.testing.assert_array_equal(completion.tok, other[seq_id].tok)
        np.testing.assert_allclose(completion.logprob, other[seq_id].logprob, atol=1e-4)
        np.testing.assert_array_equal(completion.cand, other[seq_id].cand)
        np.testing.assert_array_equal(completion.tok, completion.cand[::3])


def test_sequence_seeds_differ_by_seed_and_sequence() -> None:
    seeds = {sequence_seed(seed, seq_id) for seed in range(20) for seq_id in range(200)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 1 << 63 for seed in seeds)


# ---------------------------------------------------------------------------------------------
# Limits and errors


def test_a_response_ends_where_the_context_does(engine: Generator) -> None:
    ids = np.full(CONTEXT - 3, 5, np.uint32)
    asked = [Request(i, ids, sequence_seed(3, i)) for i in range(12)]
    done = run(engine, asked, Sampling(max_tokens=50)).values()
    assert max(len(c.tok) for c in done) == 3
    assert all(c.finish == "length" for c in done if len(c.tok) == 3 and c.tok[-1] != EOS)


def test_a_prompt_that_fills_the_context_is_refused_by_name(engine: Generator) -> None:
    full = Request(77, np.full(CONTEXT, 5, np.uint32), 0)
    with pytest.raises(DataError, match=rf"sequence 77: .*{CONTEXT} tokens.*context is {CONTEXT}"):
        list(engine.generate([*requests(2), full], PLAIN))
    run(engine, requests(2))  # and the engine goes on


def test_more_candidates_than_ids_are_refused(engine: Generator) -> None:
    with pytest.raises(ConfigError, match="candidates = 18, but the vocabulary has 17"):
        list(engine.generate(requests(1), PLAIN, candidates=18))


def test_an_engine_left_half_way_can_be_used_again(engine: Generator) -> None:
    asked = requests(24)
    whole = run(engine, asked)
    half = engine.generate(asked, PLAIN)
    next(half)
    half.close()  # type: ignore[reportAttributeAccessIssue]
    again = run(engine, asked)
    assert all(np.array_equal(whole[i].tok, again[i].tok) for i in whole)


@pytest.mark.parametrize("name", ["vllm", "transformers"])
def test_padding_of_the_vocabulary_is_never_drawn(
    tmp_path: Path, vllm_slot: EngineSlot, name: str
) -> None:
    """47 of 64 rows mean nothing: they get no draw, no candidate and no share of the mass.

    Nor do sampling settings that a model brings along decide anything.
    """
    write_chat_model(tmp_path, rows=64)
    brought = {"temperature": 0.3, "top_k": 2, "top_p": 0.5, "repetition_penalty": 1.8}
    settings = tmp_path / "generation_config.json"
    own = json.loads(settings.read_text()) if settings.exists() else {}
    settings.write_text(json.dumps({**own, **brought, "do_sample": True, "max_new_tokens": 1}))
    asked = requests(8)
    if name == "vllm":
        done = run(vllm_slot.open(tmp_path), asked, candidates=17)
    else:
        with open_here(tmp_path, "transformers") as generator:
            done = run(generator, asked, candidates=17)
    for request in asked:
        completion = done[request.seq_id]
        assert max(completion.tok.max(), completion.cand.max()) < 17
        logp = logits(tmp_path, request, completion)[:, :17].log_softmax(1)
        tok = torch.from_numpy(completion.tok.astype(np.int64))
        expected = logp.gather(1, tok[:, None])[:, 0].numpy()
        np.testing.assert_allclose(completion.logprob, expected, atol=1e-4)


def test_an_end_token_that_is_the_padding_token_too_is_an_end_token(tmp_path: Path) -> None:
    """As in Llama and GPT-2: it is drawn, kept, and counted as a position like any other."""
    write_chat_model(tmp_path)
    expected = run_here(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    content = json.loads(settings.read_text())
    settings.write_text(json.dumps(content | {"pad_token": content["eos_token"]}))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": EOS}))
    assert load_tokenizer(tmp_path).pad_token_id == EOS
    found = run_here(tmp_path)
    assert any(one.finish == "stop" for one in found.values())
    for index, one in found.items():
        assert one.finish == expected[index].finish
        np.testing.assert_array_equal(one.tok, expected[index].tok)
        assert (one.tok[-1] == EOS) == (one.finish == "stop")


def run_here(directory: Path) -> dict[int, Completion]:
    with open_here(directory, "transformers") as generator:
        return run(generator, requests(24), Sampling(max_tokens=12))


def test_what_vllm_cannot_run_is_one_clear_error(tmp_path: Path, vllm_slot: EngineSlot) -> None:
    write_chat_model(tmp_path, head_dim=16)
    generator = vllm_slot.open(tmp_path)
    with pytest.raises(EngineError, match=r"head_dim=16.*run.engine = .transformers."):
        list(generator.generate(requests(1), PLAIN))
    vllm_slot.close()


def test_a_second_vllm_in_one_process_is_refused(vllm_engine: Generator, tiny_model: Path) -> None:
    with (
        pytest.raises(EngineError, match="runs a vLLM engine already"),
        open_here(tiny_model, "vllm"),
    ):
        raise AssertionError("the engine started")
    run(vllm_engine, requests(2))


# ---------------------------------------------------------------------------------------------
# What the files of a model say


def test_facts_of_a_model(tiny_model: Path) -> None:
    assert model_facts(tiny_model) == ModelFacts(17, 17, CONTEXT, (EOS,))


def test_every_end_token_counts(tmp_path: Path) -> None:
    write_chat_model(tmp_path, rows=64)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 40]}))
    facts = model_facts(tmp_path)
    assert facts.stop_ids == (EOS, 3)  # 40 is padding, which is never drawn
    assert (facts.vocab_size, facts.rows) == (17, 64)


def test_stretched_rope_lengthens_the_context(tmp_path: Path) -> None:
    write_chat_model(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"] = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": CONTEXT,
    }
    path.write_text(json.dumps(config))
    assert model_facts(tmp_path).context == 4 * CONTEXT


def test_a_directory_without_a_model_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer"):
        model_facts(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    config = (tiny_model / "tokenizer_config.json").read_bytes()
    (tmp_path / "tokenizer_config.json").write_bytes(config)
    with pytest.raises(DataError, match=r"config.json cannot be read"):
        model_facts(tmp_path)


@pytest.mark.parametrize(
    ("longest", "max_tokens", "limit", "expected"),
    [(10, 20, None, 30), (50, 20, None, CONTEXT), (10, 20, 40, 40), (10, 20, 30, 30)],
)
def test_the_context_fits_prompt_and_response(
    longest: int, max_tokens: int, limit: int | None, expected: int
) -> None:
    facts = ModelFacts(17, 17, CONTEXT, (EOS,))
    options = EngineRun(max_model_len=limit)
    assert needed_context(facts, longest, max_tokens, options) == expected


@pytest.mark.parametrize("limit", [29, CONTEXT + 1])
def test_an_execution_option_cannot_change_responses(limit: int) -> None:
    facts = ModelFacts(17, 17, CONTEXT, (EOS,))
    with pytest.raises(ConfigError, match=f"run.max_model_len = {limit}"):
        needed_context(facts, 10, 20, EngineRun(max_model_len=limit))
