"""`sft-data` and `rollouts` on a real engine: what a set holds, and what decides it."""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipeline.planning.fingerprint import identity
from stages import rollouts, sft_data
from stages.config.candidates import Candidates, Coverage
from stages.config.data import Sampling
from stages.config.generation import GenerateRun, Rollouts, SftData
from stages.config.record_kinds import HeadTail
from stages.config.records import TeacherLogits
from stages.engines.base import Completion, Generator, Request
from stages.engines.open import open_generator
from stages.generation import SampleOrder, held_out_count
from stages.job import Input, Job
from stages.models.identity import TOKENIZER_FIELDS, model_identity
from stages.models.tokenizer import load_tokenizer
from stages.parts import split_parts
from storage.errors import ConfigError, DataError, EngineError, SequenceError
from storage.manifest import Manifest, SetIdentity, build_manifest, read_manifest, write_manifest
from storage.rows import Rows
from storage.schema import FINISH, NOT_RIGHT, OUTCOME
from storage.sets import verify_set
from storage.shard import read_meta
from tests.conftest import CONTEXT, EngineSlot
from tests.storage import make
from tests.world import LETTERS, make_job, run, write_model

TASK: dict[str, Any] = {
    "prompts": {"task": "addition", "first": 100, "limit": 10},
    "n": 3,
    "sampling": {"max_tokens": 12},
    "verifier": {"kind": "exact_match", "extract": r">(\d+)"},
    "sequences_per_part": 7,
    "run": {"max_sequences": 8, "kv_cache_mib": 64},
}


def job_of(module: ModuleType, root: Path, model: Path, seed: int = 0, **fields: Any) -> Job[Any]:
    """A job of either stage."""
    made_here = module is rollouts
    table, role = (Rollouts, "model") if made_here else (SftData, "teacher")
    config = table.model_validate({**TASK, **({"holdout": 0.2} if made_here else {}), **fields})
    stage = module.__name__.removeprefix("stages.").replace("_", "-")
    return make_job(root, stage, config, {role: Input(str(model))}, seed)


def complete(job: Job[Any], engine: Generator) -> Manifest:
    """Made from the last part to the first by an engine that is there."""
    return run(job, engine=engine, backwards=True)


def rows_of(job: Job[Any], split: str | None = None) -> Rows:
    """All rows of a set in its own order."""
    return make.rows_of(job.directory, split)


def by_id(rows: Rows) -> dict[int, dict[str, Any]]:
    """Sequences by seq_id, arrays as lists."""
    sequences = [rows.sequence(index) for index in range(len(rows))]
    return {
        one["seq_id"]: {name: np.asarray(value).tolist() for name, value in one.items()}
        for one in sequences
    }


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, vllm_slot: EngineSlot
) -> Job[Any]:
    """A finished set of rollouts."""
    job = job_of(rollouts, tmp_path_factory.mktemp("store"), tiny_model)
    complete(job, vllm_slot.open(tiny_model))
    return job


