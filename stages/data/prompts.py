"""Prompts: from a file or a task to token ids, once and for all stages.

A prompt is a string or a list of chat messages. With a chat template, a string becomes one user
message and the template is applied up to where the answer begins; without one, the text is encoded
as the tokenizer does by default (with its BOS, if it has one). Token ids are what is kept: no later
stage encodes text again.

Rules: prompts of the same token ids are one prompt (the first is kept); prompts without text are
dropped. Both are counted in a `PromptReport`, which goes into the log and the manifest. A prompt's
id is its row number in the file (or its index in the task), so it does not change when `first`,
`limit` or other rows do. Importing this module imports neither torch nor transformers.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.config.data import PromptSource
from stages.data.prompt_files import Row, count_rows, read_rows
from stages.data.tasks import task
from storage.errors import DataError

log = logging.getLogger(__name__)

_BATCH = 512
_SHOWN = 5


@dataclass(frozen=True)
class Prompt:
    """One prompt, ready for an engine."""

    prompt_id: int
    """Row number in the file, or index in the task."""
    ids: NDArray[np.uint32]
    answer: str | None
    """Reference answer, where there is one."""


@dataclass(frozen=True)
class PromptReport:
    """What became of the rows that were read."""

    rows: int
    kept: int
    duplicates: int
    """Rows dropped because an earlier one has the same token ids."""
    empty: int
    """Rows dropped because they hold no text."""
    first_duplicates: tuple[int, ...] = ()
    """Row numbers of the first few."""
    first_empty: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Prompts(Sequence[Prompt]):
    """Prompts of one source under one tokenizer, as flat arrays: [P] prompts, [L] tokens."""

    prompt_ids: NDArray[np.int64]
    tokens: NDArray[np.uint32]
    """[L] token ids of all prompts, one after the other."""
    offsets: NDArray[np.int64]
    """[P+1]"""
    answers: tuple[str | None, ...]
    report: PromptReport
    where: str
    """The file or task, for messages."""

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        ids = self.tokens[self.offsets[place] : self.offsets[place + 1]]
        return Prompt(int(self.prompt_ids[place]), ids, self.answers[place])

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return int(np.diff(self.offsets).max())

    def check_context(self, context: int | None) -> None:
        """Raise if a prompt leaves no room for a response.

        Args:
            context: Longest sequence of the model, prompt plus response; None is unlimited.

        Raises:
            DataError: naming the first such prompt.
        """
        if context is None:
            return
        lengths = np.diff(self.offsets)
        too_long = np.flatnonzero(lengths + 1 > context)
        if too_long.size:
            first = int(too_long[0])
            raise DataError(
                f"{self.where}, row {self.prompt_ids[first]}: the prompt has {lengths[first]} "
                f"tokens, but the model's context is {context} and one token of response must fit "
                f"({too_long.size} such prompts). Shorten or remove them, or use a model of longer "
                "context."
            )


def count_prompts(source: PromptSource) -> int | None:
    """Number of rows `source` selects, duplicates included; None where that is unknown."""
    if source.task is not None:
        return source.limit
    rows = count_rows(Path(source.path or ""))
    if rows is None:
        return None
    rest = max(rows - source.first, 0)
    return rest if source.limit is None else min(rest, source.limit)


def load_prompts(source: PromptSource, tokenizer: Path) -> Prompts:
    """The prompts of `source` as token ids of the tokenizer in directory `tokenizer`.

    Raises:
        DataError: a file is missing or damaged, a row lacks the field or cannot be rendered, or no
            prompt is left; file, row and the fields of the row are named.
        ConfigError: the task does not exist.
    """
    from stages.models.tokenizer import load_tokenizer

    where = source.where
    renderer = Renderer(load_tokenizer(tokenizer), where, source.field)
    numbered = numbered_rows(source, (source.field, source.answer_field))
    seen: set[bytes] = set()  # 16-byte digests of token ids
    kept: list[Prompt] = []
    duplicates: list[int] = []
    empty: list[int] = []
    while rows := list(islice(numbered, _BATCH)):
        for (number, row), encoded in zip(rows, renderer.encode(rows), strict=True):
            answer = row.get(source.answer_field)
            if answer is not None and not isinstance(answer, str | bool | int | float):
                raise DataError(
                    f"{where}, row {number}: `{source.answer_field}` is a "
                    f"{type(answer).__name__}, but a reference answer is a string or a number. Set "
                    "`prompts.answer_field` to another column."
                )
            ids = np.asarray(encoded, np.uint32)
            digest = blake2b(ids.tobytes(), digest_size=16).digest()
            if not encoded:
                empty.append(number)
            elif digest in seen:
                duplicates.append(number)
            else:
                seen.add(digest)
                kept.append(Prompt(number, ids, None if answer is None else str(answer)))
    total = len(kept) + len(duplicates) + len(empty)
    if not kept:
        why = f"all {total} rows are without text" if total else "no rows"
        raise DataError(
            f"{where}: the set of prompts is empty ({why}). Check `prompts.path`, `first` and "
            "`limit`."
        )
    log.info("%s: %d prompts from %d rows", where, len(kept), total)
    for what, dropped in (("duplicates of an earlier prompt", duplicates), ("without text", empty)):
        if dropped:
            shown = ", ".join(map(str, dropped[:_SHOWN]))
            more = ", ..." if len(dropped) > _SHOWN else ""
            log.warning(
                "%s: %d rows dropped, %s (rows %s%s)", where, len(dropped), what, shown, more
            )
    return Prompts(
        prompt_ids=np.array([one.prompt_id for one in kept], np.int64),
        tokens=np.concatenate([one.ids for one in kept]),
        offsets=np.cumsum([0, *(len(one.ids) for one in kept)], dtype=np.int64),
        answers=tuple(one.answer for one in kept),
        report=PromptReport(
            rows=total,
            kept=len(kept),
            duplicates=len(duplicates),
            empty=len(empty),
            first_duplicates=tuple(duplicates[:_SHOWN]),
            first_empty=tuple(empty[:_SHOWN]),
        ),
        where=where,
    )


def numbered_rows(source: PromptSource, columns: tuple[str, ...]) -> Iterator[tuple[int, Row]]:
    """The rows `source` selects, each with its prompt id.

    Args:
        source: File or task; a task has the columns `field` and `answer_field` alone.
        columns: Columns wanted, as for `stages.data.prompt_files.read_rows`.

    Raises:
        DataError: the file is missing or damaged.
        ConfigError: the task does not exist.
    """
    rows: Iterable[Row]
    if source.task is not None:
        made = task(source.task).problems(source.first, source.limit or 0, seed=0)
        rows = ({source.field: item.prompt, source.answer_field: item.answer} for item in made)
    else:
        stop = None if source.limit is None else source.first + source.limit
        rows = islice(read_rows(Path(source.path or ""), columns), source.first, stop)
    return enumerate(rows, start=source.first)


class Renderer:
    """Rows to token ids.

    Args:
        tokenizer: As `stages.models.tokenizer.load_tokenizer` gives it.
        where: The file or task, for messages.
        field: Column that holds the prompt.
    """

    def __init__(self, tokenizer: Any, where: str, field: str) -> None:
        self._tokenizer = tokenizer
        self._where = where
        self._field = field
        self._chat = bool(tokenizer.chat_template)

    def encode(self, rows: list[tuple[int, Row]]) -> list[list[int]]:
        """Token ids of each (number, row); an empty list where there is no text.

        Raises:
            DataError: a row lacks the field or cannot be rendered; file and row are named.
        """
        prompts = [self._prompt(number, row) for number, row in rows]
        filled = [place for place, prompt in enumerate(prompts) if prompt]
        texts = [self._text(rows[place][0], prompts[place]) for place in filled]
        encoded: list[list[int]] = [[] for _ in rows]
        for place, ids in zip(filled, self._ids(texts, [rows[p][0] for p in filled]), strict=True):
            encoded[place] = ids
        return encoded

    def _prompt(self, number: int, row: Row) -> str | list[dict[str, Any]]:
        """The prompt of a row; empty if nothing in it is text."""
        prompt = row.get(self._field)
        if prompt is None:
            fields = ", ".join(sorted(row)) or "none"
            raise DataError(
                f"{self._where}, row {number}: no field `{self._field}`; it has: {fields}. Set "
                "`prompts.field` to the one that holds the prompt."
            )
        if isinstance(prompt, str):
            return prompt if prompt.strip() else ""
        if not isinstance(prompt, list) or not all(map(_is_message, prompt)):
            raise DataError(
                f"{self._where}, row {number}: `{self._field}` is neither a string nor a list of "
                'messages such as {"role": "user", "content": "..."}'
            )
        if not any(message["content"].strip() for message in prompt):
            return []
        # Parquet fills the fields of other rows' messages with nulls; templates test for presence.
        return [{k: v for k, v in message.items() if v is not None} for message in prompt]

    def _text(self, number: int, prompt: str | list[dict[str, Any]]) -> str:
        if not self._chat:
            if isinstance(prompt, str):
                return prompt
            raise DataError(
                f"{self._where}, row {number}: the prompt is a list of chat messages, but the "
                "tokenizer has no chat template. Give strings, or a model with a template."
            )
        from jinja2 import TemplateError

        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        try:
            return self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise DataError(
                f"{self._where}, row {number}: the chat template rejects these messages ({error})"
            ) from error

    def _ids(self, texts: list[str], numbers: list[int]) -> list[list[int]]:
        """Token ids of each text; a template writes special tokens itself."""
        options = {"add_special_tokens": not self._chat}
        try:
            return self._tokenizer(texts, **options)["input_ids"] if texts else []
        except Exception as error:  # the library raises nothing more specific
            for text, number in zip(texts, numbers, strict=True):
                try:
                    self._tokenizer([text], **options)
                except Exception:  # noqa: BLE001
                    raise DataError(
                        f"{self._where}, row {number}: the tokenizer cannot encode the prompt "
                        f"({error}); its vocabulary may lack a character"
                    ) from error
            raise


def _is_message(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), str)
    )
