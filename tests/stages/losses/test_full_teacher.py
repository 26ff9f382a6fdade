"""The full distribution: against a dense computation, and as a way to train on a corpus."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from stages import train
from stages.config.record_kinds import Counts
from stages.config.training import Student
from stages.job import Input, Job
from stages.losses.full_teacher import FullTeacher, FullTeacherLoss
from stages.models.facts import model_facts
from stages.models.model import lm_head, load_model, response_hidden
from stages.objectives.tensors import TorchRecords
from stages.training.live import LiveSource
from stages.training.metrics import read
from storage.batch import Batch
from storage.manifest import read_manifest
from storage.stream import Stream, read_split
from tests.world import (
    VOCABULARY,
    commit,
    identity,
    make_job,
    rollouts,
    score,
    without,
    write_model,
)

RECORD = Counts(draws=9)


class Corpus:
    """A teacher and its records of sequences that nobody sampled."""

    def __init__(self, root: Path) -> None:
        self.teacher = write_model(root / "teacher", 1)
        sampled = rollouts(load_model(write_model(root / "writer", 2), "float32", "cpu"), 64)
        scored = score(self.teacher, without(sampled, "ref_lp"), RECORD, seed=3)
        known = {"teacher": identity(self.teacher), "words": self.teacher}
        commit(root / "records", scored, key="cc" * 32, record=RECORD, sampling=None, **known)
        self.records = Input(str(root / "records"), "cc" * 32)

    def live(self, *, plain: bool) -> LiveSource:
        """Batches of the set from the live teacher."""
        return LiveSource(
            prompts=Stream(self.records.directory, seed=3, batch_size=8),
            student=load_model(self.teacher, "float32", "cpu"),
            facts=model_facts(self.teacher),
            teacher=load_model(self.teacher, "float32", "cpu"),
            meta=read_manifest(self.records.directory).meta,
            seed=3,
            dtype=torch.float32,
            rows_per_chunk=64,
            tokens_per_batch=4096,
            plain=plain,
        )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


def a_batch(corpus: Corpus) -> Batch:
    return next(read_split(corpus.records.directory, "train")).select(range(6))


def padded(directory: Path) -> PreTrainedModel:
    """A student whose head has rows the tokenizer does not know."""
    model = load_model(write_model(directory, 4), "float32", "cpu")
    model.resize_token_embeddings(VOCABULARY + 3, mean_resizing=False)
    return model


def dense(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """[T, V] logits of the plain forward pass, sequence by sequence."""
    found: list[torch.Tensor] = []
    for row in range(len(batch)):
        one = batch.select([row])
        ids = torch.from_numpy(np.concatenate([one.prompt, one.tok]))
        found.append(model(input_ids=ids[None]).logits[0, len(one.prompt) - 1 : -1])
    return torch.cat(found)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("temperature", "rows"), [(1.0, 3), (1.0, 1000), (1.7, 3)])
def test_value_and_gradients_are_those_of_the_dense_loss(
    corpus: Corpus, tmp_path: Path, temperature: float, rows: int, weighted: bool
) -> None:
    batch, student = a_batch(corpus), padded(tmp_path)
    teacher = FullTeacher.load(corpus.teacher, "float32", torch.device("cpu"))
    weight_T = torch.arange(batch.tokens) % 3 / 2
    loss, stats = FullTeacherLoss(teacher, temperature, rows)(
        response_hidden(student, batch),
        lm_head(student),
        batch,
        TorchRecords.from_batch(batch),
        weight_T if weighted else None,
        batch.tokens,
    )
    loss.backward()
    ours = {name: weight.grad for name, weight in student.named_parameters()}
    student.zero_grad()

    with torch.no_grad():
        p_TV = (dense(teacher.model, batch) / temperature).softmax(-1)
    logq_TW = (dense(student, batch) / temperature).log_softmax(-1)
    expected_T = (p_TV * (p_TV.log() - logq_TW[:, :VOCABULARY])).sum(-1)
    kept_T = weight_T > 0 if weighted else torch.ones_like(weight_T).bool()
    expected = (expected_T * weight_T if weighted else expected_T).mean()
    expected.backward()
    torch.testing.assert_close(stats["loss"], expected_T.detach()[kept_T])
    torch.testing.assert_close(loss.detach(), expected.detach())
    realised_T = logq_TW.gather(1, torch.from_numpy(batch.tok)[:, None])[:, 0]
    torch.testing.assert_close(stats["logq"], realised_T.detach()[kept_T])
    for name, weight in student.named_parameters():
        torch.testing.assert_close(ours[name], weight.grad, msg=name)


def test_a_micro_batch_without_weight_has_a_loss_of_zero(corpus: Corpus, tmp_path: Path) -> None:
    batch, student = a_batch(corpus), padded(tmp_path)
    teacher = FullTeacher.load(corpus.teacher, "float32", torch.device("cpu"))
    loss, stats = FullTeacherLoss(teacher, 1.0, 8)(
        response_hidden(student, batch),
        lm_head(student),
        batch,
        TorchRecords.from_batch(batch),
        torch.zeros(batch.tokens),
        batch.tokens,
    )
    loss.backward()
    assert (loss.item(), len(stats["loss"])) == (0.0, 0)


def test_a_live_teacher_scores_a_corpus_as_the_stage_has(corpus: Corpus) -> None:
    """Same sequences, same order, and, with the seed of the set, the very same draws."""
    with Stream(corpus.records.directory, seed=3, batch_size=8) as stored:
        offline = next(stored)
    for source in (corpus.live(plain=False), corpus.live(plain=True)):
        live = next(source)
        for name in ("seq_id", "prompt", "tok", "tok_off", "outcome"):
            np.testing.assert_array_equal(getattr(live, name), getattr(offline, name), name)
        if live.lp is None:
            assert len(live.ids) == 0
            continue
        for name in ("ids", "weight", "entry_off"):
            np.testing.assert_array_equal(getattr(live, name), getattr(offline, name), name)


def job(corpus: Corpus, store: Path, **fields: object) -> Job[Student]:
    config = Student.model_validate(
        {
            "init": "scratch",
            "steps": 30,
            "batch_size": 16,
            "learning_rate": 1e-2,
            "architecture": {"hidden_size": 16, "layers": 1, "heads": 2},
            "objective": {"name": "forward_kl"},
            "run": {"log_every": 10, "rows_per_chunk": 16},
            **fields,
        }
    )
    inputs = {"records": corpus.records, "teacher": Input(str(corpus.teacher))}
    return make_job(store, "train", config, inputs)


def test_the_stage_trains_on_the_full_distribution(corpus: Corpus, tmp_path: Path) -> None:
    made = job(corpus, tmp_path / "full", data="live", live="full")
    manifest = train.run(made)
    lines = read(made.site / "metrics.jsonl")
    assert float(lines[-1]["loss"] or 0) < 0.9 * float(lines[0]["loss"] or 0)
    assert manifest.meta["guarantee"]["level"] == "exact"
    assert manifest.meta["full"] is True
    records = train.run(job(corpus, tmp_path / "records", data="live"))
    assert records.meta["guarantee"]["level"] == "unbiased"


def test_only_the_forward_kl_reads_the_full_distribution(corpus: Corpus, tmp_path: Path) -> None:
    wanted = {"data": "live", "live": "full", "objective": {"name": "reverse_kl"}}
    with pytest.raises(ValidationError, match="serves the objective forward_kl, not reverse_kl"):
        job(corpus, tmp_path, **wanted)