def test_responses_cut_at_the_limit_are_counted_and_warned_of(
    tmp_path: Path,
    tiny_model: Path,
    transformers_engine: Generator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for limit in (1, 50):
        caplog.clear()
        job = job_of(rollouts, tmp_path, tiny_model, sampling={"max_tokens": limit}, n=1)
        counts = complete(job, transformers_engine).meta["finish"]
        cut = int((rows_of(job)["finish"] == FINISH["length"]).sum())
        assert counts == {"stop": 10 - cut, "length": cut}
        said = f"({cut}) were cut at sampling.max_tokens = {limit}" in caplog.text
        assert said == (cut > 1)
        assert said or limit > 1


# ---------------------------------------------------------------------------------------------
# Order


@given(
    st.integers(1, 40), st.integers(1, 5), st.floats(0, 1), st.integers(1, 50), st.integers(0, 99)
)
def test_parts_hold_every_sequence_once(
    prompts: int, n: int, share: float, per_part: int, seed: int
) -> None:
    order = SampleOrder(prompts, held_out_count(prompts, share), n, seed)
    pairs: dict[str, list[tuple[int, int]]] = {"train": [], "holdout": []}
    parts = split_parts(order.boundary, prompts * n, per_part)
    for index, spec in enumerate(parts):
        assert spec.index == index
        assert 1 <= spec.count <= per_part
        prompt, sample = order.places(spec.first, spec.count)
        pairs[spec.split] += zip(prompt.tolist(), sample.tolist(), strict=True)
    together = pairs["train"] + pairs["holdout"]
    assert sorted(together) == [(p, s) for p in range(prompts) for s in range(n)]
    held_out = {prompt for prompt, _ in pairs["holdout"]}
    assert not held_out & {prompt for prompt, _ in pairs["train"]}
    assert len(held_out) == order.held_out


def test_a_prefix_of_a_set_holds_every_prompt_before_any_twice() -> None:
    prompt, sample = SampleOrder(prompts=10, held_out=2, n=3, seed=0).places(0, 24)
    assert sample.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert len(set(prompt[:8].tolist())) == 8
    assert prompt[:8].tolist() == prompt[8:16].tolist() != sorted(prompt[:8].tolist())


@pytest.mark.parametrize(
    ("total", "share", "expected"),
    [(10, 0.0, 0), (10, 0.001, 1), (10, 0.25, 2), (10, 0.999, 9), (10, 1.0, 10), (1, 0.5, 0)],
)
def test_how_many_are_held_out(total: int, share: float, expected: int) -> None:
    assert held_out_count(total, share) == expected


# ---------------------------------------------------------------------------------------------
# What a set holds


@pytest.mark.engine
def test_rollouts_hold_what_offline_distillation_needs(done: Job[Any], tiny_model: Path) -> None:
    assert verify_set(done.directory) == []
    rows = rows_of(done)
    assert len(rows) == 30
    np.testing.assert_array_equal(
        rows["seq_id"], rows["prompt_id"] * done.config.n + rows["sample"]
    )
    assert set(rows["prompt_id"]) == set(range(100, 110))
    assert len(rows["cand"]) == 4 * rows.tokens
    assert (rows["ref_lp"] <= 0).all()
    tokenizer = load_tokenizer(tiny_model)
    for one in by_id(rows).values():
        assert one["finish"] == (0 if one["tok"][-1] == 2 else 1)
        assert 1 <= len(one["tok"]) <= 12
        assert str(tokenizer.decode(one["prompt"])).startswith("<bos>")
    assert set(rows["outcome"]) <= set(NOT_RIGHT)  # the tiny model knows nothing, and that is kept
    cut = rows["outcome"] == OUTCOME["cut"]
    np.testing.assert_array_equal(cut, rows["finish"] == FINISH["length"])
    counted = read_manifest(done.directory).meta["outcomes"]
    assert counted["cut"] == int(cut.sum())
    assert sum(counted.values()) == len(rows)


def test_candidates_that_cover_a_mass_are_stored_and_scored(
    tmp_path: Path, tiny_model: Path, plain_engine: Generator
) -> None:
    """From rollouts to heads: as many of pi_ref's ids as were asked for, position by position."""
    job = job_of(rollouts, tmp_path, tiny_model, candidates={"mass": 0.7, "at_most": 9})
    manifest = complete(job, plain_engine)
    assert verify_set(job.directory) == []
    assert (manifest.meta["candidates"], manifest.meta["candidate_mass"]) == (9, 0.7)
    rows = rows_of(job)
    nc_T = rows["nc"].astype(int)
    assert len(set(nc_T.tolist())) > 2
    assert ((nc_T >= 1) & (nc_T <= 9)).all()
    scoring = TeacherLogits.model_validate(
        {"record": {"tau": 0.9, "candidates": {"mass": 0.7, "at_most": 9}}}
    )
    inputs = {
        "teacher": Input(str(tiny_model)),
        "sequences": Input(str(job.directory), job.key),
    }
    scored = make_job(tmp_path, "teacher-logits", scoring, inputs)
    run(scored)
    assert verify_set(scored.directory) == []
    heads = rows_of(scored)
    # The teacher is pi_ref: the head is the candidates and what the tail's weight pushes in.
    assert heads.tokens == rows.tokens
    assert (heads["nh"].astype(int) >= nc_T).all()
    assert (heads["nh"].astype(int) == nc_T).mean() > 0.5
    assert (heads["rest"][nc_T < 9] <= 0.3 + 1e-5).all()
    wrong = scoring.model_copy(
        update={"record": HeadTail(tau=0.9, candidates=Coverage(mass=0.8, at_most=9))}
    )
    with pytest.raises(
        ConfigError, match=r"mass is 0\.8, but the sequences of .* what covers 0\.7"
    ):
        run(make_job(tmp_path, "teacher-logits", wrong, inputs))


@pytest.mark.engine
def test_the_manifest_says_how_the_set_was_made(done: Job[Any], tiny_model: Path) -> None:
    manifest = read_manifest(done.directory)
    identity = model_identity(tiny_model, "float32").to_json()
    assert manifest.meta["generator"] == identity
    assert manifest.meta["sampling"] == done.config.sampling.model_dump(mode="json")
    assert manifest.meta["full_support"] is True
    assert (manifest.meta["candidates"], manifest.meta["vocab_size"]) == (4, 17)
    assert manifest.meta["stop_ids"] == [2]
    assert manifest.meta["prompts"]["kept"] == 10
    assert manifest.tokenizer == {name: identity[name] for name in TOKENIZER_FIELDS}
    footer = read_meta(done.directory / manifest.parts[0].file)
    assert (footer.key, footer.candidates, footer.vocab_size) == (done.key, 4, 17)
    json.dumps(manifest.to_json(), allow_nan=False)


def test_answers_of_the_teacher_are_held_out_where_the_recipe_asks_for_it(
    tmp_path: Path, tiny_model: Path
) -> None:
    """And only there: without the field, the parts and the key are what they were."""
    job = job_of(sft_data, tmp_path, tiny_model, holdout=0.2)
    assert [(spec.split, spec.count) for spec in sft_data.plan(job)] == [
        ("train", 7), ("train", 7), ("train", 7), ("train", 3), ("holdout", 6),
    ]  # fmt: skip
    none = job_of(sft_data, tmp_path, tiny_model)
    assert {spec.split for spec in sft_data.plan(none)} == {"train"}
    assert "holdout" not in identity(none.config)
    assert "holdout" in identity(job.config)


@pytest.mark.engine
def test_held_out_prompts_are_in_parts_of_their_own(done: Job[Any]) -> None:
    train, held_out = rows_of(done, "train"), rows_of(done, "holdout")
    assert (len(train), len(held_out)) == (24, 6)
    assert not set(train["prompt_id"]) & set(held_out["prompt_id"])


@pytest.mark.engine
def test_right_and_wrong_responses_are_marked(
    tmp_path: Path, tiny_model: Path, vllm_engine: Generator
) -> None:
    """Reference answers taken from what the model says: every other one right, one without."""
    settings = {"sampling": {"max_tokens": 12}, "n": 1, "verifier": {"kind": "exact_match"}}
    first = job_of(sft_data, tmp_path / "first", tiny_model, **settings)
    complete(first, vllm_engine)
    tokenizer = load_tokenizer(tiny_model)
    said = sorted(by_id(rows_of(first)).values(), key=lambda one: one["prompt_id"])
    lines = []
    for place, one in enumerate(said):
        prompt = str(tokenizer.decode(one["prompt"][1:]))
        text = str(tokenizer.decode(one["tok"], skip_special_tokens=True))
        answer = {} if place == 0 else {"answer": text if place % 2 else text + "!"}
        lines.append(json.dumps({"prompt": prompt, **answer}))
    # `prompt_id` names the stream of random numbers: rows before put them in the same places.
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join([json.dumps({"prompt": "0"})] * 100 + lines))
    source = {"path": str(path), "first": 100}
    again = job_of(sft_data, tmp_path / "again", tiny_model, **settings, prompts=source)
    complete(again, vllm_engine)
    marked = sorted(by_id(rows_of(again)).values(), key=lambda one: one["prompt_id"])
    assert [one["tok"] for one in marked] == [one["tok"] for one in said]
    not_right = {FINISH["stop"]: OUTCOME["wrong"], FINISH["length"]: OUTCOME["cut"]}
    assert [one["outcome"] for one in marked] == [
        -1,
        *(1 if place % 2 else not_right[one["finish"]] for place, one in enumerate(marked[1:], 1)),
    ]


