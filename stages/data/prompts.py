"""Prompts: from a file, a data set or a task to token ids, once and for all stages.

Rows are read by `stages.data.prompt_files`, understood by `fields` and `messages`, put into a chat
template by `chat_template` and encoded by `render`. Token ids are what is kept: no later stage
encodes text again.

Rules: prompts of the same token ids are one prompt (the first is kept); prompts without text are
dropped; what else may be dropped, the recipe says. All are counted in a `PromptReport`, which goes
into the log and the manifest. A prompt's id is its row number in the file (or its index in the
task), so it does not change when `first`, `limit` or other rows do. Importing this module imports
neither torch nor transformers.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from stages.config.data import PromptSource
from stages.data import fields
from stages.data.chat_template import ChatTemplate
from stages.data.fields import Answers
from stages.data.hub import hub_dataset, load_hub
from stages.data.problem import check_range
from stages.data.prompt_files import Row, count_rows, dataset_rows, read_rows
from stages.data.render import TOOLS, Renderer
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


DROPPED = {
    "duplicates": "duplicates of an earlier prompt",
    "empty": "without text",
    "over_long": "longer than prompts.max_prompt_tokens",
    "without_answer": "without a reference answer",
    "control_tokens": "with control tokens in their text",
}
"""Why rows are dropped: counts of a `PromptReport`, and what they mean."""


@dataclass(frozen=True)
class PromptReport:
    """What became of the rows that were read."""

    rows: int
    kept: int
    duplicates: int = 0
    """Rows dropped because an earlier one has the same token ids."""
    empty: int = 0
    """Rows dropped because they hold no text."""
    over_long: int = 0
    """Rows dropped because the prompt has more tokens than `max_prompt_tokens`."""
    without_answer: int = 0
    """Rows dropped because they have no reference answer."""
    control_tokens: int = 0
    """Rows dropped because their text spells a control token."""
    first_duplicates: tuple[int, ...] = ()
    """Row numbers of the first few; of the others likewise."""
    first_empty: tuple[int, ...] = ()
    first_over_long: tuple[int, ...] = ()
    first_without_answer: tuple[int, ...] = ()
    first_control_tokens: tuple[int, ...] = ()
    answers: int = 0
    """Kept prompts with a reference answer."""
    with_control_tokens: int = 0
    """Rows whose text spells a control token, dropped ones included."""
    end_tokens_removed: int = 0
    """Rows whose prompt the tokenizer had ended with its end token."""
    with_tools: int = 0
    """Rows with tools, shown or not."""

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
    template: dict[str, Any]
    """Which chat template rendered them, and with which arguments; empty without one."""
    notes: tuple[str, ...]
    """What to know of them: control tokens, tools not shown, arguments without effect."""
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

    def absent(self, source: PromptSource) -> str | None:
        """An error for a field that the recipe names and that no row has; None if there is none."""
        if Answers(source).named and not self.report.answers:
            name, pattern = source.answer_field, source.answer_pattern
            matching = f" that matches {pattern!r}" if pattern else ""
            return (
                f"{self.where}: no row has a reference answer in `{name}`{matching}. "
                "Correct `prompts.answer_field` or `prompts.answer_pattern`."
            )
        if source.template.tools is not None and not self.report.with_tools:
            return (
                f"{self.where}: no row has tools in `{source.template.tools}`. Correct "
                "`template.tools`."
            )
        return None

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
    if hub_dataset(source.path) is not None:
        return None
    rows = count_rows(Path(source.path or ""), source.split)
    if rows is None:
        return None
    rest = max(rows - source.first, 0)
    return rest if source.limit is None else min(rest, source.limit)


def load_prompts(source: PromptSource, tokenizer: Path) -> Prompts:
    """The prompts of `source` as token ids of the tokenizer in directory `tokenizer`.

    Raises:
        DataError: a file is missing or damaged, a row lacks the field or cannot be rendered, what
            the recipe refuses occurs, a field it names occurs nowhere, or no prompt is left; file,
            row and field are named.
        ConfigError: the task does not exist.
    """
    from stages.models.tokenizer import load_tokenizer

    prompts = read_prompts(source, load_tokenizer(tokenizer))
    if absent := prompts.absent(source):
        raise DataError(absent)
    report, where = prompts.report, source.where
    log.info(
        "%s: %d prompts from %d rows, %d with a reference answer",
        where, report.kept, report.rows, report.answers,
    )  # fmt: skip
    for reason, text in DROPPED.items():
        if count := getattr(report, reason):
            first = getattr(report, f"first_{reason}")
            shown = ", ".join(map(str, first)) + (", ..." if count > len(first) else "")
            log.warning("%s: %d rows dropped, %s (rows %s)", where, count, text, shown)
    for note in prompts.notes:
        log.warning("%s: %s", where, note)
    return prompts


def read_prompts(source: PromptSource, tokenizer: Any) -> Prompts:
    """As `load_prompts`, without a word to the log; fields may be absent from all rows.

    `tokenizer` is one that is loaded already.
    """
    reading = _Reading(source, Renderer(tokenizer, source))
    numbered = numbered_rows(source, wanted_fields(source))
    while rows := list(islice(numbered, _BATCH)):
        reading.add(rows)
    return reading.prompts()


class _Reading:
    """Rows of a source become prompts, or are dropped for a reason."""

    def __init__(self, source: PromptSource, renderer: Renderer) -> None:
        self._source, self._renderer = source, renderer
        self._answers = Answers(source)
        self._seen: set[bytes] = set()  # 16-byte digests of token ids
        self._kept: list[Prompt] = []
        self._dropped: dict[str, list[int]] = {reason: [] for reason in DROPPED}
        self._rows = self._with_control_tokens = 0

    def add(self, rows: list[tuple[int, Row]]) -> None:
        """Render, encode and sort out rows, each with its number.

        Raises:
            DataError: as `load_prompts`.
        """
        self._rows += len(rows)
        dialogues = [self._renderer.dialogue(number, row) for number, row in rows]
        encoded = self._renderer.encode(dialogues)
        for (number, row), dialogue, ids in zip(rows, dialogues, encoded, strict=True):
            answer = self._answers.read(number, row)
            control = self._renderer.control_token(dialogue) if ids else None
            self._with_control_tokens += control is not None
            prompt = Prompt(number, np.asarray(ids, np.uint32), answer)
            reason = self._why_dropped(prompt, row, control)
            if reason is None:
                self._kept.append(prompt)
            else:
                self._dropped[reason].append(number)

    def _why_dropped(self, prompt: Prompt, row: Row, control: str | None) -> str | None:
        """One of `DROPPED`; None where the prompt is kept.

        Raises:
            DataError: it is what the recipe refuses.
        """
        source, number, length = self._source, prompt.prompt_id, len(prompt.ids)
        if not length:
            return "empty"
        if control is not None and source.control_tokens != "keep":
            if source.control_tokens == "refuse":
                raise DataError(
                    f"{source.where}, row {number}: its text spells the control token "
                    f'`{control}`, which `prompts.control_tokens = "refuse"` forbids'
                )
            return "control_tokens"
        if prompt.answer is None and source.no_answer != "keep":
            if source.no_answer == "refuse":
                raise DataError(_no_answer(source, number, row))
            return "without_answer"
        if source.max_prompt_tokens is not None and length > source.max_prompt_tokens:
            if source.over_long == "refuse":
                raise DataError(
                    f"{source.where}, row {number}: the prompt has {length} tokens, more than "
                    f"prompts.max_prompt_tokens = {source.max_prompt_tokens}. Raise it, or set "
                    '`prompts.over_long = "drop"`.'
                )
            return "over_long"
        digest = blake2b(prompt.ids.tobytes(), digest_size=16).digest()
        if digest in self._seen:
            return "duplicates"
        self._seen.add(digest)
        return None

    def prompts(self) -> Prompts:
        """What was kept.

        Raises:
            DataError: nothing was.
        """
        kept, where = self._kept, self._source.where
        counts = {reason: len(numbers) for reason, numbers in self._dropped.items()}
        if not kept:
            reasons = ", ".join(f"{counts[one]} {DROPPED[one]}" for one in DROPPED if counts[one])
            why = f"of {self._rows} rows: {reasons}" if self._rows else "no rows"
            raise DataError(
                f"{where}: the set of prompts is empty ({why}). Check `prompts.path`, `first` and "
                "`limit`."
            )
        report = self._report(counts)
        return Prompts(
            prompt_ids=np.array([one.prompt_id for one in kept], np.int64),
            tokens=np.concatenate([one.ids for one in kept]),
            offsets=np.cumsum([0, *(len(one.ids) for one in kept)], dtype=np.int64),
            answers=tuple(one.answer for one in kept),
            report=report,
            template=self._renderer.template.described(),
            notes=tuple(_notes(report, self._renderer.template)),
            where=where,
        )

    def _report(self, counts: dict[str, int]) -> PromptReport:
        first = {f"first_{one}": tuple(rows[:_SHOWN]) for one, rows in self._dropped.items()}
        return PromptReport(
            rows=self._rows,
            kept=len(self._kept),
            answers=sum(one.answer is not None for one in self._kept),
            with_control_tokens=self._with_control_tokens,
            with_tools=self._renderer.rows_with_tools,
            end_tokens_removed=self._renderer.end_tokens_removed,
            **cast("dict[str, Any]", counts | first),
        )


def wanted_fields(source: PromptSource) -> tuple[str, ...]:
    """Fields of a row that decide its prompt and answer; the prompt's comes first."""
    return (source.field, source.answer_field, source.template.tools or TOOLS)


