"""The longest prompt of a source, found by a quick look."""

from heapq import nlargest
from itertools import islice
from typing import Any

from stages.config.data import PromptSource
from stages.data import fields
from stages.data.prompts import numbered_rows, wanted_fields
from stages.data.render import Renderer

_ROWS = 20_000
"""Rows that are read."""
_ENCODED = 32
"""Rows that are encoded: those with the most characters."""


def longest_prompt(source: PromptSource, tokenizer: Any) -> int:
    """Tokens of the longest prompt among the first rows; 0 if there are none.

    Raises:
        DataError: the file cannot be read, or one of the longest prompts cannot be rendered.
    """
    rows = islice(numbered_rows(source, wanted_fields(source)), _ROWS)
    longest = nlargest(_ENCODED, rows, key=lambda one: len(str(fields.get(one[1], source.field))))
    renderer = Renderer(tokenizer, source)
    ids = renderer.encode([renderer.dialogue(number, row) for number, row in longest])
    limit = source.max_prompt_tokens
    kept = [len(one) for one in ids if limit is None or len(one) <= limit]
    return max(kept, default=0)
