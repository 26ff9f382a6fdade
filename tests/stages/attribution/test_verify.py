"""Whole sets against whole models: a trained teacher, what it sampled and what it scored."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.attribution.checks import DrawnCheck, previous_tokens
from stages.attribution.observe import LoadedModel
from stages.attribution.verify import Finding, Settings, verify_teacher
from stages.config.data import Sampling
from stages.config.record_kinds import Counts, HeadTail, Record, Sampled, TopK
from stages.job import Input
from storage.errors import DataError
from storage.rows import Rows, offsets_of
from storage.stream import read_split
from tests.stages.attribution.cases import (
    answers,
    perturbed,
    records,
    rewritten,
    train_teacher,
)
from tests.storage.make import rows_of
from tests.world import without, write_model

COUNT = 400


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def answered(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answers(tmp_path_factory.mktemp("answers"), teacher, COUNT)


@pytest.fixture(scope="module")
def tokens_only(answered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same answers without the log-probabilities they were drawn with."""
    target = tmp_path_factory.mktemp("tokens") / "set"
    return rewritten(answered, target, without(rows_of(answered), "ref_lp"))


def ask(model: Path, directory: Path, **question: Any) -> Finding:
    (found,) = verify_teacher(Input(str(model)), [directory], Settings(**question))
    return found


def by_chance(found: Finding) -> bool:
    """Whether the statistical tests, and not a direct comparison, reject."""
    return any("log p + H" in why or "proportions" in why for why in found.reasons)


# ---------------------------------------------------------------------------------------------
# Sequences


def test_the_true_teacher_is_consistent(teacher: Path, answered: Path, tokens_only: Path) -> None:
    found = ask(teacher, answered)
    figures = found.figures
    assert found.verdict == "consistent"
    assert found.named
    assert (found.sequences, found.tokens) == (COUNT, len(rows_of(answered)["tok"]))
    assert abs(figures["z"] or 9) < 4
    assert figures["impossible"] == 0
    assert (figures["stored_gap"] or 1) < 1e-4
    assert ask(teacher, tokens_only).figures["stored_gap"] is None
    assert ask(teacher, tokens_only).figures["z"] == figures["z"]


def test_over_seeds_z_is_standard_normal(teacher: Path, tmp_path: Path) -> None:
    """Forty draws of forty answers each, from one set: sequences are independent draws."""
    directory = answers(tmp_path, teacher, 1600, seed=1)
    model = LoadedModel.load(teacher, "float32", "cpu")
    z: list[float] = []
    check = DrawnCheck(model.class_V, 1e-4, False, 1.0)
    for batch in read_split(directory, "train"):
        for chunk, seen in model.observe(batch, Sampling(), 64):
            check.add(batch, chunk, seen)
        z.append(check.evidence.z or math.nan)
        check = DrawnCheck(model.class_V, 1e-4, False, 1.0)
    assert len(z) == 50
    assert np.abs(z).max() < 4
    assert abs(np.mean(z)) < 4 / math.sqrt(len(z))
    assert 0.65 < np.std(z) < 1.4


@pytest.mark.parametrize("size", [0.1, 0.3])
def test_a_perturbed_teacher_is_rejected(
    teacher: Path, tokens_only: Path, tmp_path: Path, size: float
) -> None:
    found = ask(perturbed(teacher, tmp_path / "other", size), tokens_only)
    assert by_chance(found)
    assert not found.named


def test_a_slightly_perturbed_one_is_given_away_by_stored_log_probabilities(
    teacher: Path, answered: Path, tmp_path: Path
) -> None:
    found = ask(perturbed(teacher, tmp_path / "other", 0.04), answered)
    assert any("stored log-prob" in why for why in found.reasons)


@pytest.mark.parametrize("temperature", [0.8, 1.25])
def test_a_wrong_temperature_is_rejected(
    teacher: Path, answered: Path, tokens_only: Path, tmp_path: Path, temperature: float
) -> None:
    assert by_chance(ask(teacher, tokens_only, temperature=temperature))
    drawn = answers(tmp_path, teacher, COUNT, seed=2, temperature=temperature)
    assert not ask(teacher, drawn).rejected
    assert ask(teacher, drawn).sampling.temperature == temperature
    assert by_chance(ask(teacher, drawn, temperature=1.0))


