"""Prompt files: that they open, hold what the recipe names, and can be rendered.

Those of later stages too. The first rows are read and rendered by the very code that the stages
use, so templates that are wrong or read the clock are found here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.planning.node import Node
from pipeline.preflight.finding import Finding
from pipeline.preflight.known import KnownModel
from pipeline.preflight.scope import Scope
from stages.config.data import PromptSource
from stages.config.evaluation import Evaluate
from stages.config.records import TeacherLogits, template_fields
from stages.config.training import Sft, Student
from stages.data.preview import Peek, Preview, peek, preview
from storage.errors import AfterglowError, DataError


@dataclass(frozen=True)
class Rendering:
    """Prompts that a stage renders for a model."""

    node: Node
    source: PromptSource
    model: KnownModel


def renderings(scope: Scope) -> Iterator[Rendering]:
    """What is rendered for whom; one for each source and tokenizer."""
    seen: set[tuple[str, object]] = set()
    for planned in scope.todo:
        node, source = planned.node, planned.node.config.prompt_source()
        if source is None or source.path in planned.lacks or not scope.readable(source):
            continue
        model = scope.models.writer(node)
        key = (source.model_dump_json(), model.words)
        if key not in seen:
            seen.add(key)
            yield Rendering(node, source, model)


def check_files(scope: Scope) -> Iterator[Finding]:
    """Every source opens, and its first rows have the fields."""
    for planned in scope.todo:
        node, source = planned.node, planned.node.config.prompt_source()
        if source is None or source.path in planned.lacks:
            continue
        if not scope.readable(source):
            message = (
                f"{source.where}: no such file or directory, so it is taken for a data set of the "
                "Hub, looked at once `run` downloads it"
            )
            here = f"If it is a path, relative ones start at {Path.cwd()}."
            yield Finding("note", node.heading, message, here)
            continue
        try:
            looked = peek(source)
        except AfterglowError as error:
            yield Finding("refused", node.heading, str(error), error=type(error))
            continue
        if isinstance(node.config, TeacherLogits):
            yield _filled(node.heading, node.config, source, looked)
        else:
            yield _answers(scope, node, source, looked)


def check_rendering(scope: Scope) -> Iterator[Finding]:
    """The chat template takes the first rows."""
    for one in renderings(scope):
        heading, called = one.node.heading, one.model.called
        if one.model.words is None:
            yield Finding("ok", heading, f"{one.source.where}: rendered once {called} is there")
            continue
        try:
            found = rendered(one)
        except AfterglowError as error:
            yield Finding("refused", heading, str(error), error=type(error))
            continue
        for note in found.notes:
            yield Finding("note", heading, f"{one.source.where}: {note}")
        yield Finding(
            "ok",
            heading,
            f"{one.source.where}: {called} reads {len(found.ids)} tokens in the first prompt "
            "(--show shows them)",
        )


def rendered(one: Rendering) -> Preview:
    """The first rows as the model reads them.

    Raises:
        AfterglowError: they cannot be read or rendered.
    """
    assert one.model.words is not None
    return preview(one.source, one.model.words)


def _filled(heading: str, config: TeacherLogits, source: PromptSource, looked: Peek) -> Finding:
    """Whether the columns of `teacher_prompt.template` are there."""
    assert config.teacher_prompt is not None
    known = {"prompt", "answer", *looked.columns}
    absent = [name for name in template_fields(config.teacher_prompt.template) if name not in known]
    if absent:
        return Finding(
            "refused",
            heading,
            f"{source.where}: no column `{absent[0]}`, which teacher_prompt.template names; it "
            f"has: {', '.join(looked.columns)}",
            "Add it to the file, or change the template.",
            DataError,
        )
    return Finding("ok", heading, f"{source.where}: has all columns of teacher_prompt.template")


def _answers(scope: Scope, node: Node, source: PromptSource, looked: Peek) -> Finding:
    """Whether there are reference answers where something needs them."""
    opens = f"{source.where}: {looked.rows} rows looked at"
    if looked.answers:
        return Finding("ok", node.heading, f"{opens}, {looked.answers} with a reference answer")
    absent = f"{opens}, none has a reference answer in `{source.answer_field}`"
    there = ", ".join(looked.columns)
    columns = f"Set prompts.answer_field to the column of the answers; there are: {there}."
    if needed := _needed_by(scope, node):
        message = f"{absent}, which is needed by {' and '.join(needed)}"
        return Finding("refused", node.heading, message, columns, DataError)
    if isinstance(node.config, Evaluate):
        return Finding("note", node.heading, f"{absent}: no accuracy is measured", columns)
    if "verifier" in node.config.model_fields_set:
        return Finding("note", node.heading, f"{absent}: the verifier judges nothing", columns)
    return Finding("ok", node.heading, f"{absent}, and nothing needs one")


def _needed_by(scope: Scope, node: Node) -> list[str]:
    """What reads whether the responses of a generating node are right."""
    out: list[str] = []
    for other in scope.known.values():
        config = other.node.config
        if scope.origin(other.node) is not node:
            continue
        if isinstance(config, Sft) and config.keep == "correct":
            out.append('sft.keep = "correct"')
        if isinstance(config, Student):
            weights = [one.name for one in config.weights if one.reads_outcome or one.reads_rates]
            terms = [
                one.name if getattr(one, "on", "all") == "all" else f"{one.name} by `on`"
                for one in config.objective.losses
                if one.reads_outcome
            ]
            out += [f"{name} of {other.node.heading}" for name in weights + terms]
    return out
