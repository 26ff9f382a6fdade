"""Built-in tasks: problems with prompts, answers and worked solutions, made from an index.

A task is a pure function of (index, seed). The index alone decides the *problem*, through a fixed
permutation of all problems, so ranges of indices that do not overlap hold different problems
whatever the seeds; the seed decides only how the solution is written.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stages.counter import hash64, shuffled
from storage.errors import ConfigError, DataError


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


class Addition:
    """Addition of two three-digit numbers with a carry scratchpad.

    The prompt is `347+586=` and a response `7+6+0=13,4+8+1=13,5+3+1=09,>0933`: one column after the
    other, least digit first, each as digit + digit + carry = two digits, then the sum. The two
    digits of a column come in random order, so a model that knows the task is not deterministic,
    and its distribution is worth recording.
    """

    name = "addition"
    version = 1
    size = 10**6
    characters = "+,0123456789=>"

    def problems(self, first: int, count: int, seed: int) -> list[Problem]:
        """As `PromptTask.problems`."""
        if first < 0 or first + count > self.size:
            raise DataError(
                f"task {self.name}: problems {first} to {first + count - 1} were asked for, but it "
                f"has 0 to {self.size - 1}. Lower `first`, `limit` or `count`."
            )
        indices = np.arange(first, first + count)
        numbers = shuffled(indices, self.size, seed=0).tolist()
        swaps = hash64(seed, indices).tolist()
        return [
            _addition(number // 1000, number % 1000, swap)
            for number, swap in zip(numbers, swaps, strict=True)
        ]


def _addition(a: int, b: int, swap: int) -> Problem:
    """The problem a + b; bit i of `swap` says whether the digits of column i change places."""
    carry, columns = 0, []
    for place in range(3):
        digits = [a // 10**place % 10, b // 10**place % 10]
        if swap >> place & 1:
            digits.reverse()
        total = sum(digits) + carry
        columns.append(f"{digits[0]}+{digits[1]}+{carry}={total:02d},")
        carry = total // 10
    answer = f"{a + b:04d}"
    return Problem(f"{a:03d}+{b:03d}=", answer, f"{''.join(columns)}>{answer}")


_TASKS: dict[str, PromptTask] = {"addition": Addition()}


def task(name: str) -> PromptTask:
    """The task called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in _TASKS:
        raise ConfigError(f"task `{name}` does not exist; there is {', '.join(_TASKS)}")
    return _TASKS[name]