# ---------------------------------------------------------------------------------------------
# What decides it


@pytest.mark.engine
def test_parts_batches_and_attempts_change_nothing(
    done: Job[Any], tmp_path: Path, tiny_model: Path, vllm_engine: Generator
) -> None:
    other = job_of(rollouts, tmp_path, tiny_model, sequences_per_part=30)
    complete(other, vllm_engine)
    assert by_id(rows_of(other)) == by_id(rows_of(done))
    assert rows_of(other)["seq_id"].tolist() == rows_of(done)["seq_id"].tolist()


@pytest.mark.engine
def test_fewer_prompts_are_part_of_the_same_draws(
    done: Job[Any], tmp_path: Path, tiny_model: Path, vllm_engine: Generator
) -> None:
    fewer = {"task": "addition", "first": 102, "limit": 3}
    job = job_of(rollouts, tmp_path, tiny_model, prompts=fewer)
    complete(job, vllm_engine)
    everything = by_id(rows_of(done))
    assert {i: everything[i] for i in range(306, 315)} == by_id(rows_of(job))


@pytest.mark.engine
def test_seed_and_stage_change_the_draws(
    done: Job[Any], tmp_path: Path, tiny_model: Path, vllm_engine: Generator
) -> None:
    drawn = {i: one["tok"] for i, one in by_id(rows_of(done)).items()}
    seeded = job_of(rollouts, tmp_path / "seed", tiny_model, seed=1)
    staged = job_of(sft_data, tmp_path / "stage", tiny_model)
    for job in (seeded, staged):
        complete(job, vllm_engine)
        others = {i: one["tok"] for i, one in by_id(rows_of(job)).items()}
        assert others.keys() == drawn.keys()
        assert sum(others[i] == drawn[i] for i in drawn) < 6


