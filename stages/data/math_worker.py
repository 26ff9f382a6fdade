"""A process that compares mathematical answers: one JSON pair a line in, one outcome a line out.

A pair is the readings of a final answer (`stages.data.final_answer`) and the reference answer. The
first line out is "ready".

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


def check(readings: list[str], answer: str) -> int:
    """1 right: one of the readings is; 0 wrong; 2 unparsed: the first holds no mathematics.

    -1 where the reference answer cannot be parsed. The codes are those of `storage.schema.OUTCOME`.
    """
    expected = gold(answer)
    if not expected:
        return -1
    parsed = [parse(reading, parsing_timeout=_SECONDS) for reading in readings]
    if any(verify(expected, found, timeout_seconds=_SECONDS) for found in parsed if found):
        return 1
    return 0 if parsed[0] else 2


def main() -> None:
    """Serve until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    _write("ready")
    for line in sys.stdin:
        readings, answer = json.loads(line)
        try:
            outcome = check(readings, answer)
        except (Exception, RecursionError, MemoryError):  # noqa: BLE001 - nothing could be compared
            outcome = 2
        _write(outcome)


def _write(word: object) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
