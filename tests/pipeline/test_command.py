"""The command as schedulers call it: what it says, and which failures are worth another try."""

import shlex
import sys
from pathlib import Path

import pytest

from pipeline import command


def pretend(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setenv("AFTERGLOW_COMMAND", shlex.join([sys.executable, "-c", program]))


def test_the_last_line_of_stdout_is_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERGLOW_COMMAND", f"{sys.executable} -m pipeline")
    units = command.call(["units", "corpus", "--recipe", "qwen3-4b-math"])
    assert units == {"verb": "units", "units": []}


def test_arguments_arrive_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "print('other'); print(json.dumps({'given': sys.argv[1:]}))"
    pretend(monkeypatch, f"import json, sys; {said}")
    assert command.call(["a b", '"', "$HOME"]) == {"given": ["a b", '"', "$HOME", "--json"]}


def test_messages_go_where_they_are_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, "import sys; sys.stderr.write('working'); print('{}')")
    with (tmp_path / "log").open("w") as log:
        assert command.call([], log=log.fileno()) == {}
    assert (tmp_path / "log").read_text() == "working"


@pytest.mark.parametrize(
    ("program", "again", "says"),
    [
        ("raise SystemExit(75)", True, "exit code 75"),
        ("import os; os.kill(os.getpid(), 9)", True, "killed by signal 9"),
        ("raise SystemExit(1)", False, "exit code 1"),
        ("raise SystemExit(2)", False, "exit code 2"),
        ("raise SystemExit(65)", False, "exit code 65"),
        ("raise SystemExit(78)", False, "exit code 78"),
    ],
)
def test_only_what_the_machine_did_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, program: str, again: bool, says: str
) -> None:
    pretend(monkeypatch, program)
    with pytest.raises(command.Failed, match=f"afterglow run 'a b': {says}; its log") as failed:
        command.call(["run", "a b"])
    assert failed.value.again is again


def test_what_the_real_command_refuses_is_final(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AFTERGLOW_COMMAND", f"{sys.executable} -m pipeline")
    recipe = command.recipe_arguments("demo", [], [f"store={tmp_path}", "no.such.field=1"])
    with pytest.raises(command.Failed, match="exit code 78") as failed:
        command.call(["units", "corpus", *recipe])
    assert not failed.value.again


def test_files_stand_in_for_the_name_of_a_recipe() -> None:
    assert command.recipe_arguments("demo", [], ["seed=1"]) == [
        "--recipe", "demo", "--set", "seed=1",
    ]  # fmt: skip
    assert command.recipe_arguments("demo", ["a.toml", "b.toml"], []) == [
        "--config", "a.toml", "--config", "b.toml",
    ]  # fmt: skip
