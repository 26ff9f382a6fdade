"""The task `addition`: sums of two three-digit numbers with a carry scratchpad."""

import numpy as np

from stages.counter import hash64, shuffled
from stages.data.problem import Problem, check_range


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
        check_range(self.name, self.size, first, count)
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
