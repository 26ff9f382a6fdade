"""Rows to dialogues: strings, messages as OpenAI writes them, and ShareGPT's turns.

    {"role": "user", "content": "..."}                       text
    {"role": "user", "content": [{"type": "text", ...}]}     text in parts, joined by line breaks as
                                                             vLLM's server does
    {"role": "assistant", "content": null, "tool_calls": [{"function": {"name", "arguments"}}]}
    {"role": "tool", "content": "..."}                       what a tool gave
    {"from": "human", "value": "..."}                        ShareGPT

What templates expect comes out: text as one string, the arguments of a call as a table (a JSON
string is read), no field that is null but `content`. Images, audio and files are errors.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from stages.data.chat_template import Message
from storage.errors import DataError

SHAREGPT = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
"""ShareGPT's names of speakers, as they occur in public data sets, and the roles they mean."""

_TEXT = ("text", "input_text", "output_text")
_SHAPES = (
    'neither a string nor a list of messages such as {"role": "user", "content": "..."} or '
    '{"from": "human", "value": "..."}'
)


def read_messages(value: object, at: str) -> list[Message]:
    """A list of messages in the form that chat templates expect.

    Args:
        value: What the field of the prompt holds.
        at: File, row and field, for messages.

    Raises:
        DataError: it is no list of messages, or a message holds something else than text and calls.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise DataError(f"{at} is {_SHAPES}")
    turns = cast("Sequence[object]", value)
    return [_message(turn, f"{at}, message {number}") for number, turn in enumerate(turns)]


def from_json(value: object) -> object:
    """The messages in a string of JSON, as CSV has them; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        found = json.loads(value)
    except ValueError:
        return value
    turns = cast("list[object]", found) if isinstance(found, list) else []
    if turns and all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in turns):
        return turns
    return value


def has_text(messages: Sequence[Message]) -> bool:
    """Whether anything is said or called."""
    return any((one.get("content") or "").strip() or one.get("tool_calls") for one in messages)


def read_tools(value: object, at: str) -> list[dict[str, Any]] | None:
    """The tools of a row; None where it has none.

    Args:
        value: A list of JSON schemas, the same as a JSON string, or None.
        at: File, row and field, for messages.

    Raises:
        DataError: it is something else.
    """
    found = value
    if isinstance(value, str) and value.strip():
        try:
            found = json.loads(value)
        except ValueError as error:
            raise DataError(f"{at}: not valid JSON ({error})") from error
    if not found:
        return None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise DataError(
            f'{at}: not a list of tools such as {{"type": "function", "function": {{"name": ...}}}}'
        )
    return cast("list[dict[str, Any]]", found)


def _message(turn: object, at: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{at}: a {type(turn).__name__}; a prompt that is a list holds messages")
    given = {name: one for name, one in cast("Message", turn).items() if one is not None}
    if "role" not in given and "from" in given:
        return _sharegpt(given, at)
    if not isinstance(given.get("role"), str):
        names = ", ".join(sorted(given)) or "no fields"
        raise DataError(f'{at}: no "role" (it has {names}); a list of messages is {_SHAPES}')
    if calls := given.pop("tool_calls", None):
        given["tool_calls"] = [_call(call, at) for call in calls]
    given["content"] = _content(given.get("content"), at)
    if given["content"] is None and not calls:
        raise DataError(
            f"{at}: the {given['role']}'s `content` is missing or null, which only a message with "
            "`tool_calls` may have. Give it text, or remove it."
        )
    return given


def _content(content: object, at: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise DataError(f"{at}: `content` is a {type(content).__name__}, not text or text parts")
    texts: list[str] = []
    for part in cast("Sequence[object]", content):
        fields = cast("Message", part) if isinstance(part, Mapping) else {"text": part}
        kind, text = str(fields.get("type") or "text"), fields.get("text")
        if kind not in _TEXT:
            raise DataError(
                f"{at}: `content` has a part of type `{kind}`; Afterglow works with text alone. "
                "Remove such rows, or such parts."
            )
        if not isinstance(text, str):
            raise DataError(f"{at}: `content` has a part of type `{kind}` without text")
        texts.append(text)
    return "\n".join(texts)


def _call(call: object, at: str) -> Message:
    """A call of a tool; templates print its arguments as JSON, so they must not be a string."""
    function = cast("Message", call).get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(
            f'{at}: a tool call is written {{"type": "function", "function": {{"name": "...", '
            '"arguments": {...}}}'
        )
    inner = dict(cast("Message", function))
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError as error:
            raise DataError(
                f"{at}: the arguments of `{inner['name']}` are not valid JSON ({error})"
            ) from error
    inner["arguments"] = {} if arguments is None else arguments
    outer = {"type": "function", **cast("Message", call)} if function is not call else {}
    return {"type": "function", **outer, "function": inner}


def _sharegpt(turn: Message, at: str) -> Message:
    speaker, value = str(turn["from"]), turn.get("value")
    if speaker not in SHAREGPT:
        raise DataError(f"{at}: `from` is `{speaker}`; it must be one of {', '.join(SHAREGPT)}")
    if not isinstance(value, str):
        raise DataError(f"{at}: `value` is a {type(value).__name__}, not text")
    if speaker != "function_call":
        return {"role": SHAREGPT[speaker], "content": value}
    try:
        found = json.loads(value)
    except ValueError as error:
        raise DataError(f"{at}: the function call is not valid JSON ({error})") from error
    calls = found if isinstance(found, list) else [found]
    return {"role": "assistant", "content": None, "tool_calls": [_call(one, at) for one in calls]}
