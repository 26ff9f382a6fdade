"""Figures on held-out text against brute force over the whole vocabulary."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from stages.config.record_kinds import Sampled
from stages.evaluation.text import score_text
from stages.losses.full_teacher import FullTeacher
from stages.models.model import load_model
from storage.errors import DataError
from tests.stages.evaluation.cases import COUNT, LENGTH, PROMPT, random_rows, scored
from tests.world import VOCABULARY, write_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A teacher and an unrelated student."""
    root = tmp_path_factory.mktemp("models")
    return write_model(root / "teacher", 1), write_model(root / "student", 2)


@pytest.fixture(scope="module")
def text(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scored(tmp_path_factory.mktemp("text"), models[0], Sampled())


def probabilities(directory: Path, sequences: int = COUNT) -> tuple[Tensor, Tensor]:
    """Distributions [T, V] and tokens [T] of the first sequences, by a plain forward pass."""
    rows = random_rows(0)
    prompt_NL = torch.from_numpy(rows["prompt"].astype("int64")).view(COUNT, PROMPT)[:sequences]
    tok_NL = torch.from_numpy(rows["tok"].astype("int64")).view(COUNT, LENGTH)[:sequences]
    with torch.no_grad():
        model = load_model(directory, "float32", "cpu")
        logits = model(input_ids=torch.cat([prompt_NL, tok_NL], dim=1)).logits
    p_TV = logits[:, PROMPT - 1 : -1].flatten(0, 1).softmax(-1)
    return p_TV, tok_NL.flatten()


def score(student: Path, text: Path, teacher: Path | None, limit: int | None = None) -> dict:
    loaded = FullTeacher.load(teacher, "float32", CPU) if teacher else None
    model = load_model(student, "float32", "cpu")
    return score_text(model, text, loaded, sequences=limit, tokens_per_batch=100)


@pytest.mark.parametrize("sequences", [COUNT, 40])
def test_every_figure_is_exact(models: tuple[Path, Path], text: Path, sequences: int) -> None:
    teacher, student = models
    found = score(student, text, teacher, sequences)
    (p_TV, tok_T), (q_TV, _) = (probabilities(model, sequences) for model in models)
    q_T = q_TV.gather(1, tok_T[:, None])[:, 0]
    assert found["text_tokens"] == sequences * LENGTH
    assert found["text_loss"] == pytest.approx(-q_T.log().mean().item(), abs=1e-5)
    kl = (p_TV * (p_TV / q_TV).log()).sum(-1).mean().item()
    assert found["text_kl"] == pytest.approx(kl, abs=1e-5)
    distance = 0.5 * (p_TV - q_TV).abs().sum(-1).mean().item()
    assert found["acceptance"] == pytest.approx(1 - distance, abs=1e-5)
    assert 0 < found["text_loss_se"] < 0.2

    confidence_T, top_T = q_TV.max(-1)
    bin_T = (confidence_T * 15).long().clamp(max=14)
    gaps = torch.zeros(15).index_add(0, bin_T, confidence_T - (top_T == tok_T).float())
    assert found["text_ece"] == pytest.approx(gaps.abs().sum().item() / len(tok_T), abs=1e-5)


def test_the_teacher_accepts_itself(models: tuple[Path, Path], text: Path) -> None:
    found = score(models[0], text, models[0])
    assert found["acceptance"] == pytest.approx(1.0, abs=1e-5)
    assert found["text_kl"] == pytest.approx(0.0, abs=1e-5)


def test_padding_of_the_students_vocabulary_is_mass_lost(
    models: tuple[Path, Path], text: Path
) -> None:
    teacher = FullTeacher.load(models[0], "float32", CPU)
    model = load_model(models[1], "float32", "cpu")
    before = score_text(model, text, teacher, sequences=None, tokens_per_batch=100)
    model.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
    after = score_text(model, text, teacher, sequences=None, tokens_per_batch=100)
    assert float(str(after["acceptance"])) < float(str(before["acceptance"]))
    assert float(str(after["text_kl"])) > float(str(before["text_kl"]))


def test_without_a_teacher_there_is_no_comparison(models: tuple[Path, Path], text: Path) -> None:
    found = score(models[1], text, None)
    assert set(found) == {"text_tokens", "text_ece", "text_loss", "text_loss_se"}


def test_nothing_held_out_is_said(models: tuple[Path, Path], tmp_path: Path) -> None:
    trained = scored(tmp_path, models[0], Sampled(), split="train")
    with pytest.raises(DataError, match="no held-out sequences"):
        score(models[1], trained, None)
