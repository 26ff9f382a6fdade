"""Prompts the student solves sometimes: PACED's kernel of the pass rate."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stages.weights.base import Doubles, Positions, Reads, Weight


class PassRate(Weight):
    """Weigh each sequence by p^a (1 - p)^b, p being the pass rate of its prompt."""

    name: Literal["pass_rate"] = "pass_rate"
    a: Annotated[float, Field(ge=0.0)] = 1.0
    """Exponent of p. Above 0, prompts that are never solved weigh nothing."""
    b: Annotated[float, Field(ge=0.0)] = 1.0
    """Exponent of 1 - p. Above 0, prompts that are always solved weigh nothing."""

    reads: ClassVar[Reads] = "token"
    reason: ClassVar[str] = (
        "the pass rate of the prompt, in which the outcome of the sequence itself counts"
    )
    reads_rates: ClassVar[bool] = True

    def score(self, at: Positions) -> Doubles:
        """The kernel, the same at all positions of a sequence."""
        rate_N = at.pass_rate_N
        return (rate_N**self.a * (1.0 - rate_N) ** self.b)[at.row_T]
