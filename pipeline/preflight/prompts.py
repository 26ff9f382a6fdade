"""Prompt files: that they open and hold what the recipe says, those of later stages too."""

from collections.abc import Iterator
from itertools import islice

from pipeline.preflight.finding import Finding
from pipeline.preflight.scope import Scope
from stages.data.prompts import numbered_rows
from storage.errors import AfterglowError

FIRST_ROWS = 20
"""Rows that are looked at."""


def check_files(scope: Scope) -> Iterator[Finding]:
    """Every prompt file opens, and its first rows have the field."""
    for planned in scope.todo:
        source, subject = planned.node.config.prompt_source(), planned.node.heading
        if source is None or source.path in planned.lacks:
            continue
        columns = (source.field, source.answer_field)
        try:
            rows = list(islice(numbered_rows(source, columns), FIRST_ROWS))
        except AfterglowError as error:
            yield Finding("refused", subject, str(error), error=type(error))
            continue
        yield Finding("ok", subject, f"{source.where}: opens ({len(rows)} rows looked at)")
