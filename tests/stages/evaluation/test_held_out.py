"""The scoring pass against brute force: real tiny models, records made by the real scorer.

Responses are uniform random letters, so the behaviour policy has full support and is known; the
teacher's exact distribution at every position comes from a plain forward pass.

Shape letters: N sequences, L tokens, T positions, V vocabulary.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.config.data import Sampling
from stages.config.record_kinds import Counts, HeadTail, Record, Sampled
from stages.evaluation.held_out import measurable, score_held_out
from stages.models.model import load_model
from stages.objectives.reverse_kl import ReverseKL
from tests.stages.evaluation.cases import COUNT, LENGTH, PROMPT, random_rows, scored
from tests.world import VOCABULARY, write_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A teacher and an unrelated student."""
    root = tmp_path_factory.mktemp("models")
    return write_model(root / "teacher", 1), write_model(root / "student", 2)


def log_probs(directory: Path, temperature: float = 1.0) -> Tensor:
    """Log-probabilities at every response position by a plain forward pass: [T, V]."""
    rows = random_rows(0)
    prompt_NL = torch.from_numpy(rows["prompt"].astype(np.int64)).view(COUNT, PROMPT)
    tok_NL = torch.from_numpy(rows["tok"].astype(np.int64)).view(COUNT, LENGTH)
    with torch.no_grad():
        model = load_model(directory, "float32", "cpu")
        logits = model(input_ids=torch.cat([prompt_NL, tok_NL], dim=1)).logits
    logits_TV = logits[:, PROMPT - 1 : -1].reshape(COUNT * LENGTH, VOCABULARY)
    return torch.log_softmax(logits_TV / temperature, dim=-1)


def judge(student: Path, directory: Path) -> dict[str, object]:
    model = load_model(student, "float32", "cpu")
    return score_held_out(model, directory, tokens_per_batch=100)


def number(found: dict[str, object], name: str) -> float:
    value = found[name]
    assert isinstance(value, float)
    return value


@pytest.mark.parametrize(
    "record",
    [
        HeadTail(tau=0.2, candidates=2),
        HeadTail(tau=0.2, candidates=0),
        HeadTail(tau=0.2, candidates=2, logp=True),
        HeadTail(tau=0.2, candidates=1, temperature=1.5),
        Counts(draws=20),
        Sampled(),
    ],
    ids=str,
)
def test_divergences_agree_with_the_full_distributions(
    tmp_path: Path, models: tuple[Path, Path], record: Record
) -> None:
    teacher, student = models
    found = judge(student, scored(tmp_path / "set", teacher, record))
    logp_TV, logq_TV = (log_probs(m, record.temperature) for m in models)
    true = {
        "reverse_kl": (logq_TV.exp() * (logq_TV - logp_TV)).sum(dim=1).mean().item(),
        "forward_kl": (logp_TV.exp() * (logp_TV - logq_TV)).sum(dim=1).mean().item(),
    }
    assert found["held_out_tokens"] == COUNT * LENGTH
    entropy = -(logq_TV.exp() * logq_TV).sum(dim=1).mean().item()
    assert number(found, "entropy") == pytest.approx(entropy, rel=1e-4)
    given = {"reverse_kl"} if record.kind == "sampled" else {"reverse_kl", "forward_kl"}
    assert {name for name in true if name in found} == given
    for name in given:
        assert found[f"{name}_level"] == "unbiased"
        assert abs(number(found, name) - true[name]) < 4 * number(found, f"{name}_se")
        assert number(found, f"{name}_se") < 0.5 * true[name]
    accepted = torch.minimum(logp_TV.exp(), logq_TV.exp()).sum(dim=1).mean().item()
    assert 0.1 < accepted < 0.9
    assert found["record_acceptance_level"] == "unbiased"
    error = number(found, "record_acceptance_se")
    assert abs(number(found, "record_acceptance") - accepted) < 4 * error
    assert error < (0.2 if record.kind == "head_tail" else 0.3) * accepted


def test_calibration_agrees_with_the_full_distribution(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    teacher, student = models
    everything = HeadTail(tau=1 / 128, candidates=VOCABULARY)
    found = judge(student, scored(tmp_path / "set", teacher, everything))
    logp_TV, logq_TV = (log_probs(m) for m in models)
    confidence_T, top_T = logq_TV.exp().max(dim=1)
    teacher_T = logp_TV.exp().gather(1, top_T[:, None]).squeeze(1)
    bin_T = (confidence_T * 15).long().clamp_max(14)
    gap_B = torch.zeros(15).index_add(0, bin_T, confidence_T - teacher_T)
    assert number(found, "ece") == pytest.approx(gap_B.abs().sum().item() / len(bin_T), abs=1e-3)
    assert number(found, "ece") > 0.1


def test_the_teacher_is_at_no_distance_from_itself(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    """Also holds scorer, storage and evaluator together: a slip of one position would show."""
    teacher, _ = models
    everything = HeadTail(tau=1 / 128, candidates=VOCABULARY)
    found = judge(teacher, scored(tmp_path / "set", teacher, everything))
    for name in ("reverse_kl", "forward_kl", "ece"):
        assert abs(number(found, name)) < 2e-3
    assert number(found, "record_acceptance") == pytest.approx(1.0, abs=2e-3)


def test_without_a_held_out_split_there_are_no_figures(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    teacher, student = models
    directory = scored(tmp_path / "set", teacher, HeadTail(), split="train")
    assert judge(student, directory) == {}


def test_truncated_sampling_falls_back_to_the_lower_bound(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    teacher, student = models
    record, sampling = HeadTail(tau=0.2, candidates=2), Sampling(top_p=0.9)
    found = judge(student, scored(tmp_path / "set", teacher, record, sampling=sampling))
    assert found["reverse_kl_level"] == "lower_bound"
    logp_TV, logq_TV = (log_probs(m) for m in models)
    true = (logq_TV.exp() * (logq_TV - logp_TV)).sum(dim=1).mean().item()
    assert 0 < number(found, "reverse_kl") < true
    assert found["record_acceptance_level"] == "upper_bound"
    accepted = torch.minimum(logp_TV.exp(), logq_TV.exp()).sum(dim=1).mean().item()
    assert accepted < number(found, "record_acceptance") <= 1


def test_bfloat16_models_are_judged_in_float32_logits(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    teacher, student = models
    directory = scored(tmp_path / "set", teacher, HeadTail(tau=0.2, candidates=2))
    half = load_model(student, "bfloat16", "cpu")
    rough = score_held_out(half, directory, tokens_per_batch=100)
    exact = judge(student, directory)
    assert number(rough, "reverse_kl") == pytest.approx(number(exact, "reverse_kl"), rel=0.05)


def test_sequences_without_records_measure_nothing() -> None:
    assert measurable({"sampling": Sampling().model_dump(), "full_support": True}) == {}


def test_a_corpus_has_forward_kl_and_a_bound() -> None:
    found = measurable({"record": HeadTail().model_dump()})
    assert found["forward_kl"].level.level == "unbiased"
    assert found["reverse_kl"].level.level == "lower_bound"
    assert found["reverse_kl"].objective == ReverseKL(form="bucketed")
