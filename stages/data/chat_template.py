"""Messages to text: the chat template of a model, with the arguments of `[template]`.

The same messages must give the same text in every process and on every day, so a template that
reads the clock is refused unless `template.date` fixes what it prints. Whatever else goes wrong in
a template is a `DataError` that names the line of the template. Imports no torch.
"""

import datetime
import hashlib
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.config.template import Template
from stages.models.chat_template import text_digest
from storage.errors import DataError

Message = dict[str, Any]

CLOCK = "strftime_now"
"""The function by which templates read the clock; transformers and vLLM offer it."""
_FRAMES = ("<template>", "<unknown>")
"""What Jinja calls the file of a template in a traceback."""


class ClockReadError(Exception):
    """A template has asked for today's date."""


class ChatTemplate:
    """The chat template of a tokenizer, or of `template.file`, with its arguments.

    Args:
        tokenizer: As `stages.models.tokenizer.load_tokenizer` gives it.
        table: The arguments.

    Raises:
        DataError: `template.file` cannot be read.
    """

    def __init__(self, tokenizer: Any, table: Template) -> None:
        self.table = table
        self._tokenizer = tokenizer
        self._file = read_template(table)
        self._clock = _fixed_clock(table.date)

    @property
    def exists(self) -> bool:
        """Whether there is a template at all."""
        return bool(self._file or self._tokenizer.chat_template)

    def text(self, tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """The template itself; of several, the one for these tools.

        Raises:
            DataError: the tokenizer has several, and none that is the default.
        """
        if self._file is not None:
            return self._file
        try:
            return self._tokenizer.get_chat_template(None, tools)
        except ValueError as error:
            names = ", ".join(sorted(self._tokenizer.chat_template))
            raise DataError(
                f"{self._tokenizer.name_or_path}: has several chat templates ({names}) and none "
                "called `default`. Write the one you want to a file and set `template.file`."
            ) from error

    def render(
        self, at: str, messages: list[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """The text that a model reads, up to where its answer begins.

        Args:
            at: File and row, for messages.
            messages: At least one; see `stages.data.messages`.
            tools: JSON schemas.

        Raises:
            DataError: the template rejects the messages, reads the clock or is wrong; or the
                dialogue ends with the assistant and the recipe does not say what to do then.
        """
        last = messages[-1]
        continued = last.get("role") == "assistant"
        if continued and not self.table.continue_final_message:
            raise DataError(
                f"{at}: the dialogue ends with the assistant's message. Set "
                "`template.drop_final_message = true` to have it answered anew, "
                "`template.continue_final_message = true` to have it continued, or remove it."
            )
        if continued and (not last.get("content") or last.get("tool_calls")):
            what = "calls a tool" if last.get("tool_calls") else "holds no text"
            raise DataError(
                f"{at}: the last message is the assistant's and {what}, so "
                "template.continue_final_message has nothing to continue"
            )
        template = self.text(tools)
        try:
            return self._tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=not continued,
                continue_final_message=continued,
                **{**self.table.kwargs, CLOCK: self._clock},
            )
        except ClockReadError as error:
            today = datetime.datetime.now().date()
            raise DataError(
                f"{at}: the chat template prints today's date (`{CLOCK}`{_line(error, template)}), "
                "so the same prompt would be another one tomorrow. Fix the date in the recipe: "
                f'[template] date = "{today}". Sets made before without one keep the prompts of '
                "the day they were made and cannot be repaired, only made again."
            ) from error
        except Exception as error:  # a template can raise whatever an expression can
            raise DataError(
                f"{at}: the chat template rejects these messages ({_said(error)}"
                f"{_line(error, template)}). Change the messages or the arguments in [template], "
                "or give another template with `template.file`."
            ) from error

    def without_effect(self) -> list[str]:
        """Fields of `[template]` that the template does not mention, such as `kwargs.thinking`."""
        named = {f"kwargs.{name}": name for name in self.table.kwargs}
        if self.table.tools is not None:
            named["tools"] = "tools"
        text = self.text([{}] if self.table.tools else None) if self.exists else ""
        return [
            field for field, name in named.items() if not re.search(rf"\b{re.escape(name)}\b", text)
        ]

    def described(self) -> dict[str, Any]:
        """Which template, and what it is given: for manifests. Empty without a template."""
        if not self.exists:
            return {}
        given = self.table.model_dump(mode="json", exclude=set(self.table.unused()))
        texts = (
            [self.text()] if self._file or isinstance(self._tokenizer.chat_template, str) else []
        )
        digests = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        return {"sha256": digests[0] if digests else None, **given}


def read_template(table: Template) -> str | None:
    """The content of `template.file`; None where the model's own template is used.

    Raises:
        DataError: it cannot be read.
    """
    if table.file is None:
        return None
    try:
        return Path(table.file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{table.file}: cannot be read ({error}). Check `template.file`."
        ) from error


def template_digests(table: Template) -> dict[str, str]:
    """Digests of `template.file`, as the identity of a model that has taken it over has them.

    Empty where the model's own template renders.

    Raises:
        DataError: the file cannot be read.
    """
    text = read_template(table)
    if text is None:
        return {}
    return {
        "chat_template": hashlib.sha256(text.encode()).hexdigest(),
        "template": text_digest(text),
    }


def reads_clock(tokenizer: Any, table: Template | None = None) -> bool:
    """Whether the chat template asks for today's date, which `template.date` may fix.

    Decided by rendering a short dialogue, so a template that does not get that far for such
    messages, or reads the clock for others only, is not found; `ChatTemplate.render` finds all.
    """
    without_date = (table or Template()).model_copy(update={"date": None})
    template = ChatTemplate(tokenizer, without_date)
    if not template.exists or CLOCK not in template.text():
        return False
    try:
        template.render("", [{"role": "user", "content": "a"}])
    except DataError as error:
        return isinstance(error.__cause__, ClockReadError)
    return False


def _fixed_clock(date: str | None) -> Callable[[str], str]:
    def clock(form: str) -> str:
        if date is None:
            raise ClockReadError(form)
        return datetime.datetime.fromisoformat(date).strftime(form)

    return clock


def _said(error: Exception) -> str:
    """What an error says; those that are not Jinja's own need their type to make sense."""
    from jinja2 import TemplateError

    said = str(error).partition("\n")[0]
    return said if isinstance(error, TemplateError) else f"{type(error).__name__}: {said}"


def _line(error: Exception, template: str) -> str:
    """`, line 3: {{ code }}`, or nothing where the error came from outside of the template."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename in _FRAMES]
    lines = template.splitlines()
    if not frames or not 0 < (number := frames[-1].lineno or 0) <= len(lines):
        return ""
    code = lines[number - 1].strip()
    return f", line {number}: {code if len(code) <= 80 else code[:77] + '...'}"
