"""Tables of objectives and of how far a student may drift."""

from collections.abc import Mapping, Sequence
from typing import Annotated, cast

from pydantic import Field

import stages.objectives.catalogue  # noqa: F401  (makes all objectives known)
from stages.objectives.objective import Objective
from stages.table import Layers, Table


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

    warn_chi2: Annotated[float, Field(gt=0.0)] = 1.0
    """Token-level chi-square E[w^2] - 1 of w = pi / pi_ref above which a warning is logged."""
    stop_chi2: Annotated[float, Field(gt=0.0)] | None = None
    """The same, above which training stops with the model as it is."""
