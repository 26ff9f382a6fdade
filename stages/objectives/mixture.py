"""Weighted sums of objectives, with weights that may change over training.

Forward then reverse KL is the mixture of both with weights that swap half-way.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, create_model, field_validator, model_validator

from stages.objectives.objective import Objective, Terms
from stages.table import Fraction
from storage.schema import OUTCOME

if TYPE_CHECKING:
    from torch import Tensor

    from stages.objectives.tensors import TorchRecords

Weight = Annotated[float, Field(ge=0.0)]


class Term(Objective):
    """One term of a mixture: the fields it has beside the options of its objective."""

    weight: Weight | tuple[tuple[Fraction, Weight], ...] = 1.0
    """A number, or points `[progress, weight]` over training progress from 0 to 1, with straight
    lines between them; of two points at the same progress, the second holds from there on."""
    on: Literal["all", "right", "wrong"] = "all"
    """Sequences the term reads, by what the verifier said of them: `wrong` are all that were judged
    and are not right, so unparsed and cut ones too. The loss of the term is 0 at all others, which
    still count in the mean over the positions of the step."""

    @field_validator("weight")
    @classmethod
    def _rising(cls, weight: object) -> object:
        if isinstance(weight, tuple):
            steps = [progress for progress, _ in weight]
            if not steps or steps != sorted(steps):
                raise ValueError("list the points [progress, weight] by rising progress")
        return weight

    @model_validator(mode="before")
    @classmethod
    def _no_temperature(cls, values: object) -> object:
        if isinstance(values, Mapping) and "temperature" in values:
            raise ValueError("`temperature` belongs to the mixture: all of its terms share it")
        return values

    def unused(self) -> frozenset[str]:
        """The temperature is the mixture's. A term that reads all sequences need not say so."""
        return frozenset({"temperature"} if self.on != "all" else {"temperature", "on"})

    @property
    def follows_progress(self) -> bool:
        """Whether its weight changes; an objective that itself changes says so before."""
        return not isinstance(self.weight, float)

    @property
    def reads_outcome(self) -> bool:
        """Whether only sequences of one outcome are read."""
        return self.on != "all"

    @classmethod
    def of(cls, name: str | None) -> Any:
        """The table of the objective called `name` as a term.

        Raises:
            ValueError: there is no such objective, or it is a mixture.
        """
        if name == "mixture":
            raise ValueError("a term of a mixture cannot be a mixture: list its terms beside it")
        return _as_term(super().of(name))


@cache
def _as_term(objective: type[Objective]) -> type[Objective]:
    """`objective` with the fields of a term; its temperature is not written down."""
    temperature: Any = (float, Field(1.0, exclude=True))
    return create_model(objective.__name__, __base__=(objective, Term), temperature=temperature)


class Mixture(Objective):
    """The weighted sum of its terms."""

    name: Literal["mixture"] = "mixture"
    terms: tuple[SerializeAsAny[Term], ...] = ()
    """The objectives whose weighted sum is minimised."""

    @model_validator(mode="after")
    def _some_terms(self) -> Self:
        if not self.terms:
            raise ValueError('`name = "mixture"` needs `terms`: [[train.objective.terms]] tables')
        return self

    @classmethod
    def variants(cls) -> tuple[Objective, ...]:
        """No row of its own: it is what its weakest term is."""
        return ()

    @property
    def losses(self) -> tuple[Objective, ...]:
        """Its terms."""
        return self.terms

    @property
    def follows_progress(self) -> bool:
        """Whether one of its terms does."""
        return any(term.follows_progress for term in self.terms)

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms; each term's value and statistics are logged, whatever its weight."""
        loss_T = logq_T.new_zeros(logq_T.shape)
        stats: dict[str, Tensor] = {}
        names = [term.name for term in self.terms]
        for number, (name, term) in enumerate(zip(names, self.terms, strict=True), start=1):
            label = f"{name}_{number}" if names.count(name) > 1 else name
            found = term.at(self._progress)(logq_E, logq_T, records)
            term_T = found.loss_T
            if term.on != "all":
                outcome_T = term.required(records.outcome_T, "outcome")
                right_T = outcome_T == OUTCOME["right"]
                unread_T = right_T | (outcome_T == OUTCOME["unknown"])
                term_T = term_T.masked_fill(unread_T if term.on == "wrong" else ~right_T, 0.0)
            loss_T = loss_T + weight_at(term.weight, self._progress) * term_T
            stats[label] = term_T.detach()
            stats |= {f"{label}_{key}": value for key, value in found.stats.items()}
        return Terms(loss_T, stats)


def weight_at(weight: float | Sequence[tuple[float, float]], progress: float) -> float:
    """Value at `progress` of straight lines between points, level before and after them.

    Of two points at the same progress, the second holds from there on.
    """
    if isinstance(weight, int | float):
        return float(weight)
    after = bisect_right([x for x, _ in weight], progress)
    if after == 0:
        return weight[0][1]
    if after == len(weight):
        return weight[-1][1]
    (x0, y0), (x1, y1) = weight[after - 1], weight[after]
    return y0 + (y1 - y0) * (progress - x0) / (x1 - x0)
