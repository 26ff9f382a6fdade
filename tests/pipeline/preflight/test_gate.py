"""The gate: every verb that runs something passes it, and refuses before anything is written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import ConfigError, DataError
from tests.command import ROOT, TINY, Outcome, afterglow

NO_FILE = ("--set", 'evaluate.prompts={path="nowhere.jsonl"}')
NO_MODEL = ("--set", "teacher.path=./nowhere")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def findings(outcome: Outcome) -> dict[str, tuple[str, str]]:
    """Level and message by subject."""
    return {one["subject"]: (one["level"], one["message"]) for one in outcome.result["findings"]}


@pytest.mark.parametrize(
    "verb",
    [("run", "report"), ("units", "sft-data"), ("run", "sft-data", "--here"),
     ("run", "sft-data", "--shard", "0"), ("seeds",)],
)  # fmt: skip
def test_every_verb_that_runs_something_refuses(store: Path, verb: tuple[str, ...]) -> None:
    outcome = afterglow(*verb, *TINY, *NO_MODEL, store=store)
    assert outcome.code == ConfigError.exit_code, outcome.err
    assert "./nowhere: no such directory, and not a Hub id" in outcome.err
    assert "Traceback" not in outcome.err
    assert not store.exists()


def test_all_that_is_refused_is_listed_in_one_error(store: Path) -> None:
    outcome = afterglow("run", "report", *TINY, *NO_MODEL, *NO_FILE, store=store)
    assert outcome.code == DataError.exit_code
    assert "2 things keep this from running" in outcome.err
    assert "./nowhere: no such directory" in outcome.err
    assert "nowhere.jsonl: no such file or directory" in outcome.err


def test_what_later_stages_lack_is_a_note(store: Path) -> None:
    outcome = afterglow("check", "corpus", *TINY, *NO_FILE, store=store)
    assert outcome.code == 0
    assert findings(outcome)["nowhere.jsonl"][0] == "note"


def test_plan_shows_what_would_be_refused_and_goes_on(store: Path) -> None:
    outcome = afterglow("plan", *TINY, *NO_MODEL, store=store)
    assert outcome.code == 0
    assert "would be refused: ./nowhere: no such directory" in outcome.err
    assert "report" in outcome.out
    assert not store.exists()


@pytest.mark.parametrize("recipe", ["demo", "qwen3-4b-math", "smollm2", "draft"])
def test_check_needs_neither_torch_nor_the_network(store: Path, recipe: str) -> None:
    program = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from pipeline.cli import main\n"
        f"main(['check', '--recipe', '{recipe}', '--set', 'store={store}'])\n"
        "heavy = {'torch', 'vllm'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["verb"] == "check"
    assert not store.exists()


def test_a_model_that_may_be_on_the_hub_is_a_note(store: Path) -> None:
    outcome = afterglow("check", *TINY, "--set", "teacher.path=models/teacher", store=store)
    level, message = findings(outcome)["models/teacher"]
    assert (outcome.code, level) == (0, "note")
    assert "no such directory, and not a Hub id known here" in message


def test_a_gguf_file_that_is_not_there_is_refused(store: Path, tmp_path: Path) -> None:
    for gguf in ("{no_such_package}/model.gguf", str(tmp_path / "model.gguf")):
        asked = {
            "sft-data": (f'derive.teacher={{gguf="{gguf}"}}', "teacher.path=derive:teacher"),
            "corpus": (f"corpus.tokenizer.path={gguf}",),
        }
        for stage, given in asked.items():
            sets = [part for one in given for part in ("--set", one)]
            outcome = afterglow("run", stage, "--recipe", "demo", *sets, store=store)
            assert outcome.code in (ConfigError.exit_code, DataError.exit_code), outcome.err
            assert "is not installed" in outcome.err or "no such file" in outcome.err
            assert gguf in outcome.err
            assert "Traceback" not in outcome.err
            assert not store.exists()


def test_notes_are_logged_once(store: Path) -> None:
    small = ("--set", "corpus.count=96", *NO_FILE)
    outcome = afterglow("run", "corpus", *TINY, *small, store=store)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("note: nowhere.jsonl: no such file or directory") == 1
