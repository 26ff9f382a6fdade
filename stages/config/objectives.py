"""Tables of objectives and of how far a student may drift."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, cast

from pydantic import Field

import stages.objectives.catalogue  # noqa: F401  (makes all objectives known)
from stages.objectives.objective import Objective
from stages.table import NOT_IN_KEY, Bound, KeyDefault, Layers, Table, at_default


def of_manifest(table: Mapping[str, object]) -> Objective:
    """The objective that a manifest holds; version 0.1.0 wrote the options of all beside its own.

    Raises:
        ValueError: there is no such objective any more.
    """

    def ignoring_others(one: Mapping[str, object]) -> Layers:
        lenient = Layers(one)
        lenient.inherited = frozenset(one)
        return lenient

    terms = cast("Sequence[Mapping[str, object]]", table.get("terms", ()))
    return Objective.model_validate(
        ignoring_others({**table, "terms": [ignoring_others(term) for term in terms]})
    )


class Drift(Table):
    """Limits on how far the student may leave pi_ref, the policy that wrote the data."""

    warn: Annotated[Bound | Literal["teacher"], NOT_IN_KEY] = "teacher"
    """KL(pi_ref || student) in nats per token, on the tokens of the data, above which a warning is
    logged; `"none"` for no warning. `"teacher"` is KL(pi_ref || teacher) on the same tokens, as far
    as a student goes that becomes its teacher, and at least 0.5 (docs/drift.md)."""
    stop: Annotated[float, Field(gt=0.0)] | None = None
    """The same, above which training stops with the model as it is."""
    warn_chi2: Annotated[float | None, Field(gt=0.0), KeyDefault(1.0)] = None
    """Token-level chi-square E[w^2] - 1 of w = pi / pi_ref above which a warning is logged too.
    Prefer `warn`: single tokens decide the estimate of chi-square."""
    stop_chi2: Annotated[float, Field(gt=0.0)] | None = None
    """The same, above which training stops; prefer `stop`."""

    def unused(self) -> frozenset[str]:
        """A limit that is not set."""
        return at_default(self, "stop")
