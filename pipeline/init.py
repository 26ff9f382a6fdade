"""`afterglow init`: asks for models and prompts, looks into the files, writes a commented recipe.

What is given as an option is not asked for; off a terminal nothing is. Every field in the file is
explained by the docstring of its table, the text that docs/config.md shows.
"""

import argparse
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import tomli_w

from pipeline.planning.config import RECIPE, Recipe
from stages.config.data import ModelRef, PromptSource, Sampling
from stages.config.evaluation import Evaluate
from stages.config.generation import Rollouts, SftData
from stages.config.training import Sft, Train
from stages.data.fields import get, has
from stages.data.prompts import count_prompts, numbered_rows
from stages.objectives.reverse_kl import ReverseKL
from stages.table import Table
from storage.errors import UsageError
from storage.files.write import disk_errors

_PROMPTS = ("prompt", "question", "problem", "messages", "conversations", "instruction", "query")
_ANSWERS = (
    "answer",
    "final_answer",
    "ground_truth",
    "expected_answer",
    "reward_model.ground_truth",
    "solution",
    "target",
    "label",
)
_WORKED = "####"
"""Before the answer at the end of a worked solution, as in GSM8K."""
_LOOKED_AT = 20
_STEPS = 150
_WIDTH = 100

_HEADER = """\
A recipe of Afterglow, written by `afterglow init`. Every field and its default: docs/config.md.

    afterglow check --config {name}        what would be refused, before anything runs
    afterglow plan --config {name}         stages, time, memory, disk
    afterglow run report --config {name}   run everything and print the table
"""


@dataclass(frozen=True)
class Prompts:
    """A prompt file and where things are in it."""

    path: str
    field: str
    answer_field: str | None
    """None: it has no answers."""
    answer_pattern: str | None = None
    """Takes the answer out of a worked solution."""

    def values(self) -> dict[str, object]:
        """The fields of a `PromptSource` that differ from its defaults, and those that matter."""
        found: dict[str, object] = {"path": self.path, "field": self.field}
        if self.answer_field:
            found["answer_field"] = self.answer_field
        if self.answer_pattern:
            found["answer_pattern"] = self.answer_pattern
        return found


@dataclass(frozen=True)
class Answers:
    """What was said, as options or on the terminal."""

    teacher: str
    student: str
    sft: Prompts | None
    rollouts: Prompts
    evaluate: Prompts | None
    max_tokens: int
    dtype: str = "bfloat16"


def ask(options: argparse.Namespace) -> Answers:
    """What the options say and, on a terminal, answers to what they leave out.

    Raises:
        UsageError: off a terminal, and something that must be given is not.
        DataError: a prompt file cannot be read.
    """
    asking = sys.stdin.isatty() and sys.stderr.isatty() and not options.yes

    def line(option: str, what: str, default: str = "", *, needed: bool = False) -> str:
        given = getattr(options, option)
        if given is not None:
            return str(given)
        if not asking:
            if needed:
                raise UsageError(f"give --{option.replace('_', '-')} ({what})")
            return default
        while True:
            sys.stderr.write(f"{what}{f' [{default}]' if default else ''}: ")
            sys.stderr.flush()
            said = sys.stdin.readline().strip() or default
            if said or not needed:
                return said

    teacher = line("teacher", "teacher: a directory or a Hub id", needed=True)
    student = line("student", "student: a directory or a Hub id", needed=True)
    rollouts = line("prompts", "prompts to distil on: a file", needed=True)
    sft = line("sft_prompts", "prompts that the teacher answers for SFT first; empty: no SFT")
    evaluate = line("eval_prompts", "prompts to evaluate on; empty: held-out rollouts only")
    limit = line("max_tokens", "longest response, in tokens", "1024")
    if not limit.isdigit() or int(limit) < 1:
        raise UsageError(f"--max-tokens {limit}: give a whole number above 0")

    def found(path: str) -> Prompts | None:
        return look_into(path, options.field, options.answer_field, asking) if path else None

    main = found(rollouts)
    assert main is not None, "it is needed"
    return Answers(
        teacher=_absolute(teacher),
        student=_absolute(student),
        sft=found(sft),
        rollouts=main,
        evaluate=found(evaluate),
        max_tokens=int(limit),
        dtype=options.dtype,
    )


