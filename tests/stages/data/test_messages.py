"""Messages as data sets write them, in the form that chat templates expect."""

import json
from typing import Any

import pytest

from stages.data.messages import from_json, has_text, read_messages, read_tools
from storage.errors import DataError

AT = "p.jsonl, row 3: `messages`"
CALL = {"type": "function", "id": "1", "function": {"name": "add", "arguments": {"a": 1}}}


def test_text_parts_become_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read_messages([{"role": "user", "content": parts}], AT) == [
        {"role": "user", "content": "a\nb"}
    ]


@pytest.mark.parametrize("arguments", [{"a": 1}, '{"a": 1}'])
def test_a_call_may_come_without_content(arguments: object) -> None:
    function = {"name": "add", "arguments": arguments}
    turn = {"role": "assistant", "content": None, "tool_calls": [{**CALL, "function": function}]}
    result = {"role": "tool", "tool_call_id": "1", "name": "add", "content": "2"}
    expected = [{"role": "assistant", "content": None, "tool_calls": [CALL]}, result]
    assert read_messages([turn, result], AT) == expected
    del turn["content"]
    assert read_messages([turn, result], AT) == expected
    assert has_text(expected[:1])


def test_messages_may_be_a_string_of_json() -> None:
    for turn in ({"role": "user", "content": "a"}, {"from": "human", "value": "a"}):
        assert from_json(json.dumps([turn])) == [turn]
    for text in ("a", "[1, 2]", '[{"a": 1}]', "[", "[]", '{"role": "user"}'):
        assert from_json(text) == text


def test_fields_that_are_null_are_not_there() -> None:
    """Parquet gives every message the fields of all others."""
    turn = {"role": "user", "content": "a", "tool_calls": None, "name": None}
    assert read_messages([turn], AT) == [{"role": "user", "content": "a"}]


def test_sharegpt() -> None:
    call = json.dumps({"name": "add", "arguments": {"a": 1}})
    turns = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "a"},
        {"from": "function_call", "value": call},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "b", "weight": 1},
    ]
    function = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert read_messages(turns, AT) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [function]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "b"},
    ]


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ("a", "a str; a prompt that is a list holds messages"),
        ({"content": "a"}, r'no "role" \(it has content\)'),
        ({"role": "user", "content": None}, "the user's `content` is missing or null"),
        ({"role": "assistant"}, "the assistant's `content` is missing or null"),
        ({"role": "user", "content": 3}, "`content` is a int"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "`content` has a part of type `image_url`; Afterglow works with text alone",
        ),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "part of type `input_audio`"),
        ({"role": "user", "content": [{"type": "text"}]}, "part of type `text` without text"),
        ({"role": "assistant", "tool_calls": [{"name": 3}]}, "a tool call is written"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "the arguments of `f` are not valid JSON",
        ),
        ({"from": "narrator", "value": "a"}, "`from` is `narrator`; it must be one of"),
        ({"from": "human", "value": None}, "`value` is a NoneType, not text"),
    ],
)
def test_what_cannot_be_shown_is_named(turn: object, said: str) -> None:
    with pytest.raises(DataError, match=r"p\.jsonl, row 3: `messages`, message 1.*" + said):
        read_messages([{"role": "user", "content": "a"}, turn], AT)


@pytest.mark.parametrize("value", [3, {"role": "user", "content": "a"}])
def test_what_is_no_list_of_messages(value: object) -> None:
    with pytest.raises(DataError, match="`messages` is neither a string nor a list of messages"):
        read_messages(value, AT)


TOOL: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": {}}}


@pytest.mark.parametrize("value", [[TOOL], json.dumps([TOOL])])
def test_tools_are_a_list_or_its_json(value: object) -> None:
    assert read_tools(value, AT) == [TOOL]


@pytest.mark.parametrize("value", [None, "", "[]", []])
def test_a_row_may_have_no_tools(value: object) -> None:
    assert read_tools(value, AT) is None


@pytest.mark.parametrize(("value", "said"), [("[", "not valid JSON"), (["add"], "not a list of")])
def test_what_are_no_tools(value: object, said: str) -> None:
    with pytest.raises(DataError, match=f"row 3: `messages`: {said}"):
        read_tools(value, AT)
