"""Scoring under a prompt of the teacher's own: the same responses after another context.

The student's prompt was rendered from a row of a prompt file; the teacher's is rendered from the
same row, found by its number, with fields the student does not see (a reference solution, say, or
feedback), and goes through the teacher's chat template. Responses are untouched, so position i of a
response is scored given the teacher's prompt and the response before i, and the set keeps the
student's prompt.

A wrong file would go unnoticed, since any text makes a prompt. So where student and teacher share a
chat template, the row must also give the very prompt the student has read. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.config.data import PromptSource
from stages.config.record_kinds import Record
from stages.config.records import TeacherPrompt, template_fields
from stages.data import fields
from stages.data.prompt_files import Row
from stages.data.prompts import numbered_rows, wanted_fields
from stages.data.render import Dialogue, Renderer
from stages.models.tokenizer import load_tokenizer
from storage.errors import ConfigError, DataError
from storage.rows import Rows, offsets_of

if TYPE_CHECKING:
    from stages.scoring.scorer import Scorer

Ids = NDArray[np.uint32]

_BATCH = 512
_OWN = ("prompt", "answer")
"""Fields of the template that the source of the prompts names."""


@dataclass
class TeacherPrompts:
    """Prompts as the teacher reads them, by prompt id; rendered from the file when asked for."""

    template: str
    source: PromptSource
    tokenizer: Any
    compare: bool
    """Whether the student's prompts must follow from the same rows without the template."""
    _held: dict[int, tuple[Ids, Ids | None]] = field(default_factory=dict[int, Any])

    @classmethod
    def of(cls, config: TeacherPrompt, teacher: Path, compare: bool) -> TeacherPrompts:
        """As configured, for the teacher in directory `teacher`.

        Raises:
            ConfigError: the prompts are not given.
            DataError: there is no tokenizer.
        """
        if config.prompts is None:
            raise ConfigError("teacher-logits.teacher_prompt.prompts: say where the rows come from")
        return cls(config.template, config.prompts, load_tokenizer(teacher), compare)

    @property
    def where(self) -> str:
        """The file or task, for messages."""
        return self.source.where

    def hold(self, prompt_ids: Iterable[int]) -> None:
        """Render these prompts, in one pass over the file, and forget all others.

        Raises:
            DataError: a row lacks a field or cannot be rendered; file, row and field are named.
        """
        wanted, self._held = set(prompt_ids), {}
        batch: list[tuple[int, Row]] = []
        for number, row in numbered_rows(
            self.source, (*wanted_fields(self.source), *self._columns())
        ):
            if number in wanted:
                batch.append((number, row))
                wanted.discard(number)
            if len(batch) == _BATCH or not wanted:
                self._render(batch)
                batch = []
            if not wanted:
                break
        self._render(batch)
        if wanted:
            raise DataError(
                f"{self.where}: has no row {min(wanted)}, the prompt of a sequence to be scored. "
                "Set teacher-logits.teacher_prompt.prompts to the prompts the sequences answer, "
                "with the same `first` and `limit`."
            )

    def __getitem__(self, prompt_id: int) -> Ids:
        return self._held[prompt_id][0]

    def ensure(self, rows: Rows) -> None:
        """Hold the prompts of `rows`, and hold the student's against them.

        Raises:
            DataError: as `hold`, or the student read another prompt than the file's.
        """
        numbers = rows["prompt_id"].tolist()
        if not self._held.keys() >= set(numbers):
            self.hold(numbers)
        for index, number in enumerate(numbers if self.compare else ()):
            plain = self._held[number][1]
            if plain is not None and not np.array_equal(plain, _prompt(rows, index)):
                raise DataError(
                    f"{self.where}, row {number}: is not the prompt of sequence "
                    f"{rows['seq_id'][index]}, which has the same prompt id. Set "
                    "teacher-logits.teacher_prompt.prompts to the file its prompts came from."
                )

    def _columns(self) -> tuple[str, ...]:
        """Columns that the template names."""
        return tuple(name for name in template_fields(self.template) if name not in _OWN)

    def _render(self, batch: list[tuple[int, Row]]) -> None:
        renderer = Renderer(self.tokenizer, self.source)
        plain = [renderer.dialogue(number, row) for number, row in batch]
        filled = [
            self._filled(dialogue, row) for dialogue, (_, row) in zip(plain, batch, strict=True)
        ]
        students = renderer.encode(plain) if self.compare else [None] * len(batch)
        for (number, _), ids, own in zip(batch, renderer.encode(filled), students, strict=True):
            self._held[number] = (_uint32(ids), None if own is None else _uint32(own))

    def _filled(self, dialogue: Dialogue, row: Row) -> Dialogue:
        """The dialogue with its last user message as the teacher reads it."""
        asked = dialogue.asked if dialogue.prompt else ""
        if asked is None:
            raise DataError(
                f"{self.where}, row {dialogue.number}: no user message in `{self.source.field}` "
                "for the template to replace"
            )
        text = self._text(dialogue.number, row, asked)
        if not dialogue.prompt or not text.strip():
            raise DataError(f"{self.where}, row {dialogue.number}: the teacher's prompt is empty")
        return dialogue.asking(text)

    def _text(self, number: int, row: Row, prompt: str) -> str:
        values: dict[str, str] = {}
        for name in template_fields(self.template):
            answer = fields.get(row, self.source.answer_field)
            value = {"prompt": prompt, "answer": answer}[name] if name in _OWN else row.get(name)
            if not isinstance(value, str | int | float) or isinstance(value, bool):
                found = "no field" if value is None else f"a {type(value).__name__} in field"
                raise DataError(
                    f"{self.where}, row {number}: {found} `{name}`, where "
                    "teacher-logits.teacher_prompt.template needs a string or a number. Add it to "
                    "the file, or change the template."
                )
            values[name] = str(value)
        return self.template.format_map(values)


@dataclass(frozen=True)
class PrivilegedScorer:
    """A `Scorer` that shows the teacher its own prompts, and returns the student's."""

    scorer: Scorer
    prompts: TeacherPrompts

    @property
    def vocab_size(self) -> int:
        """As `Scorer.vocab_size`."""
        return self.scorer.vocab_size

    @property
    def logits(self) -> int:
        """As `Scorer.logits`."""
        return self.scorer.logits

    def score(
        self,
        rows: Rows,
        record: Record,
        seed: int,
        advance: Callable[[int], None] | None = None,
    ) -> Rows:
        """As `Scorer.score`; rows without `prompt_id` have no prompt of the teacher's."""
        self.prompts.ensure(rows)
        shown = [self.prompts[number] for number in rows["prompt_id"].tolist()]
        scored = self.scorer.score(_with_prompts(rows, shown), record, seed, advance)
        return _with_prompts(scored, [_prompt(rows, index) for index in range(len(rows))])


def _with_prompts(rows: Rows, prompts: list[Ids]) -> Rows:
    """The sequences after other prompts."""
    columns: Mapping[str, Any] = {
        **rows.columns,
        "prompt": np.concatenate(prompts) if prompts else np.zeros(0, np.uint32),
    }
    offsets = {**rows.offsets, "prompt": offsets_of([len(ids) for ids in prompts])}
    return Rows.from_columns(columns, offsets)


def _prompt(rows: Rows, index: int) -> Ids:
    start, stop = rows.offsets["prompt"][index : index + 2]
    return rows["prompt"][start:stop]


def _uint32(ids: list[int]) -> Ids:
    return np.asarray(ids, np.uint32)