def look_into(path: str, field: str | None, answer_field: str | None, asking: bool) -> Prompts:
    """Find prompts and answers in a file by the usual names of columns.

    Args:
        path: The file, or the Hub id of a data set, which is not opened.
        field, answer_field: Names that are known already.
        asking: Confirm on the terminal.

    Raises:
        DataError: the file cannot be read.
        UsageError: no column looks like a prompt, and there is no terminal to ask on.
    """
    place = _absolute(path)
    if not Path(place).expanduser().exists() and "/" in path and not path.startswith((".", "/")):
        return Prompts(path, field or "prompt", answer_field)
    source = PromptSource(path=place)
    rows = [row for _, row in islice(numbered_rows(source, ("",)), _LOOKED_AT)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if field is None:
        field = next((name for name in _PROMPTS if any(has(row, name) for row in rows)), None)
    if answer_field is None:
        names = (name for name in _ANSWERS if name != field)
        answer_field = next((name for name in names if any(has(row, name) for row in rows)), None)
    if asking:
        said = f"{path}: {count_prompts(source)} rows with {', '.join(columns)}"
        sys.stderr.write(f"{said}\n")
        field = _confirm("  column of the prompts", field or "") or field
        answer_field = _confirm("  column of the answers (- for none)", answer_field or "-")
        answer_field = None if answer_field == "-" else answer_field
    if not field:
        raise UsageError(
            f"{path}: no column is called {', '.join(_PROMPTS)}; it has {', '.join(columns)}. "
            "Give --field NAME."
        )
    worked = [get(row, answer_field) for row in rows if answer_field and has(row, answer_field)]
    texts = [value for value in worked if isinstance(value, str)]
    marked = bool(texts) and all(f"\n{_WORKED} " in text for text in texts)
    return Prompts(place, field, answer_field, f"{_WORKED} (.+)" if marked else None)


def _confirm(what: str, default: str) -> str:
    sys.stderr.write(f"{what} [{default}]: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip() or default


def _absolute(path: str) -> str:
    """A path of this machine as one that holds from every directory; a Hub id as it is."""
    there = Path(path).expanduser()
    return str(there.absolute()) if there.exists() else path


def write(answers: Answers, into: Path) -> None:
    """Write the recipe.

    Raises:
        UsageError: the file exists.
        RetryError: the disk refused.
    """
    text = recipe_text(answers, into)
    with disk_errors(into):
        try:
            stream = into.open("x")
        except FileExistsError as error:
            raise UsageError(
                f"{into}: exists and is not overwritten; give another file with --into"
            ) from error
        with stream:
            stream.write(text)


def recipe_text(answers: Answers, into: Path) -> str:
    """The recipe as TOML, with a comment before every field."""
    sampling = Section("sampling", Sampling, {"max_tokens": answers.max_tokens})

    def prompts(found: Prompts) -> Section:
        return Section("prompts", PromptSource, found.values())

    def model(name: str, path: str) -> Section:
        return Section(name, ModelRef, {"path": path, "dtype": answers.dtype})

    count = count_prompts(PromptSource(path=answers.rollouts.path)) or 0
    holdout = 0.02 if count >= 1000 else min(0.5, round(20 / max(count, 40), 2))
    stem = into.stem
    sections = [
        Section("", RECIPE, {"name": stem, "store": "store"}),
        model("teacher", answers.teacher),
        model("student", answers.student),
    ]
    if answers.sft:
        inside = (prompts(answers.sft), sampling)
        sections.append(Section("sft-data", SftData, {"n": 1}, inside))
        few = {"epochs": 2.0, "batch_size": 64, "learning_rate": 8e-5}
        sections.append(Section("sft", Sft, few))
    shares = {"n": 1, "candidates": 4, "holdout": holdout}
    sections.append(Section("rollouts", Rollouts, shares, (prompts(answers.rollouts), sampling)))
    length: dict[str, object] = {"steps": _STEPS} if count >= 64 * _STEPS else {"epochs": 1.0}
    training = {**length, "batch_size": 64, "learning_rate": 2e-6}
    objective = Section("objective", ReverseKL, {"name": "reverse_kl"})
    sections.append(Section("train", Train, training, (objective,)))
    inside = (prompts(answers.evaluate), sampling) if answers.evaluate else ()
    sections.append(Section("evaluate", Evaluate, {"greedy": True}, inside))
    header = _HEADER.format(name=into).rstrip().splitlines()
    top = [f"# {line}".rstrip() for line in header]
    return "\n".join([*top, *(line for one in sections for line in one.lines(""))]) + "\n"


@dataclass(frozen=True)
class Section:
    """One table of the recipe to be written."""

    name: str
    table: type[Table] | type[Recipe]
    values: Mapping[str, object]
    inside: "tuple[Section, ...]" = ()

    def lines(self, above: str) -> list[str]:
        """Heading and fields, each below its explanation."""
        path = f"{above}.{self.name}" if above else self.name
        out: list[str] = [""]
        if self.name:
            out += [*_comment(self.table.__doc__ or ""), f"[{path}]"]
        for name, value in self.values.items():
            field = self.table.model_fields[name]
            out += _comment(field.description or f"One of {', '.join(_known(self.table))}.")
            out.append(tomli_w.dumps({name: value}).strip())
        for one in self.inside:
            out += one.lines(path)
        return out


def _known(table: Any) -> list[str]:
    """Names of the family that a table is a member of."""
    return sorted(getattr(table, "known", {}))


def _comment(text: str) -> list[str]:
    """A docstring as comment lines; of a longer one, its first paragraph."""
    first = textwrap.dedent(text).strip().split("\n\n")[0]
    return [f"# {line}" for line in textwrap.wrap(first, _WIDTH - 2)]