@pytest.mark.parametrize("what", ["no first token", "last token twice"])
def test_another_chat_template_is_rejected(
    teacher: Path, tokens_only: Path, tmp_path: Path, what: str
) -> None:
    """The prompts rendered otherwise than where the answers were drawn."""
    rows = rows_of(tokens_only)
    prompts = np.split(rows["prompt"], rows.offsets["prompt"][1:-1])
    if what == "no first token":
        other = [prompt[1:] for prompt in prompts]
    else:
        other = [np.r_[prompt, prompt[-1:]] for prompt in prompts]
    columns = dict(rows.columns) | {"prompt": np.concatenate(other)}
    offsets = {"prompt": offsets_of([len(p) for p in other]), "position": rows.offsets["position"]}
    changed = rewritten(tokens_only, tmp_path / "set", Rows.from_columns(columns, offsets))
    assert by_chance(ask(teacher, changed))


def test_truncated_responses_count_like_others(teacher: Path, tmp_path: Path) -> None:
    cut = answers(tmp_path, teacher, COUNT, seed=3, max_tokens=7)
    assert rows_of(cut)["finish"].mean() > 0.9
    found = ask(teacher, cut)
    assert found.verdict == "consistent"
    assert abs(found.figures["z"] or 9) < 4


def test_a_cut_distribution_is_cut_for_the_model_too(teacher: Path, tmp_path: Path) -> None:
    cut = answers(tmp_path / "a", teacher, COUNT, seed=4, top_p=0.9, top_k=5)
    found = ask(teacher, cut)
    assert found.verdict == "consistent"
    assert found.figures["impossible"] == 0
    claimed = rewritten(
        cut, tmp_path / "whole", without(rows_of(cut), "ref_lp"), sampling=Sampling().model_dump()
    )
    assert by_chance(ask(teacher, claimed))
    whole = answers(tmp_path / "b", teacher, COUNT, seed=5)
    sampling = Sampling(top_p=0.9, top_k=5).model_dump()
    claimed = rewritten(whole, tmp_path / "cut", rows_of(whole), sampling=sampling)
    assert "could not have been drawn" in ask(teacher, claimed).reasons[0]


def test_greedy_answers_are_checked_token_by_token(teacher: Path, tmp_path: Path) -> None:
    greedy = answers(tmp_path, teacher, 100, temperature=0.0)
    found = ask(teacher, greedy)
    assert found.verdict == "consistent"
    assert found.figures["z"] is None
    assert ask(perturbed(teacher, tmp_path / "other", 0.3), greedy).rejected
    assert ask(teacher, greedy, temperature=1.0).rejected


def test_a_sample_is_bounded_and_always_the_same(teacher: Path, answered: Path) -> None:
    first, again = (ask(teacher, answered, tokens=900) for _ in range(2))
    assert first == again
    assert 900 <= first.tokens < 900 + 32 * 41
    assert first.sequences % 32 == 0
    sizes = ask(teacher, answered, tokens=900, tokens_per_batch=100, rows_per_chunk=7)
    assert sizes.figures["z"] == pytest.approx(first.figures["z"], abs=1e-3)


def test_too_little_to_tell(teacher: Path, answered: Path, tmp_path: Path) -> None:
    """One sequence of which only the last token counts as drawn."""
    one = rows_of(answered).take([0])
    columns = one.columns | {name: one[name][-1:] for name in ("tok", "ref_lp")}
    columns["prompt"] = np.r_[one["prompt"], one["tok"][:-1]]
    offsets = {"prompt": [0, len(columns["prompt"])], "position": [0, 1]}
    short = rewritten(answered, tmp_path / "set", Rows.from_columns(columns, offsets))
    assert ask(teacher, short).verdict == "undecided"


