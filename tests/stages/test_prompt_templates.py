"""`[template]` through a stage, by the command: keys, manifests, repairs, what is refused."""

import datetime
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from pipeline.cli import main
from stages.data import chat_template
from stages.models.chat_template import template_digest
from storage.errors import DataError
from storage.manifest import read_manifest
from storage.sets import verify_set
from tests.command import sets_named
from tests.conftest import write_chat_model

CLOCK = "{% set said = messages[0].content %}\n{{ bos_token }}{{ strftime_now('%Y') }}{{ said }}"
RECIPE = """
[teacher]
path = "{model}"
[student]
path = "{model}"
[sft-data]
prompts = {{ task = "addition", limit = 4 }}
sampling = {{ max_tokens = 4 }}
verifier = {{ kind = "exact_match" }}
run = {{ engine = "transformers" }}
[sft]
epochs = 1
[rollouts]
prompts = {{ task = "addition", limit = 4 }}
[train]
steps = 1
"""
Run = Callable[..., int]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose chat template reads the clock."""
    directory = write_chat_model(tmp_path / "model")
    (directory / "chat_template.jinja").write_text(CLOCK)
    return directory


@pytest.fixture
def run(tmp_path: Path, model: Path) -> Run:
    """`afterglow run sft-data`, in this process."""
    (tmp_path / "own.toml").write_text(RECIPE.format(model=model))
    recipe = ["run", "sft-data", "--config", str(tmp_path / "own.toml")]
    store = ["--set", f"store={tmp_path / 'store'}"]

    def run(*settings: str, how: str = "--here") -> int:
        own = (word for one in settings for word in ("--set", one))
        return main([*recipe, how, *store, *own])

    return run


def test_a_date_makes_a_template_with_a_clock_repeatable(tmp_path: Path, run: Run) -> None:
    for date in ("2026-01-31", "2025-01-31"):
        assert run(f"template.date={date}", "template.kwargs={effort='low'}") == 0
    found = [read_manifest(path) for path in sets_named(tmp_path / "store", "sft-data")]
    assert len(found) == 2, "the date is in the key"
    told = {one.meta["template"]["date"] for one in found}
    assert told == {"2026-01-31", "2025-01-31"}
    assert found[0].meta["template"]["kwargs"] == {"effort": "low"}
    assert found[0].meta["prompts"]["kept"] == 4


def test_a_clock_without_a_date_is_refused(
    run: Run, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run() == DataError.exit_code
    said = capfd.readouterr().err
    assert (
        "prints today's date (`strftime_now`, line 2: {{ bos_token }}{{ strftime_now('%Y')" in said
    )
    assert '[template] date = "' in said
    assert "Traceback" not in said
    assert not sets_named(tmp_path / "store", "sft-data")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 1 + messages[0].content }}", "TypeError: unsupported operand"),
        ("a\n{% for %}", "line 2: {% for %}"),
    ],
)
def test_a_broken_template_is_one_line(
    model: Path, run: Run, capfd: pytest.CaptureFixture[str], template: str, said: str
) -> None:
    (model / "chat_template.jinja").write_text(template)
    assert run() == DataError.exit_code
    error = capfd.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_set_made_without_a_date_says_why_it_cannot_be_repaired(
    tmp_path: Path, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    """As an earlier version made it, which let templates read the clock."""
    with patch.object(chat_template, "_fixed_clock", lambda _: datetime.datetime.now().strftime):
        assert run() == 0
    (made,) = sets_named(tmp_path / "store", "sft-data")
    assert run() == 0, "it is found as done"
    (part,) = made.glob("part-*")
    part.write_bytes(part.read_bytes()[:-9])
    capfd.readouterr()
    assert run(how="--check") == DataError.exit_code
    said = capfd.readouterr().err
    assert "prints today's date" in said
    assert "cannot be repaired, only made again" in said
    assert "does not reproduce it" not in said


def test_a_template_file_is_taken_over_by_students(tmp_path: Path, model: Path, run: Run) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("{{ bos_token }}{{ messages[0].content }}=")
    assert run(f"template.file={own}") == 0
    (made,) = sets_named(tmp_path / "store", "sft-data")
    manifest = read_manifest(made)
    assert (made / "tokenizer" / "chat_template.jinja").read_text() == own.read_text()
    assert (model / "chat_template.jinja").read_text() == CLOCK
    assert manifest.tokenizer is not None
    assert manifest.tokenizer["template"] == template_digest(made / "tokenizer")
    assert manifest.teacher is not None
    assert manifest.teacher["template"] == template_digest(model)
    assert verify_set(made) == []
    own.write_text("{{ bos_token }}{{ messages[0].content }}")
    assert run(f"template.file={own}") == 0
    assert len(sets_named(tmp_path / "store", "sft-data")) == 2, "its content is in the key"
