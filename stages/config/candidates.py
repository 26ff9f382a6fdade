"""How many of pi_ref's own likeliest ids are kept at a position: a number, or a share of its mass.

Either way the ids follow from pi_ref's distribution alone and never from the token that was drawn,
which is what keeps records unbiased (docs/contract.md).
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from stages.table import Table
from storage.kinds import MAX_CANDIDATES

_MEAN_TO_COVER = ((0.5, 20.6), (0.8, 43.1), (0.9, 51.9), (0.95, 58.6), (0.99, 63.7))
"""Mass, and the mean number of ids, at most 64, that cover it or fail to: of a student with a third
of the layers of SmolLM2-135M after a short SFT (docs/records.md). Surer models need fewer."""


class Coverage(Table):
    """As many of pi_ref's own likeliest ids as cover a share of its mass."""

    mass: Annotated[float, Field(gt=0.0, le=1.0)]
    """Share of pi_ref's mass that the ids of a position are to cover: the fewest that do are kept,
    at least one."""
    at_most: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] = MAX_CANDIDATES
    """Most ids of a position, whatever they cover."""


def _member(value: object) -> str:
    return "table" if isinstance(value, Mapping | Coverage) else "number"


Candidates = Annotated[
    Annotated[int, Field(ge=0, le=MAX_CANDIDATES), Tag("number")]
    | Annotated[Coverage, Tag("table")],
    Discriminator(_member),
]
"""A number of ids for every position, 0 for none, or a `Coverage`."""


def most_candidates(candidates: Candidates) -> int:
    """Most ids of one position."""
    return candidates.at_most if isinstance(candidates, Coverage) else candidates


def mean_candidates(candidates: Candidates) -> float:
    """Mean number of ids of a position, for plans; of a mass, interpolated between measurements."""
    if not isinstance(candidates, Coverage):
        return float(candidates)
    low = (0.0, 1.0)
    for high in (*_MEAN_TO_COVER, (1.0, float(MAX_CANDIDATES))):
        if candidates.mass <= high[0]:
            share = (candidates.mass - low[0]) / (high[0] - low[0])
            return min(low[1] + share * (high[1] - low[1]), float(candidates.at_most))
        low = high
    return float(candidates.at_most)


def candidates_meta(candidates: Candidates) -> dict[str, Any]:
    """What the manifest of a set of sequences says of its candidates."""
    mass = {"candidate_mass": candidates.mass} if isinstance(candidates, Coverage) else {}
    return {"candidates": most_candidates(candidates), **mass}


def stored_candidates(meta: Mapping[str, Any]) -> Candidates:
    """The inverse of `candidates_meta`, from the `meta` of a manifest."""
    kept = int(meta.get("candidates", 0))
    mass = meta.get("candidate_mass")
    return kept if mass is None else Coverage(mass=float(mass), at_most=kept)