class Restless:
    """An engine that does not repeat itself: it takes two requests ahead and forgets some."""

    repeats = False

    def __init__(self, engine: Generator, forgotten: int = -1) -> None:
        self.facts, self._engine, self._forgotten = engine.facts, engine, forgotten
        self.taken = 0

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, candidates: Candidates = 0
    ) -> Iterator[Completion]:
        """Answers of the engine, the last asked for first."""
        source = iter(requests)
        while pair := list(islice(source, 2)):
            self.taken += len(pair)
            answers = list(self._engine.generate(pair, sampling, candidates))
            yield from (one for one in reversed(answers) if one.seq_id != self._forgotten)


@pytest.fixture
def plain_engine(tiny_model: Path) -> Iterator[Generator]:
    options = GenerateRun(engine="transformers", max_sequences=8)
    with open_generator(tiny_model, dtype="float32", run=options, max_model_len=CONTEXT) as engine:
        yield engine


def test_an_engine_that_does_not_repeat_draws_over_the_ends_of_parts(
    tmp_path: Path, tiny_model: Path, plain_engine: Generator
) -> None:
    alone = job_of(rollouts, tmp_path / "alone", tiny_model)
    together = job_of(rollouts, tmp_path / "together", tiny_model)
    complete(alone, plain_engine)
    engine = Restless(plain_engine)
    parts = rollouts.run_shards(together, rollouts.plan(together), engine)
    assert next(parts).index == 0
    assert engine.taken == 8  # the first part has 7
    assert [part.index for part in parts] == [1, 2, 3, 4]
    rollouts.commit(together)
    complete(together, plain_engine)
    tokens = {i: one["tok"] for i, one in by_id(rows_of(alone)).items()}
    assert {i: one["tok"] for i, one in by_id(rows_of(together)).items()} == tokens
    assert rows_of(together)["seq_id"].tolist() == rows_of(alone)["seq_id"].tolist()