def _no_answer(source: PromptSource, number: int, row: Row) -> str:
    """Says why a row has no answer."""
    name, value = source.answer_field, fields.get(row, source.answer_field)
    why = fields.missing(row, name) if value is None else f"`{name}` is {value!r}"
    if isinstance(value, str):
        end = value if len(value) <= 60 else "..." + value[-57:]
        why = f"`{name}` has no match of {source.answer_pattern!r}; it ends with {end!r}"
    return (
        f"{source.where}, row {number}: no reference answer: {why}. Set "
        '`prompts.no_answer` to "drop" or "keep", or correct `prompts.answer_field`.'
    )


def _notes(report: PromptReport, template: ChatTemplate) -> list[str]:
    """What a user should know of prompts that are kept."""
    out: list[str] = []
    if count := report.with_control_tokens - report.control_tokens:
        out.append(
            f"{count} prompts spell control tokens in their text, which become the tokens "
            "themselves (see `prompts.control_tokens`)"
        )
    if report.end_tokens_removed:
        out.append(
            f"the tokenizer puts its end token after {report.end_tokens_removed} prompts; it is "
            "left out, since an answer follows"
        )
    if report.with_tools and template.table.tools is None:
        out.append(
            f"{report.with_tools} rows have `{TOOLS}`, which the model is not shown; set "
            f'`template.tools = "{TOOLS}"` to show them'
        )
    for name in template.without_effect():
        out.append(f"template.{name} has no effect: the chat template does not mention it")
    return out


def numbered_rows(source: PromptSource, columns: tuple[str, ...]) -> Iterator[tuple[int, Row]]:
    """The rows `source` selects, each with its prompt id.

    Args:
        source: File or task; a task has the columns `field` and `answer_field` alone.
        columns: Columns wanted, as for `stages.data.prompt_files.read_rows`.

    Raises:
        DataError: the file is missing or damaged.
        ConfigError: the task does not exist.
    """
    if source.task is not None:
        return enumerate(_problems(source, source.task), start=source.first)
    stop = None if source.limit is None else source.first + source.limit
    name = hub_dataset(source.path)
    if name is not None:
        found = dataset_rows(load_hub(name, source), columns)
    else:
        found = read_rows(Path(source.path or ""), columns, source.split)
    return enumerate(islice(found, source.first, stop), start=source.first)


def _problems(source: PromptSource, name: str) -> Iterator[Row]:
    """The problems of a task as rows, made as they are read: planning looks at the first alone."""
    made, last = task(name), source.first + (source.limit or 0)
    check_range(name, made.size, source.first, last - source.first)
    for first in range(source.first, last, _BATCH):
        for item in made.problems(first, min(_BATCH, last - first), seed=0):
            yield {source.field: item.prompt, source.answer_field: item.answer}
