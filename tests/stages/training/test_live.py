"""The live comparison: prompts and records as offline, contexts from the current student."""

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from stages import train
from stages.config.candidates import Coverage
from stages.config.record_kinds import HeadTail
from stages.config.training import Student
from stages.job import Input, Job
from stages.models.facts import model_facts
from stages.models.model import load_model
from stages.training.live import LiveSource
from stages.training.metrics import read
from storage.batch import Batch
from storage.errors import DataError
from storage.manifest import read_manifest, write_manifest
from storage.stream import Stream
from tests.world import (
    VOCABULARY,
    World,
    make_job,
    make_world,
    weights,
    write_model,
)


def live(world: World, **meta: object) -> LiveSource:
    return LiveSource(
        prompts=Stream(world.records.directory, seed=3, batch_size=8),
        student=load_model(world.reference, "float32", "cpu").train(),
        facts=model_facts(world.reference),
        teacher=load_model(world.teacher, "float32", "cpu"),
        meta=dict(read_manifest(world.records.directory).meta) | meta,
        seed=3,
        dtype=torch.float32,
        rows_per_chunk=64,
        tokens_per_batch=4096,
    )


def same(a: Batch, b: Batch) -> bool:
    names = ("seq_id", "prompt", "tok", "ref_lp", "lp", "ids", "weight", "rest")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def log_probs(directory: Path, batch: Batch) -> np.ndarray:
    """Log-probabilities of the response tokens under the model in `directory`."""
    model = load_model(directory, "float32", "cpu")
    found = []
    for row in range(len(batch)):
        one = batch.select([row])
        ids = torch.from_numpy(np.concatenate([one.prompt, one.tok]))
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, len(one.prompt) - 1 : -1]
        logp = logits[:, :VOCABULARY].log_softmax(-1)
        found.append(logp.gather(1, torch.from_numpy(one.tok)[:, None])[:, 0].numpy())
    return np.concatenate(found)


def test_prompts_are_those_of_the_offline_step_and_responses_are_fresh(world: World) -> None:
    source, stored = live(world), Stream(world.records.directory, seed=3, batch_size=8)
    seen: list[int] = []
    for _ in range(10):  # runs over the end of an epoch
        fresh, offline = next(source), next(stored)
        np.testing.assert_array_equal(fresh.prompt, offline.prompt)
        np.testing.assert_array_equal(fresh.prompt_id, offline.prompt_id)
        assert not np.array_equal(fresh.tok, offline.tok)
        seen += fresh.seq_id.tolist()
    assert len(set(seen)) == 80
    stored.close()
    assert source.steps_per_epoch == stored.steps_per_epoch


def test_records_are_the_teachers_and_ref_lp_is_the_students(world: World) -> None:
    batch = next(live(world))
    assert batch.lp is not None
    assert batch.ref_lp is not None
    np.testing.assert_allclose(batch.lp, log_probs(world.teacher, batch), atol=1e-4)
    np.testing.assert_allclose(batch.ref_lp, log_probs(world.reference, batch), atol=1e-4)
    head = np.add.reduceat(batch.exact, batch.entry_off[:-1])
    assert (head >= 2).all()  # the student's own candidates are in the head


def test_candidates_are_kept_as_the_stored_rollouts_keep_them(tmp_path: Path) -> None:
    """At one token a response, a student at pi_ref visits what pi_ref visited: heads agree."""
    kept = Coverage(mass=0.8, at_most=6)
    record = HeadTail(tau=0.5, candidates=Coverage(mass=0.8, at_most=4))
    world = make_world(tmp_path, record, candidates=kept)
    fresh = next(live(world, sampling={"max_tokens": 1}))
    stream = Stream(world.records.directory, seed=3, batch_size=8)
    stored = next(stream)
    stream.close()
    heads = [
        [set(one.ids[a:b][one.exact[a:b]].tolist()) for a, b in pairwise(one.entry_off)]
        for one in (fresh, stored)
    ]
    first = [heads[1][place] for place in stored.tok_off[:-1]]
    assert heads[0] == first
    assert len({len(head) for head in first}) > 1


