"""A process that checks mathematical answers: one JSON pair per line in, one outcome per line out.

The first line out is "ready".

`stages.data.verifiers` runs it as a script, in a process of its own: comparing expressions may hang
or exhaust memory in ways that only ending the process cures. It imports nothing of this package.
"""

import json
import resource
import sys
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

_MEMORY = 4 << 30
_SECONDS = 5
"""Limit of each parse and each comparison; the parent's own limit is above their sum."""


@lru_cache(maxsize=4096)
def gold(answer: str) -> list[Any]:
    """The reference answer parsed as LaTeX; a bare answer is marked as such first."""
    marked = "$" in answer or "\\boxed" in answer
    return parse(answer if marked else f"${answer}$", parsing_timeout=_SECONDS)


def check(text: str, answer: str) -> int:
    """1 right, 0 wrong, -1 where the reference answer cannot be parsed."""
    expected = gold(answer)
    if not expected:
        return -1
    return int(verify(expected, parse(text, parsing_timeout=_SECONDS), timeout_seconds=_SECONDS))


def main() -> None:
    """Serve until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    _write("ready")
    for line in sys.stdin:
        text, answer = json.loads(line)
        try:
            outcome = check(text, answer)
        except (Exception, RecursionError, MemoryError):  # noqa: BLE001 - any failure is "not right"
            outcome = 0
        _write(outcome)


def _write(word: object) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
