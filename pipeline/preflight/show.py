"""`afterglow check --show`: the first prompt of every source, as text and as tokens."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from pipeline.planning.node import Node
from pipeline.preflight.known import KnownModel
from pipeline.preflight.prompts import Rendering, rendered, renderings
from pipeline.preflight.scope import Scope
from stages.config.records import TeacherLogits, TeacherPrompt
from stages.data.preview import Preview
from stages.scoring.teacher_prompt import TeacherPrompts
from storage.errors import AfterglowError

_WIDTH = 100


def shown_prompts(scope: Scope) -> list[str]:
    """Lines that show the first prompt of every source, as each model reads it."""
    lines: list[str] = []
    for one in renderings(scope):
        if isinstance(one.node.config, TeacherLogits):
            continue
        heading = f"{one.node.heading} {one.source.where}"
        if one.model.words is None:
            lines += ["", f"{heading}: rendered once {one.model.called} is there"]
            continue
        try:
            found = rendered(one)
        except AfterglowError as error:
            lines += ["", f"{heading}: {error}"]
            continue
        lines += _tokens(
            f"{heading}, row {found.number}, as {one.model.called} reads it", found.ids, one.model
        )
        if found.answer is not None:
            lines.append(f"  reference answer: {found.answer!r}")
        for scorer in _scorers(scope, one.node):
            lines += _as_scored(one, found, *scorer)
    return lines


def _scorers(scope: Scope, node: Node) -> Iterator[tuple[TeacherLogits, KnownModel]]:
    """The teachers that score the responses of a node, and how."""
    for planned in scope.known.values():
        config, teacher = planned.node.config, scope.model(planned.node, "teacher")
        if isinstance(config, TeacherLogits) and teacher and scope.origin(planned.node) is node:
            yield config, teacher


def _as_scored(
    one: Rendering, found: Preview, config: TeacherLogits, teacher: KnownModel
) -> list[str]:
    """The same prompt as the teacher reads it when it scores."""
    if teacher.words is None:
        return [f"  as {teacher.called} scores it: known once that is there"]
    if config.teacher_prompt is not None:
        return _of_teacher_prompt(found, config.teacher_prompt, teacher)
    lines = [f"  as {teacher.called} scores it: the same tokens"]
    try:
        own = rendered(replace(one, model=teacher))
    except AfterglowError as error:
        return [*lines, f"  its own template would not take it: {error}"]
    if own.ids == found.ids:
        return lines
    return [
        *lines,
        *_tokens(f"  its own template would give row {own.number} as", own.ids, teacher),
    ]


def _of_teacher_prompt(found: Preview, table: TeacherPrompt, teacher: KnownModel) -> list[str]:
    """The prompt that the teacher reads in place of the student's."""
    assert table.prompts is not None
    prompts = TeacherPrompts(table.template, table.prompts, teacher.tokenizer, compare=False)
    try:
        prompts.hold([found.number])
    except AfterglowError as error:
        return [f"  as {teacher.called} scores it: {error}"]
    return _tokens(f"  as {teacher.called} scores it", prompts[found.number].tolist(), teacher)


def _tokens(title: str, ids: Iterable[int], model: KnownModel) -> list[str]:
    """Text, then tokens: id and piece."""
    words, ids = model.tokenizer, list(ids)
    lines = ["", f"{title} ({len(ids)} tokens)"]
    lines += [
        f"  | {line}" for line in words.decode(ids, clean_up_tokenization_spaces=False).split("\n")
    ]
    line = "  "
    for number, piece in zip(ids, words.convert_ids_to_tokens(ids), strict=True):
        token = f"{number} {piece!r}  "
        if len(line) + len(token) > _WIDTH and line.strip():
            lines.append(line.rstrip())
            line = "  "
        line += token
    return [*lines, line.rstrip()]
