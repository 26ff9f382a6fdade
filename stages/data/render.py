"""Rows to token ids: what a row says, put into the model's chat template, encoded.

With a chat template, a string becomes one user message and the template is applied up to where the
answer begins; without one, the text is encoded as the tokenizer does by default (with its BOS, if
it has one), but never ends with the end token that some tokenizers append.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stages.config.data import PromptSource
from stages.data import fields
from stages.data.chat_template import ChatTemplate, Message
from stages.data.messages import from_json, has_text, read_messages, read_tools
from stages.data.prompt_files import Row
from storage.errors import DataError

log = logging.getLogger(__name__)

TOOLS = "tools"
"""Column that usually holds tools; one that the recipe does not name is reported."""


@dataclass(frozen=True)
class Dialogue:
    """What a row asks, before the template."""

    number: int
    """Of the row."""
    prompt: str | list[Message]
    """Text for a model without template; empty if nothing in the row is text."""
    tools: list[dict[str, Any]] | None = None

    @property
    def asked(self) -> str | None:
        """Text of the last user message; None if there is none."""
        if isinstance(self.prompt, str):
            return self.prompt
        said = [one["content"] for one in self.prompt if one["role"] == "user"]
        return said[-1] if said else None

    def asking(self, text: str) -> "Dialogue":
        """The dialogue with another text in its last user message."""
        if isinstance(self.prompt, str):
            return replace(self, prompt=text)
        messages = list(self.prompt)
        place = max(i for i, message in enumerate(messages) if message["role"] == "user")
        messages[place] = {**messages[place], "content": text}
        return replace(self, prompt=messages)


class Renderer:
    """Renders the prompts of one source for one tokenizer, and counts what it meets.

    Args:
        tokenizer: As `stages.models.tokenizer.load_tokenizer` gives it.
        source: Names fields and template.

    Raises:
        DataError: the template file cannot be read, or the source needs a template and the
            tokenizer has none.
    """

    def __init__(self, tokenizer: Any, source: PromptSource) -> None:
        self.template = ChatTemplate(tokenizer, source.template)
        self.end_tokens_removed = 0
        self.rows_with_tools = 0
        self._tokenizer = tokenizer
        self._source = source
        self._control = _control_tokens(tokenizer)
        needed = [name for name in ("system", "tools") if getattr(source.template, name)]
        if needed and not self.template.exists:
            raise DataError(
                f"{source.where}: the tokenizer in {tokenizer.name_or_path} has no chat template, "
                f"so template.{needed[0]} cannot be shown. Set `template.file`."
            )

    def dialogue(self, number: int, row: Row) -> Dialogue:
        """What the row asks, with the recipe's system message and its tools.

        Raises:
            DataError: it lacks the field, or holds what cannot be shown; row and field are named.
        """
        name, table = self._source.field, self._source.template
        at = f"{self._source.where}, row {number}"
        value = from_json(fields.get(row, name))
        if value is None:
            raise DataError(
                f"{at}: {fields.missing(row, name)}. "
                + (
                    "Remove the row, or fill it."
                    if fields.has(row, name)
                    else "Set `prompts.field` to the one that holds the prompt."
                )
            )
        if isinstance(value, str):
            if not value.strip() or not self.template.exists:
                return Dialogue(number, value if value.strip() else "")
            messages = [{"role": "user", "content": value}]
        else:
            messages = read_messages(value, f"{at}: `{name}`")
            while table.drop_final_message and messages and messages[-1]["role"] == "assistant":
                messages.pop()
            if not has_text(messages):
                return Dialogue(number, [])
        if not self.template.exists:
            raise DataError(
                f"{at}: the prompt is a list of chat messages, but the tokenizer has no chat "
                "template. Give strings, a model with a template, or set `template.file`."
            )
        if table.system is not None and messages[0]["role"] not in ("system", "developer"):
            messages = [{"role": "system", "content": table.system}, *messages]
        tools = fields.get(row, table.tools or TOOLS)
        self.rows_with_tools += tools is not None
        if table.tools is None:
            return Dialogue(number, messages)
        return Dialogue(number, messages, read_tools(tools, f"{at}: `{table.tools}`"))

    def encode(self, dialogues: Sequence[Dialogue]) -> list[list[int]]:
        """Token ids of each; an empty list where there is no text.

        Raises:
            DataError: one cannot be rendered or encoded; file and row are named.
        """
        filled = [place for place, one in enumerate(dialogues) if one.prompt]
        texts = [self.text(dialogues[place]) for place in filled]
        encoded: list[list[int]] = [[] for _ in dialogues]
        numbers = [dialogues[place].number for place in filled]
        for place, text, ids in zip(filled, texts, self._ids(texts, numbers), strict=True):
            encoded[place] = self._without_end(text, ids)
        return encoded

    def text(self, dialogue: Dialogue) -> str:
        """The rendered prompt.

        Raises:
            DataError: the template does not take it.
        """
        if isinstance(dialogue.prompt, str):
            return dialogue.prompt
        at = f"{self._source.where}, row {dialogue.number}"
        return self.template.render(at, dialogue.prompt, dialogue.tools)

    def control_token(self, dialogue: Dialogue) -> str | None:
        """The first control token that the dialogue's own text spells; the template's are none."""
        prompt = dialogue.prompt
        texts = [prompt] if isinstance(prompt, str) else [one["content"] or "" for one in prompt]
        if self._control is None:
            return None
        return next((found[0] for text in texts if (found := self._control.search(text))), None)

    def _without_end(self, text: str, ids: list[int]) -> list[int]:
        """The ids without an end token that the tokenizer, not the text, has put at the end."""
        end = self._tokenizer.eos_token_id
        if self.template.exists or end is None or not ids or ids[-1] != end:
            return ids
        if text.rstrip().endswith(self._tokenizer.eos_token) and ids[-2:] != [end, end]:
            return ids
        self.end_tokens_removed += 1
        return ids[:-1]

    def _ids(self, texts: list[str], numbers: list[int]) -> list[list[int]]:
        """Token ids of each text; a template writes special tokens itself."""
        options = {"add_special_tokens": not self.template.exists}
        try:
            return self._tokenizer(texts, **options)["input_ids"] if texts else []
        except Exception as error:  # the library raises nothing more specific
            for text, number in zip(texts, numbers, strict=True):
                try:
                    self._tokenizer([text], **options)
                except Exception:  # noqa: BLE001
                    raise DataError(
                        f"{self._source.where}, row {number}: the tokenizer cannot encode the "
                        f"prompt ({error}); its vocabulary may lack a character"
                    ) from error
            raise


def _control_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds control tokens in text; None for a tokenizer without any."""
    spelled = {one.content for one in tokenizer.added_tokens_decoder.values() if one.special}
    longest_first = sorted(filter(None, spelled), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
