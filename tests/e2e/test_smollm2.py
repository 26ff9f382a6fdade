"""Recipes of a real model, shortened: through the whole chain (`make test-real`)."""

import json
from pathlib import Path

import pytest

from pipeline.planning.config import load_recipe
from storage.manifest import read_manifest
from tests.command import afterglow, sets_named

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

SHORT = {
    "sft-data.prompts.limit": 160,
    "sft.epochs": 1,
    "rollouts.prompts.limit": 128,
    "rollouts.holdout": 0.25,
    "train.learning_rate": 4e-4,  # six steps have no warm-up, which the recipe's rate needs
    "evaluate.prompts.limit": 32,
}


def test_a_real_model_goes_through_the_chain(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the extra `smollm2` is not installed")
    overrides = [part for name, value in SHORT.items() for part in ("--set", f"{name}={value}")]
    command = ("run", "report", "--recipe", "smollm2", *overrides)
    done = afterglow(*command, store=tmp_path)
    assert done.code == 0, done.err
    (report,) = sets_named(tmp_path, "report")
    lines = (report / "rows.jsonl").read_text().splitlines()
    rows = {row["model"]: row for row in map(json.loads, lines)}
    assert rows["teacher"]["reverse_kl"] == pytest.approx(0.0, abs=1e-3)
    for divergence in ("forward_kl", "reverse_kl"):
        assert rows["forward_kl"][divergence] < rows["sft"][divergence]
    (student,) = sets_named(tmp_path, "derive.student")
    assert read_manifest(student).meta["layers"] == [0, 1, 2, 8, 11, 14, 19, 23, 28, 29]
    again = afterglow(*command, store=tmp_path)
    assert again.code == 0
    assert "starting" not in again.err


def test_records_of_a_real_model_are_compared(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the extra `smollm2` is not installed")
    sizes = {"corpus.text": '["{stdlib}/json"]', "corpus.suffix": ".py", "corpus.holdout": 0.05}
    sizes |= {"teacher-logits.limit": 32, "train.steps": 16}
    sizes |= {"evaluate.gradient.batch_size": 4, "evaluate.gradient.batches": 1}
    overrides = [part for name, value in sizes.items() for part in ("--set", f"{name}={value}")]
    command = ("seeds", "--count", "1", "--recipe", "repro-rskd-smollm2", *overrides)
    done = afterglow(*command, store=tmp_path)
    assert done.code == 0, done.err
    rows = {row["model"]: row for row in done.result["rows"]}
    students = list(load_recipe("repro-rskd-smollm2").train.variants())
    assert list(rows) == ["teacher", "start", *students]
    for name in students:
        assert rows[name]["text_loss"] < rows["start"]["text_loss"]
        assert rows[name]["text_kl"] < rows["start"]["text_kl"]
    # The gradients of unbiased records point where that of the whole distribution does.
    for name in ("rs-kd", "systematic", "head-tail"):
        assert rows[name]["gradient_angle"] < rows["top-16"]["gradient_angle"]
    (words,) = {
        str(read_manifest(path).meta["vocab_size"]) for path in sets_named(tmp_path, "corpus")
    }
    assert words == "49152"
