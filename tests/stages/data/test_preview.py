"""A look at prompts before a run: what it shows, and what it finds without reading everything."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.config.corpus import Tokenizer
from stages.config.data import PromptSource
from stages.data.preview import ROWS, peek, preview
from stages.models.tokenizer import make_tokenizer
from storage.errors import DataError


def source(path: Path, rows: list[dict[str, Any]], **fields: Any) -> PromptSource:
    (path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PromptSource(path=str(path / "p.jsonl"), **fields)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("words")
    make_tokenizer(Tokenizer(vocab_size=259), [], directory)
    return directory


def test_the_first_prompt_is_shown_as_text_and_tokens(tmp_path: Path, words: Path) -> None:
    rows = [{"prompt": " "}, {"prompt": "hi", "answer": 3}, {"prompt": "hello"}]
    seen = preview(source(tmp_path, rows, template={"kwargs": {"thinking": True}}), words)
    assert (seen.number, seen.text, seen.answer) == (1, "<bos>hi", "3")
    assert seen.tokens == ("<bos>", "h", "i")
    assert len(seen.ids) == 3
    assert (seen.report.rows, seen.report.empty, seen.longest) == (3, 1, 6)
    assert seen.notes == (
        "template.kwargs.thinking has no effect: the chat template does not mention it",
    )


def test_only_the_first_rows_are_read(tmp_path: Path, words: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"{n}", "answer": n} for n in range(ROWS + 1)]
    asked = source(tmp_path, [*rows, {"question": "unread"}], first=1)
    assert peek(asked).rows == ROWS
    assert preview(asked.model_copy(update={"limit": 5}), words).report.rows == 5


def test_a_peek_needs_no_tokenizer(tmp_path: Path) -> None:
    seen = peek(source(tmp_path, [{"prompt": "a", "answer": "1"}, {"prompt": "b"}]))
    assert (seen.columns, seen.rows, seen.answers) == (("prompt", "answer"), 2, 1)


@pytest.mark.parametrize(
    ("rows", "fields", "said"),
    [
        ([], {}, "holds no rows from row 0 on"),
        ([{"question": "a"}], {}, "row 0: no field `prompt`; it has: question"),
        ([{"prompt": "a"}], {"answer_field": "anser"}, "no field `anser`; it has: prompt"),
    ],
)
def test_what_a_peek_finds(
    tmp_path: Path, rows: list[dict[str, Any]], fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        peek(source(tmp_path, rows, **fields))


def test_answers_that_may_come_later_are_a_note(tmp_path: Path, words: Path) -> None:
    rows = [{"prompt": f"{n}", "solution": "none"} for n in range(ROWS)]
    fields = {"answer_field": "solution", "answer_pattern": "#### (.+)"}
    (note,) = preview(source(tmp_path, rows, **fields), words).notes
    assert note.startswith("of the first 64 rows: ")
    with pytest.raises(DataError, match="no row has a reference answer in `solution` that matches"):
        preview(source(tmp_path, rows[:5], **fields), words)