def test_samples_follow_the_current_weights(world: World) -> None:
    source = live(world)
    before = next(source)
    source.load_state_dict(source.state_dict() | {"step": 0})
    assert same(next(source), before)
    source.load_state_dict(source.state_dict() | {"step": 0})
    with torch.no_grad():
        source.student.get_output_embeddings().weight.neg_()  # type: ignore[union-attr]
    assert not same(next(source), before)


def test_sampling_leaves_the_student_in_training_mode(world: World) -> None:
    source = live(world)
    next(source)
    assert source.student.training


def test_sampling_settings_are_those_of_the_stored_rollouts(world: World) -> None:
    """At top_k = 1 each token is the likeliest one, drawn with probability 1."""
    batch = next(live(world, sampling={"top_k": 1, "max_tokens": 2}))
    assert batch.ref_lp is not None
    np.testing.assert_allclose(batch.ref_lp, 0.0, atol=1e-6)
    assert int(np.diff(batch.tok_off).max()) == 2


def job(world: World, store: Path, teacher: Path, consistency: str = "refuse") -> Job[Student]:
    config = Student.model_validate(
        {
            "data": "live",
            "steps": 8,
            "batch_size": 16,
            "learning_rate": 3e-3,
            "consistency": consistency,
            "run": {"log_every": 4, "checkpoint_every": 3},
        }
    )
    inputs = {"init": world.init, "records": world.records, "teacher": Input(str(teacher))}
    return make_job(store, "train", config, inputs)


def test_the_stage_trains_live_and_resumes_bit_for_bit(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = job(world, tmp_path / "calm", world.teacher)
    manifest = train.run(calm)
    assert manifest.meta["live"] is True
    assert manifest.meta["last"]["drift_chi2"] == pytest.approx(0.0, abs=1e-4)
    assert manifest.teacher == read_manifest(world.records.directory).teacher

    rough = job(world, tmp_path / "rough", world.teacher)
    steps = LiveSource.__next__
    left = 5

    def interrupted(self: LiveSource) -> Batch:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return steps(self)

    with monkeypatch.context() as patch:
        patch.setattr(LiveSource, "__next__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.run(rough)
    train.run(rough)
    ours, theirs = weights(rough.site), weights(calm.site)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_bfloat16_student_from_scratch_trains_live(world: World, tmp_path: Path) -> None:
    """No directory to read end tokens from, and sampling and training under autocast in turn."""
    teacher = Input(str(world.teacher))
    config = Student.model_validate(
        {
            "data": "live",
            "init": "scratch",
            "steps": 12,
            "batch_size": 16,
            "learning_rate": 1e-2,
            "architecture": {"hidden_size": 32, "layers": 1, "heads": 2},
            "run": {"log_every": 4},
        }
    )
    inputs = {"records": bfloat16_teacher(world, tmp_path), "teacher": teacher}
    made = make_job(tmp_path / "store", "train", config, inputs)
    train.run(made)
    losses = [float(line["loss"] or 0) for line in read(made.site / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    assert {tensor.dtype for tensor in weights(made.site).values()} == {torch.bfloat16}


def bfloat16_teacher(world: World, target: Path) -> Input:
    """The world's records, whose teacher says it ran in bfloat16."""
    shutil.copytree(Path(world.records.path), target / "records")
    manifest = read_manifest(world.records.directory)
    (target / "records" / "manifest.json").unlink()
    teacher = {**(manifest.teacher or {}), "dtype": "bfloat16"}
    write_manifest(target / "records", replace(manifest, teacher=teacher))
    return Input(str(target / "records"), manifest.key)


def test_another_live_teacher_is_refused(world: World, tmp_path: Path) -> None:
    stranger = write_model(tmp_path / "stranger", 9)
    with pytest.raises(DataError, match=r"differing: .*model\.safetensors"):
        train.run(job(world, tmp_path / "store", stranger))
