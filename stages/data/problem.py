"""Built-in tasks: problems with prompts, answers and worked solutions, made from an index.

A task is a pure function of (index, seed). The index alone decides the *problem*, through a fixed
permutation of all problems, so ranges of indices that do not overlap hold different problems
whatever the seeds; the seed decides only how the solution is written.
"""

from dataclasses import dataclass
from typing import Protocol

from storage.errors import DataError


@dataclass(frozen=True)
class Problem:
    """One problem of a task."""

    prompt: str
    answer: str
    """What a verifier looks for."""
    response: str
    """A right response, without end token."""


class PromptTask(Protocol):
    """What a task offers."""

    name: str
    version: int
    """Part of every key; raised when the same index gives another problem or solution."""
    size: int
    """Number of different problems."""
    characters: str
    """Every character that occurs."""

    def problems(self, first: int, count: int, seed: int) -> list[Problem]:
        """Problems `first` to `first + count`, their solutions written as `seed` says.

        Raises:
            DataError: the task has no such problems.
        """
        ...


def check_range(task: str, size: int, first: int, count: int) -> None:
    """Raise unless a task of `size` problems has those from `first` on.

    Raises:
        DataError: it has fewer.
    """
    if first < 0 or first + count > size:
        raise DataError(
            f"task {task}: problems {first} to {first + count - 1} were asked for, but it "
            f"has 0 to {size - 1}. Lower `first`, `limit` or `count`."
        )
