"""Students that other versions and tools have saved, through every stage that reads the teacher's
ids: sampling, scoring, training, and SFT on the teacher's answers.
"""

from pathlib import Path

import pytest
import torch

from stages.config.generation import Rollouts, SftData
from stages.config.records import TeacherLogits
from stages.config.training import Sft, Student
from stages.job import Input, Job
from stages.models.facts import model_facts
from stages.models.model import lm_head
from stages.models.tokenizer import copy_tokenizer
from storage.errors import DataError
from storage.manifest import Manifest
from tests.world import make_job, random_model, run

SAVED = Path(__file__).parent / "saved"
ROWS = 384
"""Of a student's head: padded, as `resize_token_embeddings` does."""


def model(directory: Path, tokenizer: str, seed: int, rows: int) -> Path:
    """A random model with a tokenizer as it was saved; ids that others lack are unlikely."""
    made = random_model(seed, vocab_size=rows, begin=None, end=0, pad=None, context=128)
    with torch.no_grad():
        weight = lm_head(made).weight
        weight.mul_(40.0)
        weight[305 if "qwen" in tokenizer else 320 :] = 0.0
    made.save_pretrained(directory)
    copy_tokenizer(SAVED / tokenizer, directory)
    return directory


@pytest.fixture
def prompts(tmp_path: Path) -> dict[str, object]:
    file = tmp_path / "prompts.jsonl"
    lines = [f'{{"prompt": [{{"role": "user", "content": "the cat {i}"}}]}}' for i in range(8)]
    file.write_text("\n".join(lines))
    return {"path": str(file)}


def made(job: Job[object]) -> tuple[Input, Manifest]:
    manifest = run(job)
    return Input(str(job.directory), job.key), manifest


def generated(
    root: Path, stage: str, source: Path, prompts: dict[str, object]
) -> tuple[Input, Manifest]:
    table, role = (Rollouts, "model") if stage == "rollouts" else (SftData, "teacher")
    options = {"prompts": prompts, "sampling": {"max_tokens": 6}, "n": 1}
    options |= {"run": {"engine": "transformers"}}
    config = table.model_validate(options)
    return made(make_job(root, stage, config, {role: Input(str(source))}))


@pytest.mark.parametrize(
    "copy",
    ["qwen/saved-4.46", "qwen/trl-1.16", "qwen/chat-5.19", "llama/peft-0.21", "llama/pad-4.46"],
)
def test_the_teacher_scores_them_and_they_learn(
    tmp_path: Path, copy: str, prompts: dict[str, object]
) -> None:
    family = copy.split("/")[0]
    teacher = model(tmp_path / "teacher", f"{family}/original", 1, 320)
    student = model(tmp_path / "student", copy, 2, ROWS)
    sequences, _ = generated(tmp_path / "store", "rollouts", student, prompts)
    scoring = TeacherLogits.model_validate({"record": {"tau": 0.05, "candidates": 4}})
    roles = {"teacher": Input(str(teacher)), "sequences": sequences}
    records, manifest = made(make_job(tmp_path / "store", "teacher-logits", scoring, roles))
    assert manifest.meta["vocab_size"] == model_facts(teacher).vocab_size
    learning = Student.model_validate({"steps": 1, "batch_size": 4, "learning_rate": 1e-3})
    roles = {"data": records, "init": Input(str(student))}
    _, manifest = made(make_job(tmp_path / "store", "train", learning, roles))
    assert manifest.meta["agreement"] is not None  # the trainer has compared itself with the engine


@pytest.mark.parametrize("copy", ["qwen/chat-4.46", "llama/trl-1.16"])
def test_they_learn_from_the_answers_of_the_teacher(
    tmp_path: Path, copy: str, prompts: dict[str, object]
) -> None:
    family = copy.split("/")[0]
    teacher = model(tmp_path / "teacher", f"{family}/original", 1, 320)
    student = model(tmp_path / "student", copy, 2, ROWS)
    sequences, _ = generated(tmp_path / "store", "sft-data", teacher, prompts)
    config = Sft.model_validate({"steps": 1, "batch_size": 4, "learning_rate": 1e-3})
    roles = {"base": Input(str(student)), "sequences": sequences}
    _, manifest = made(make_job(tmp_path / "store", "sft", config, roles))
    assert manifest.meta["steps"] == 1


def test_a_sequence_with_a_token_the_teacher_lacks_is_named(
    tmp_path: Path, prompts: dict[str, object]
) -> None:
    teacher = model(tmp_path / "teacher", "qwen/original", 1, 320)
    student = model(tmp_path / "student", "qwen/chat-5.19", 2, ROWS)
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "use the <tool_call> now"}')
    sequences, _ = generated(tmp_path / "store", "rollouts", student, prompts)
    roles = {"teacher": Input(str(teacher)), "sequences": sequences}
    config = TeacherLogits.model_validate({"record": {"tau": 0.05, "candidates": 4}})
    job = make_job(tmp_path / "store", "teacher-logits", config, roles)
    with pytest.raises(DataError, match=r"id 306 in column 'prompt'.*tokenizer has added"):
        run(job)


def test_a_student_without_rows_for_all_ids_of_the_teacher_is_refused(
    tmp_path: Path, prompts: dict[str, object]
) -> None:
    teacher = model(tmp_path / "teacher", "qwen/chat-5.19", 1, 320)
    student = model(tmp_path / "student", "qwen/original", 2, 305)
    sequences, _ = generated(tmp_path / "store", "rollouts", student, prompts)
    roles = {"teacher": Input(str(teacher)), "sequences": sequences}
    job = make_job(tmp_path / "store", "teacher-logits", TeacherLogits(), roles)
    with pytest.raises(DataError, match=r"305 ids, the teacher's 309 .* a row for each id"):
        run(job)
