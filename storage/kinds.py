"""Kinds of records: what each one stores, and the limits of its parameters.

`storage/FORMAT.md` says what the columns mean. This module imports the standard library only, so
that configuration tables can take their limits from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

MAX_DRAWS: Final = 255
"""Draws N of a `counts` record; a count fills one byte."""
MAX_TOP: Final = 200
"""Ids k of a `top_k` record."""
MAX_COPIES: Final = 16
"""Independent draws of one position."""
MAX_CANDIDATES: Final = 64
"""Ids of the sampling model that a `head_tail` record has in its head whatever the teacher says."""
MIN_TAU: Final = 1 / 128
"""Probability from which a `head_tail` record stores ids exactly; 128 ids at most reach it."""

_ENTRIES: Final = ("nu", "ids")
_HEAD: Final = ("nu", "nh", "rest", "ids", "hlp")


@dataclass(frozen=True)
class Kind:
    """One kind of record."""

    name: str
    summary: str
    """What a record of this kind says about the teacher's distribution; one sentence for cards."""
    columns: tuple[str, ...] = ()
    """Columns of the open layout beside those that every record set has (`storage.schema`)."""
    drawn: bool = False
    """Its ids were drawn at random, so a set may hold several draws of each position (`copies`) and
    log p of what was drawn (`logp`)."""
    top: bool = False
    """Its ids are the `k` likeliest, by descending probability."""
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """Least and largest value of the parameters that are needed to decode it."""
    parameters: frozenset[str] = frozenset()
    """Parameters of a record that this kind has and others may lack."""

    @property
    def entries(self) -> bool:
        """Whether it stores ids at all."""
        return "ids" in self.columns

    @property
    def counts(self) -> bool:
        """Whether it stores how often each id was drawn."""
        return "cnt" in self.columns

    @property
    def head(self) -> bool:
        """Whether it has a head: ids that were chosen without chance, stored with their log p."""
        return "hlp" in self.columns

    @property
    def tail(self) -> bool:
        """Whether what is outside its head was drawn; only then is there a `tail_floor`."""
        return self.head and self.drawn


KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind(
            "sampled",
            "The teacher's log-probability of the sampled token and its entropy: exact.",
        ),
        Kind(
            "counts",
            "Weights of drawn ids: an unbiased estimate of the teacher's probabilities.",
            columns=(*_ENTRIES, "cnt"),
            drawn=True,
            limits={"draws": (1, MAX_DRAWS), "copies": (1, MAX_COPIES)},
            parameters=frozenset({"draws", "sampler", "copies", "logp"}),
        ),
        Kind(
            "head_tail",
            "Probabilities of the head exactly, of the tail by an unbiased sample; together they "
            "sum to 1 and estimate the teacher's probabilities without bias.",
            columns=_HEAD,
            drawn=True,
            limits={"copies": (1, MAX_COPIES)},
            parameters=frozenset({"tau", "entries", "candidates", "copies", "logp"}),
        ),
        Kind(
            "top_k",
            "The most probable ids exactly, and the mass of all others as one number. Spread over "
            "the stored ids it is biased.",
            columns=_HEAD,
            top=True,
            limits={"k": (1, MAX_TOP)},
            parameters=frozenset({"k"}),
        ),
    )
}
"""Every kind by name."""