def test_an_engine_that_forgets_a_request_is_an_error(
    tmp_path: Path, tiny_model: Path, plain_engine: Generator
) -> None:
    job = job_of(rollouts, tmp_path, tiny_model)
    engine = Restless(plain_engine, forgotten=302)
    with pytest.raises(EngineError, match="sequence 302: the engine ended without"):
        list(rollouts.run_shards(job, rollouts.plan(job), engine))


# ---------------------------------------------------------------------------------------------
# Whom it descends from


@pytest.mark.engine
def test_sft_data_names_the_teacher_and_keeps_its_tokenizer(
    tmp_path: Path, tiny_model: Path, vllm_engine: Generator
) -> None:
    job = job_of(sft_data, tmp_path, tiny_model)
    manifest = complete(job, vllm_engine)
    assert manifest.teacher == model_identity(tiny_model, "float32").to_json()
    kept = {file.path for file in manifest.files}
    assert {"tokenizer/tokenizer.json", "tokenizer/chat_template.jinja"} <= kept
    assert load_tokenizer(job.site / "tokenizer").eos_token_id == 2
    assert verify_set(job.directory) == []
    assert "cand" not in rows_of(job)
    footer = read_meta(job.directory / manifest.parts[0].file)
    # Byte for byte what footers said before manifests told what a tokenizer does.
    named = ("path", "files", "weights", "tokenizer", "chat_template", "dtype")
    teacher = model_identity(tiny_model, "float32").to_json()
    assert footer.teacher == {name: teacher[name] for name in named}


@pytest.mark.engine
def test_rollouts_hand_on_the_teacher_of_their_model(
    tmp_path: Path, tiny_model: Path, vllm_engine: Generator
) -> None:
    reference = Path(shutil.copytree(tiny_model, tmp_path / "pi_ref"))
    teacher = {"path": "somewhere", "files": {"model.safetensors": "ab"}, "tokenizer": "cd"}
    made = build_manifest(
        reference, SetIdentity("sft", 1, "0" * 64, "sft", "model", {}, teacher=teacher)
    )
    write_manifest(reference, made)
    job = job_of(rollouts, tmp_path / "store", reference)
    assert complete(job, vllm_engine).teacher == teacher


@pytest.mark.engine
def test_a_model_from_elsewhere_has_no_known_teacher(done: Job[Any]) -> None:
    assert read_manifest(done.directory).teacher is None


def test_that_the_teacher_is_unknown_is_said_once(
    tmp_path: Path, tiny_model: Path, plain_engine: Generator, caplog: pytest.LogCaptureFixture
) -> None:
    job = job_of(rollouts, tmp_path, Path(shutil.copytree(tiny_model, tmp_path / "theirs")))
    assert len(complete(job, plain_engine).parts) == 5
    said = [line for line in caplog.messages if "not made by Afterglow" in line]
    assert len(said) == 1


# ---------------------------------------------------------------------------------------------
# Bad input