def test_the_token_before_each_position(answered: Path) -> None:
    batch = next(read_split(answered, "train")).select(range(3))
    before = previous_tokens(batch)
    for n in range(3):
        prompt = batch.prompt[batch.prompt_off[n] : batch.prompt_off[n + 1]]
        tok = batch.tok[batch.tok_off[n] : batch.tok_off[n + 1]]
        found = before[batch.tok_off[n] : batch.tok_off[n + 1]]
        assert found.tolist() == [prompt[-1], *tok[:-1]]


# ---------------------------------------------------------------------------------------------
# Records


KINDS = [
    Sampled(),
    Counts(draws=20),
    HeadTail(candidates=0),
    TopK(k=5),
    Sampled(temperature=0.7),
]


@pytest.mark.parametrize("record", KINDS, ids=lambda r: f"{r.kind}-{r.temperature}")
def test_records_agree_with_their_teacher_only(
    teacher: Path, answered: Path, tmp_path: Path, record: Record
) -> None:
    scored = records(answered, tmp_path / "records", teacher, record)
    found = ask(teacher, scored)
    assert found.verdict == "consistent"
    assert found.sampling.temperature == record.temperature
    assert (found.figures["lp_gap"] or 1) < 2e-4
    other = ask(perturbed(teacher, tmp_path / "other", 0.02), scored)
    assert "log p differs" in other.reasons[0]
    assert ask(teacher, scored, temperature=0.9).rejected


@pytest.mark.parametrize("column", ["lp", "ent"])
def test_records_off_by_one_are_rejected(
    teacher: Path, answered: Path, tmp_path: Path, column: str
) -> None:
    rows = rows_of(records(answered, tmp_path / "records", teacher, Sampled()))
    shifted = Rows(rows.columns | {column: np.roll(rows[column], 1)}, rows.offsets)
    table = Sampled().model_dump()
    found = ask(teacher, rewritten(answered, tmp_path / "off", shifted, record=table))
    assert len(found.reasons) == 1


# ---------------------------------------------------------------------------------------------
# What cannot be asked


def test_what_cannot_be_asked_is_refused(teacher: Path, answered: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        ask(tmp_path / "nowhere", answered)
    with pytest.raises(DataError, match="holds model"):
        ask(teacher, teacher)
    with pytest.raises(DataError, match="does not say how its tokens were drawn"):
        ask(teacher, next(teacher.parent.glob("corpus-*")))
    other = write_model(tmp_path / "letters", 0)
    with pytest.raises(DataError, match="made with tokenizer"):
        ask(other, answered)
    table = Sampled().model_dump() | {"correction": {"folds": 5}}
    plain = rows_of(records(answered, tmp_path / "r", teacher, Sampled()))
    corrected = rewritten(answered, tmp_path / "c", plain, record=table)
    with pytest.raises(DataError, match="corrected after scoring"):
        ask(teacher, corrected)


def test_a_set_of_unknown_sampling_can_be_asked_with_a_temperature(
    teacher: Path, tokens_only: Path, tmp_path: Path
) -> None:
    unknown = rewritten(tokens_only, tmp_path / "set", rows_of(tokens_only), sampling=None)
    with pytest.raises(DataError, match="--temperature"):
        ask(teacher, unknown)
    assert not ask(teacher, unknown, temperature=1.0).rejected
    assert ask(teacher, unknown, temperature=0.7).rejected


def test_a_sequence_beyond_the_context_is_refused(teacher: Path, answered: Path) -> None:
    model = LoadedModel.load(teacher, "float32", "cpu")
    batch = next(read_split(answered, "train"))
    long = replace(
        batch,
        prompt=np.concatenate([np.full(60, 3), batch.prompt]),
        prompt_off=np.r_[0, batch.prompt_off[1:] + 60],
    )
    with pytest.raises(DataError, match=r"takes 64"):
        model.check_fits(long, "set")
    high = replace(batch, tok=np.where(batch.tok == batch.tok.max(), 999, batch.tok))
    with pytest.raises(DataError, match="token id 999"):
        model.check_fits(high, "set")
    model.check_fits(batch, "set")
