"""Fields by dotted names, and the reference answers among them."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from stages.config.data import PromptSource
from stages.data import fields
from stages.data.fields import Answers
from storage.errors import DataError

ROW: dict[str, Any] = {
    "reward_model": {"style": "rule", "ground_truth": "72", "none": None},
    "answers": {"text": ["yes", "no"], "start": [3]},
    "extra": '{"solution": {"value": 7}}',
    "a.b": "itself",
    "a": {"b": "inside"},
    "null": None,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reward_model.ground_truth", "72"),
        ("answers.text.1", "no"),
        ("extra.solution.value", 7),
        ("a.b", "itself"),
        ("null", None),
        ("reward_model.none", None),
    ],
)
def test_a_field_is_found(name: str, value: object) -> None:
    assert fields.has(ROW, name)
    assert fields.get(ROW, name) == value


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("reward", r"no field `reward`; it has: a, a\.b, answers, extra, null, reward_model"),
        ("reward_model.truth", "no field `truth` in `reward_model`; it has: ground_truth, none"),
        ("answers.text.5", r"no field `5` in `answers\.text`; it has: 0 to 1"),
        ("reward_model.style.x", r"no field `x` in `reward_model\.style`; it has: a str"),
        ("null", "`null` is null"),
    ],
)
def test_a_field_that_is_missing(name: str, said: str) -> None:
    assert fields.get(ROW, name) is None
    with pytest.raises(DataError, match=said):
        raise DataError(fields.missing(ROW, name))


def answer(value: object, **table: Any) -> str | None:
    source = PromptSource(path="p.jsonl", **table)
    return Answers(source).read(3, {"answer": value})


@pytest.mark.parametrize(
    ("value", "read"),
    [("7", "7"), (7, "7"), (0.5, "0.5"), (True, "True"), (None, None), (math.nan, None)],
)
def test_answers_are_strings_or_numbers(value: object, read: str | None) -> None:
    assert answer(value) == read


@pytest.mark.parametrize(
    ("pattern", "read"),
    [("#### (.+)", "72"), (r"\d+", "72"), ("yes|no", None), (r"x(\d+)?", None)],
)
def test_a_pattern_takes_the_answer_out_of_a_solution(pattern: str, read: str | None) -> None:
    assert answer("48/2 = 24, #### 48\nx #### 72 ", answer_pattern=pattern) == read


def test_an_answer_inside_of_something_is_named() -> None:
    with pytest.raises(DataError, match=r"row 3: `answer` is a dict.*it has style, truth"):
        answer({"truth": "1", "style": "rule"})


def test_a_pattern_must_be_one() -> None:
    with pytest.raises(ValidationError, match="is not a regular expression"):
        PromptSource(path="p.jsonl", answer_pattern="(")