def test_a_prompt_too_long_for_the_model_stops_the_plan(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "1+1="}\n{"prompt": "' + "1+" * 40 + '"}\n')
    job = job_of(rollouts, tmp_path, tiny_model, prompts={"path": str(path)})
    message = rf"prompts\.jsonl, row 1: the prompt has 81 tokens, .* context is {CONTEXT}"
    with pytest.raises(DataError, match=message):
        rollouts.plan(job)


def test_an_engine_limit_that_would_cut_responses_is_refused(
    tmp_path: Path, tiny_model: Path
) -> None:
    job = job_of(rollouts, tmp_path, tiny_model, run={"max_model_len": 12})
    with pytest.raises(ConfigError, match=r"run\.max_model_len = 12"), rollouts.open_engine(job):
        raise AssertionError("the engine started")


def test_a_stage_opens_its_own_engine(tmp_path: Path, tiny_model: Path) -> None:
    job = job_of(rollouts, tmp_path, tiny_model, run={"engine": "transformers"})
    with rollouts.open_engine(job) as engine:
        complete(job, engine)
    assert len(rows_of(job)) == 30


@pytest.mark.engine
@pytest.mark.parametrize("name", ["vllm", "transformers"])
def test_a_model_of_damaged_weights_is_an_error_and_leaves_nothing(
    tmp_path: Path, tiny_model: Path, vllm_slot: EngineSlot, name: str
) -> None:
    damaged = Path(shutil.copytree(tiny_model, tmp_path / "damaged"))
    weights = load_file(damaged / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], torch.nan)
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    job = job_of(rollouts, tmp_path / "store", damaged)
    job.directory.mkdir(parents=True)
    with ExitStack() as stack:
        if name == "vllm":
            engine = vllm_slot.open(damaged)
        else:
            options = GenerateRun(engine="transformers")
            opened = open_generator(damaged, dtype="float32", run=options, max_model_len=CONTEXT)
            engine = stack.enter_context(opened)
        with pytest.raises(EngineError, match=r"not\s+finite"):
            next(rollouts.run_shards(job, rollouts.plan(job), engine))
    assert not list(job.directory.glob("*part*"))


def test_a_sequence_without_finite_log_probs_is_skipped_when_asked(tmp_path: Path) -> None:
    """A model that says NaN after the letter c: the other sequences are the same in any parts."""
    model = write_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    c = 2 + LETTERS.index("c")
    weights["model.embed_tokens.weight"][c] = torch.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    prompts = [a + b for a in LETTERS for b in LETTERS]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    settings: dict[str, Any] = {
        "prompts": {"path": str(path)},
        "n": 2,
        "sampling": {"max_tokens": 3},
        "run": {"engine": "transformers"},
    }
    with pytest.raises(SequenceError, match=r'sequence \d+, position \d.*on_bad_sequence = "skip"'):
        run(job_of(rollouts, tmp_path / "stop", model, **settings))
    settings["on_bad_sequence"] = "skip"
    with pytest.raises(SequenceError, match=r"max_bad_share = 0.01 lets at most 2 be skipped"):
        run(job_of(rollouts, tmp_path / "few", model, **settings))
    settings["max_bad_share"] = 1.0
    jobs = [
        job_of(rollouts, tmp_path / str(per_part), model, **settings, sequences_per_part=per_part)
        for per_part in (13, 200)
    ]
    manifests = [run(job) for job in jobs]
    found = by_id(rows_of(jobs[0]))
    again = by_id(rows_of(jobs[1]))
    assert {i: one["tok"] for i, one in found.items()} == {i: o["tok"] for i, o in again.items()}
    assert {one.meta["skipped"] for one in manifests} == {2 * len(prompts) - len(found)}
    assert 20 < len(found) < 2 * 81
    assert all(c not in one["prompt"] + one["tok"][:-1] for one in found.values())
    stopping = {"on_bad_sequence": "stop", "max_bad_share": 0.5, "sequences_per_part": 13}
    assert jobs[0].key == job_of(rollouts, tmp_path, model, **settings | stopping).key
