"""Bad input through the command: one clear message, the documented exit code, nothing half-made."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from storage.errors import ConfigError, DataError
from tests.command import TINY, Outcome, afterglow, sets_named

BAD_DATA = DataError.exit_code


def run(target: str, *overrides: str, store: Path) -> Outcome:
    extra = [part for override in overrides for part in ("--set", override)]
    return afterglow("run", target, *TINY, *extra, store=store)


def committed(store: Path) -> set[str]:
    return {path.parent.name for path in store.glob("*/manifest.json")}


@pytest.fixture
def copy(chain: Outcome, store: Path, tmp_path: Path) -> Path:
    """A copy of the finished store, to be damaged."""
    return Path(shutil.copytree(store, tmp_path / "store"))


@pytest.fixture
def teacher(chain: Outcome, store: Path, tmp_path: Path) -> Path:
    """The demo teacher as a user's own directory."""
    source = next(path for path in store.glob("pretrain-*") if "teacher" in manifest(path)["name"])
    return Path(shutil.copytree(source, tmp_path / "teacher"))


def manifest(directory: Path) -> dict[str, str]:
    return json.loads((directory / "manifest.json").read_text())


def refused(outcome: Outcome, code: int, *words: str) -> None:
    assert outcome.code == code, outcome.err
    for word in words:
        assert word in outcome.err
    assert "Traceback" not in outcome.err


def prompts_file(tmp_path: Path, text: str) -> str:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    return f'rollouts.prompts={{path="{file}"}}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"question": "1+1="}\n', ("prompts.jsonl", "row 0", "prompt", "question")),
        ("", ("prompts.jsonl", "empty")),
        ('{"prompt": "1+1="}\n{"prompt": \n', ("prompts.jsonl", "line 2")),
        ('{"prompt": "' + "1+" * 60 + '"}\n', ("context",)),
    ],
    ids=["missing field", "empty data set", "broken line", "prompt longer than the context"],
)
def test_prompts(copy: Path, tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    before = committed(copy)
    refused(run("rollouts", prompts_file(tmp_path, text), store=copy), BAD_DATA, *words)
    assert committed(copy) == before


def test_a_missing_prompts_file_is_named(copy: Path) -> None:
    table = 'rollouts.prompts={path="nowhere.jsonl"}'
    refused(run("rollouts", table, store=copy), BAD_DATA, "nowhere.jsonl")


def test_a_model_directory_without_tokenizer(copy: Path, teacher: Path) -> None:
    for file in teacher.glob("tokenizer*"):
        file.unlink()
    refused(run("sft-data", f"teacher.path={teacher}", store=copy), BAD_DATA, "no tokenizer")


def test_a_model_that_is_not_there(copy: Path) -> None:
    outcome = run("sft-data", "teacher.path=no/such/dir", store=copy)
    refused(outcome, ConfigError.exit_code, "no/such/dir", "no such directory")


def test_a_teacher_that_differs_from_the_sft_teacher(
    copy: Path, store: Path, teacher: Path
) -> None:
    """Scoring a finished rollout set with another teacher is refused, both being named."""
    weights = load_file(teacher / "model.safetensors")
    save_file(
        {name: value + 0.01 for name, value in weights.items()}, teacher / "model.safetensors"
    )
    rollouts = next(copy.glob("rollouts-*"))
    other = (f"teacher.path={teacher}", f"teacher-logits.source={rollouts}")
    outcome = run("teacher-logits", *other, store=copy)
    refused(outcome, BAD_DATA, str(teacher), "model.safetensors", "same teacher")
    warned = run("teacher-logits", *other, "teacher-logits.consistency=warn", store=copy)
    assert warned.code == 0, warned.err
    assert "warning" in warned.err


def test_a_student_of_another_tokenizer(copy: Path, teacher: Path) -> None:
    file = teacher / "tokenizer.json"
    file.write_text(file.read_text().replace('"+"', '"*"'))
    outcome = run("train.reverse_kl", f"train.init={teacher}", store=copy)
    refused(outcome, BAD_DATA, "tokenizer", "would not match")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_that_is_not_finite(copy: Path, teacher: Path, value: float) -> None:
    weights = load_file(teacher / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], value)
    save_file(weights, teacher / "model.safetensors")
    before = committed(copy)
    rollouts = next(copy.glob("rollouts-*"))
    outcome = run(
        "teacher-logits",
        f"teacher.path={teacher}",
        f"teacher-logits.source={rollouts}",
        "teacher-logits.consistency=warn",
        store=copy,
    )
    refused(outcome, BAD_DATA, str(teacher), "logits are NaN or infinite")
    assert committed(copy) == before


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_part_that_training_finds_is_made_again(copy: Path, damage: str) -> None:
    """Just that part, by the teacher, under the same name; then training goes on."""
    (records,) = sets_named(copy, "teacher-logits")
    part, *others = sorted(records.glob("part-*.parquet"))
    whole = part.read_bytes()
    content = bytearray(whole)
    if damage == "flipped":
        content[len(content) // 3] ^= 1
    part.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    times = [other.stat().st_mtime_ns for other in others]
    outcome = run("train.reverse_kl", "train.learning_rate=2e-3", store=copy)
    assert outcome.code == 0, outcome.err
    assert part.name in outcome.err
    assert "teacher-logits: making damaged parts again: 0" in outcome.err
    assert part.read_bytes() == whole
    assert [other.stat().st_mtime_ns for other in others] == times


def test_an_objective_the_records_cannot_serve(copy: Path) -> None:
    """Before the teacher is paid for them, and once they are there."""
    sampled, forward_kl = "teacher-logits.record.kind=sampled", "train.objective.name=forward_kl"
    words = ("forward_kl cannot be trained on `sampled` records", "Either use records of kind")
    before = committed(copy)
    for target in ("teacher-logits", "train"):
        early = run(target, sampled, forward_kl, store=copy)
        refused(early, ConfigError.exit_code, *words)
    assert committed(copy) == before
    assert run("teacher-logits", sampled, store=copy).code == 0
    refused(run("train", sampled, forward_kl, store=copy), ConfigError.exit_code, *words)


def test_responses_cut_by_length_are_marked(chain: Outcome, store: Path) -> None:
    import pyarrow.parquet as pq

    from storage.schema import FINISH

    finishes = {
        value
        for part in store.glob("rollouts-*/part-*.parquet")
        for value in pq.read_table(part, columns=["finish"])["finish"].to_pylist()
    }
    assert FINISH["length"] in finishes
