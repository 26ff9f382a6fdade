"""A look at a source of prompts before anything runs: its fields, and its first prompts rendered.

Cheap: a few rows are read and a tokenizer is loaded, no weights and no torch. What the first rows
show is found here; a row further on can still be refused by `stages.data.prompts.load_prompts`.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from stages.config.data import PromptSource
from stages.data import fields
from stages.data.fields import Answers
from stages.data.prompts import PromptReport, numbered_rows, read_prompts, wanted_fields
from storage.errors import DataError

ROWS = 64
"""Rows that are looked at."""


@dataclass(frozen=True)
class Peek:
    """The first rows of a source, understood as far as that needs no tokenizer."""

    columns: tuple[str, ...]
    """Of the first row."""
    rows: int
    """Rows that were read, at most `ROWS`."""
    answers: int
    """How many of them have a reference answer."""


@dataclass(frozen=True)
class Preview:
    """The first rows of a source, rendered for one model."""

    number: int
    """Row number of the prompt that is shown: the first that is kept."""
    ids: tuple[int, ...]
    """Its token ids."""
    tokens: tuple[str, ...]
    """The tokens, as the vocabulary spells them."""
    text: str
    """What the ids decode to, control tokens included."""
    answer: str | None
    """Its reference answer."""
    longest: int
    """Tokens of the longest prompt among the rows."""
    report: PromptReport
    """What became of the rows."""
    notes: tuple[str, ...]
    """What to know of them: control tokens, tools not shown, arguments without effect."""


def peek(source: PromptSource) -> Peek:
    """Open a source and read its first rows.

    Raises:
        DataError: it cannot be read, it holds no rows, a row lacks the field of the prompt, or all
            lack a field of the answer that the recipe names.
        ConfigError: the task does not exist.
    """
    first = next(numbered_rows(source, ("",)), None)
    if first is None:
        raise DataError(f"{source.where}: holds no rows from row {source.first} on")
    rows = list(islice(numbered_rows(source, wanted_fields(source)), ROWS))
    for number, row in rows:
        if not fields.has(row, source.field):
            raise DataError(
                f"{source.where}, row {number}: {fields.missing(row, source.field)}. Set "
                "`prompts.field` to the one that holds the prompt."
            )
    answers = Answers(source)
    if answers.named and not any(fields.has(row, source.answer_field) for _, row in rows):
        raise DataError(
            f"{source.where}: {fields.missing(first[1], source.answer_field)}. Correct "
            "`prompts.answer_field`."
        )
    found = [answers.read(number, row) is not None for number, row in rows]
    return Peek(tuple(first[1]), len(rows), sum(found))


def preview(source: PromptSource, tokenizer: Path) -> Preview:
    """Render the first rows for the model whose tokenizer is in directory `tokenizer`.

    Raises:
        DataError: as `peek`; or as `stages.data.prompts.load_prompts`, for these rows.
        ConfigError: the task does not exist.
    """
    from stages.models.tokenizer import read_tokenizer

    looked, words = peek(source), read_tokenizer(tokenizer)
    some = source.model_copy(update={"limit": looked.rows})
    prompts = read_prompts(some, words)
    notes = prompts.notes
    if absent := prompts.absent(source):
        if looked.rows < ROWS:
            raise DataError(absent)
        notes = (*notes, f"of the first {looked.rows} rows: {absent}")
    first = prompts[0]
    ids = first.ids.tolist()
    return Preview(
        number=first.prompt_id,
        ids=tuple(ids),
        tokens=tuple(words.convert_ids_to_tokens(ids)),
        text=str(words.decode(ids, clean_up_tokenization_spaces=False)),
        answer=first.answer,
        longest=prompts.longest,
        report=prompts.report,
        notes=notes,
    )
