"""`afterglow init`: what it finds in prompt files and what it writes; it overwrites nothing."""

import json
import os
import pty
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pipeline.init import Answers, Prompts, look_into, recipe_text
from pipeline.planning.config import load_recipe
from storage.errors import UsageError
from tests.command import ROOT, afterglow


def lines(file: Path, *rows: dict[str, Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def answers(folder: Path, **changes: Any) -> Answers:
    opd = lines(folder / "opd.jsonl", *({"question": f"{i}"} for i in range(40)))
    given = {"sft": None, "rollouts": Prompts(opd, "question", None), "evaluate": None}
    return Answers("some/teacher", "some/student", **(given | changes), max_tokens=77)


@pytest.mark.parametrize(
    ("row", "field", "answer", "pattern"),
    [
        ({"prompt": "p", "answer": "a"}, "prompt", "answer", None),
        ({"id": 1, "question": "q", "answer": "so\n#### 4"}, "question", "answer", "#### (.+)"),
        ({"messages": [{"role": "user", "content": "q"}]}, "messages", None, None),
        (
            {"problem": "q", "reward_model": {"ground_truth": "4"}},
            "problem",
            "reward_model.ground_truth",
            None,
        ),
    ],
)
def test_prompts_and_answers_are_found(
    row: dict[str, Any], field: str, answer: str | None, pattern: str | None, tmp_path: Path
) -> None:
    path = lines(tmp_path / "p.jsonl", row)
    assert look_into(path, None, None, asking=False) == Prompts(path, field, answer, pattern)


def test_a_file_without_a_known_column_lists_what_it_has(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", {"frage": "q", "antwort": "a"})
    with pytest.raises(UsageError, match=r"it has frage, antwort\. Give --field NAME"):
        look_into(path, None, None, asking=False)
    assert look_into(path, "frage", "antwort", asking=False) == Prompts(path, "frage", "antwort")


def test_every_line_is_explained(tmp_path: Path) -> None:
    data = Prompts(lines(tmp_path / "x.jsonl", {"question": "q"}), "question", "answer")
    text = recipe_text(answers(tmp_path, sft=data, evaluate=data), tmp_path / "my.toml")
    before = ""
    for line in text.splitlines():
        assert len(line) <= 100 or str(tmp_path) in line
        if line and not line.startswith("#"):
            assert before.startswith("# "), line
        before = line
    assert {"teacher", "student", "sft-data", "sft", "rollouts", "train", "evaluate"} < set(
        tomllib.loads(text)
    )


def test_what_was_said_is_in_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(recipe_text(answers(tmp_path), tmp_path / "my.toml"))
    recipe = load_recipe(None, [tmp_path / "my.toml"])
    assert recipe.teacher is not None
    assert recipe.teacher.path == "some/teacher"
    assert recipe.rollouts.sampling.max_tokens == 77
    assert recipe.rollouts.prompts.field == "question"
    assert (recipe.sft, recipe.sft_data) == (None, None)
    assert 0 < recipe.rollouts.holdout <= 0.5


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = lines(tmp_path / "opd.jsonl", {"prompt": "p"})
    (tmp_path / "my.toml").write_text("mine")
    given = ("--teacher", "a/b", "--student", "a/c", "--prompts", path)
    outcome = afterglow("init", *given, "--into", tmp_path / "my.toml")
    assert outcome.code == UsageError.exit_code, outcome.err
    assert "exists and is not overwritten" in outcome.err
    assert (tmp_path / "my.toml").read_text() == "mine"


def test_off_a_terminal_nothing_is_asked(tmp_path: Path) -> None:
    outcome = afterglow("init", "--teacher", "a/b", "--into", tmp_path / "my.toml")
    assert outcome.code == UsageError.exit_code
    assert "give --student" in outcome.err
    assert not (tmp_path / "my.toml").exists()


def test_on_a_terminal_it_asks_for_what_is_missing(tmp_path: Path) -> None:
    path = lines(tmp_path / "opd.jsonl", {"problem": "p", "solution": "s"})
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pipeline", "init", "--teacher", "a/b", "--into", "my.toml"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=theirs,
        stderr=theirs,
        stdout=subprocess.PIPE,
        text=True,
    )
    # student, prompts, no SFT, no evaluation, length, column of prompts (as found), no answers
    os.write(ours, f"a/c\n{path}\n\n\n33\n\n-\n".encode())
    out, _ = process.communicate(timeout=60)
    os.close(theirs)
    assert process.returncode == 0, out
    recipe = load_recipe(None, [tmp_path / "my.toml"])
    assert recipe.student is not None
    assert recipe.student.path == "a/c"
    assert recipe.rollouts.prompts.field == "problem"
    assert recipe.rollouts.prompts.answer_field == "answer"
    assert recipe.rollouts.sampling.max_tokens == 33
    assert "the model yet" in out
