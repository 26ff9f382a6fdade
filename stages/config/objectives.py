"""Tables of objectives and of how far a student may drift."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from stages.table import Fraction, Table


def _none_by_name(value: object) -> object:
    """TOML cannot write "no value"; `"none"` stands for it where that is not the default."""
    return None if value == "none" else value


Bound = Annotated[float | None, Field(gt=0.0), BeforeValidator(_none_by_name)]
"""A positive limit, or None (in a recipe: `"none"`) for no limit."""
Between = Annotated[float, Field(gt=0.0, lt=1.0)]
Weight = Annotated[float, Field(ge=0.0)]


class Loss(Table):
    """An objective and its options; which options take effect depends on the name."""

    name: Literal[
        "reverse_kl",
        "forward_kl",
        "jsd",
        "skew_forward_kl",
        "skew_reverse_kl",
        "tvd",
        "ghost_kl",
        "taid",
        "lightning",
        "policy_gradient",
        "cross_entropy",
        "mixture",
    ] = "reverse_kl"
    form: Literal["corrected", "bucketed", "residual_only"] = "corrected"
    """`reverse_kl`: bucket plus importance-corrected residual (unbiased), or one of them alone."""
    max_weight: Bound = None
    """`reverse_kl`: cap on the importance weight; brings bias, how often it binds is logged."""
    truncation: Bound = 2.0
    """`policy_gradient`: the same; `"none"` for the full correction."""
    clip: Bound = 10.0
    """`lightning`: bound on |log pi_T - log pi|, as published (arXiv 2604.13010)."""
    beta: Between = 0.5
    """`jsd`: share of the teacher in the mixture (arXiv 2306.13649); towards 0 the forward KL,
    towards 1 the reverse KL."""
    alpha: Between = 0.1
    """`skew_forward_kl`, `skew_reverse_kl`: share of the distribution that the other one is
    mixed with (arXiv 2402.03898)."""
    start: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.4
    """`taid`: weight of the teacher in the target at the first step; 1 at the last
    (arXiv 2501.16937)."""

    def unused(self) -> frozenset[str]:
        """Options of other objectives."""
        used = {
            "reverse_kl": {"form", "max_weight"},
            "policy_gradient": {"truncation"},
            "lightning": {"clip"},
            "jsd": {"beta"},
            "skew_forward_kl": {"alpha"},
            "skew_reverse_kl": {"alpha"},
            "taid": {"start"},
        }
        return frozenset(set[str]().union(*used.values()) - used.get(self.name, set()))


class Term(Loss):
    """One term of a mixture; all terms share the temperature."""

    weight: Weight | tuple[tuple[Fraction, Weight], ...] = 1.0
    """A number, or points `[progress, weight]` over training progress from 0 to 1, with straight
    lines between them; of two points at the same progress, the second holds from there on."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.name == "mixture":
            raise ValueError("a term of a mixture cannot be a mixture: list its terms beside it")
        if isinstance(self.weight, tuple):
            steps = [progress for progress, _ in self.weight]
            if not steps or steps != sorted(steps):
                raise ValueError("`weight`: list the points [progress, weight] by rising progress")
        return self


class Objective(Loss):
    """What is minimised; which records serve it is the legality contract of `stages.objectives`."""

    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Divides the student's logits. Other than the record's temperature it needs a record that
    keeps the normaliser of this one (`record.loss_temperature`), or log p to estimate it from."""
    terms: tuple[Term, ...] = ()
    """`mixture`: the objectives whose weighted sum is minimised."""

    @model_validator(mode="after")
    def _terms_of_a_mixture(self) -> Self:
        if self.name == "mixture" and not self.terms:
            raise ValueError('`name = "mixture"` needs `terms`: [[train.objective.terms]] tables')
        return self

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The terms of a mixture, or the objective itself."""
        return self.terms if self.name == "mixture" else (self,)

    def unused(self) -> frozenset[str]:
        """Options of other objectives."""
        return super().unused() | (set[str]() if self.name == "mixture" else {"terms"})


class Drift(Table):
    """Limits on how far the student may leave pi_ref, the policy that wrote the data."""

    warn_chi2: Annotated[float, Field(gt=0.0)] = 1.0
    """Token-level chi-square E[w^2] - 1 of w = pi / pi_ref above which a warning is logged."""
    stop_chi2: Annotated[float, Field(gt=0.0)] | None = None
    """The same, above which training stops with the model as it is."""
