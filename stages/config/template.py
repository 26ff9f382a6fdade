"""The table `[template]`: what the chat template of a model is given beside the messages."""

import datetime
from typing import Annotated, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from stages.table import BY_CONTENT, Table, at_default

_TAKEN = {
    "messages": "prompts.field",
    "tools": "template.tools",
    "chat_template": "template.file",
    "continue_final_message": "template.continue_final_message",
    "strftime_now": "template.date",
}
"""Variables of a chat template that other fields set."""
_FIXED = {
    "add_generation_prompt", "conversation", "tokenize", "tokenizer_kwargs", "padding",
    "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
}  # fmt: skip
"""Arguments of `apply_chat_template` that no recipe decides."""


class Template(Table):
    """How messages become a prompt. The recipe's own `[template]` lies under `prompts.template` of
    every stage, which may override single fields.
    """

    kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """Variables of the chat template by name, such as `enable_thinking = false` or
    `reasoning_effort = "low"`."""
    system: str | None = None
    """System message put before dialogues that have none of their own."""
    tools: str | None = None
    """Column that holds the tools a dialogue may call: a list of JSON schemas, or that as a string;
    a row may leave it empty."""
    date: str | None = None
    """Date such as `2026-01-31` that templates print instead of today's. Needed by templates that
    read the clock."""
    continue_final_message: bool = False
    """The model continues the last message where that is the assistant's. By default such a
    dialogue is an error."""
    drop_final_message: bool = False
    """The model answers anew where the last message is the assistant's, which is left out."""
    file: Annotated[str | None, BY_CONTENT] = None
    """File with a chat template (Jinja) used in place of the model's own. Students that learn from
    the teacher's answers take it over."""

    def unused(self) -> frozenset[str]:
        """Fields at their defaults."""
        return at_default(self, *type(self).model_fields)

    @field_validator("kwargs")
    @classmethod
    def _no_other_fields(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in value:
            if name in _TAKEN:
                raise ValueError(f"`{name}` is set by {_TAKEN[name]}")
            if name in _FIXED:
                raise ValueError(f"`{name}` is no variable of a chat template")
        return value

    @field_validator("date", mode="before")
    @classmethod
    def _iso(cls, value: object) -> object:
        if isinstance(value, datetime.date):  # a date of TOML
            return value.isoformat()
        if isinstance(value, str):
            try:
                return datetime.date.fromisoformat(value).isoformat()
            except ValueError as error:
                raise ValueError(f"write it as in 2026-01-31 ({error})") from error
        return value

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.continue_final_message and self.drop_final_message:
            raise ValueError("set one of `continue_final_message` and `drop_final_message`")
        return self
