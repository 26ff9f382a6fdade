"""The `[teacher-logits.record]` table: one class for each kind of record, with its options.

What a kind stores is in `storage.kinds`, how it is drawn in the module of `stages.scoring` that is
named after it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from stages.config.candidates import Candidates, Coverage, mean_candidates, most_candidates
from stages.table import Choice, Layers
from storage.errors import ConfigError
from storage.kinds import (
    KINDS,
    MAX_COPIES,
    MAX_DRAWS,
    MAX_TOP,
    MIN_TAU,
    Kind,
)

TAIL_FLOOR = 0.5**0.5
"""`HeadTail.tail_floor` over tau. To keep the one id of a tail of mass r with probability s costs s
entries and, at most, 2 r^2 / s of squared error (its own and that of the head, which takes what is
left). At tau^2 of error per entry, the rate at which tau trades them everywhere else, the cost is
least at s = r / (tau sqrt(1/2))."""


class Record(Choice):
    """What is kept of the teacher's distribution at each position; base of all kinds."""

    chosen_by = "kind"
    unnamed = "head_tail"

    kind: str
    """Each kind has its name for a default."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """The teacher's logits are divided by this before anything is recorded."""
    loss_temperature: Annotated[float, Field(gt=0.0)] | None = None
    """A second temperature at which objectives may read the record; its normaliser is kept."""

    @property
    def stores(self) -> Kind:
        """The columns of this kind, and what their ids are."""
        return KINDS[self.kind]

    @property
    def uniforms(self) -> int:
        """Uniforms that one position needs."""
        return 0

    @property
    def wanted(self) -> Candidates:
        """Which of pi_ref's own top ids are in the head whatever the teacher says."""
        return 0

    @property
    def forced(self) -> int:
        """The most of them at one position."""
        return most_candidates(self.wanted)

    def ids_per_position(self, entries: float) -> tuple[float, float]:
        """Expected ids of a position: in the head, and drawn in each copy.

        Args:
            entries: Ids that the teacher's entropy leaves at tau = 0.023, or in 50 draws.
        """
        return 0.0, 0.0

    def one_draw(self) -> Self:
        """The record with a single draw of each position."""
        return self

    def described(self) -> dict[str, Any]:
        """The `record` object of a manifest or a footer: all that a reader needs, and more."""
        return self.model_dump()

    def check_candidates(self, kept: Candidates, sequences: str) -> None:
        """Check that the sequences have the ids to be forced into the head.

        Args:
            kept: Candidates that the sequences keep per position.
            sequences: What they are called in the message.

        Raises:
            ConfigError: they keep fewer, or not those that cover the mass asked for.
        """
        wanted = self.wanted
        if isinstance(wanted, Coverage):
            found = kept.mass if isinstance(kept, Coverage) else None
            if found != wanted.mass:
                what = f"{kept} per position" if found is None else f"what covers {found:g}"
                raise ConfigError(
                    f"record.candidates.mass is {wanted.mass:g}, but {sequences} keep {what}: give "
                    "rollouts.candidates and record.candidates the same mass, or let the record "
                    "take a number"
                )
        enough = most_candidates(kept)
        if self.forced > enough:
            name, other = (
                "candidates.at_most" if isinstance(table, Coverage) else "candidates"
                for table in (wanted, kept)
            )
            raise ConfigError(
                f"record.{name} is {self.forced}, but {sequences} keep {enough} per position: set "
                f"it to {enough}, or raise rollouts.{other} to {self.forced}"
            )


class Drawn(Record):
    """Records with ids drawn at random."""

    copies: Annotated[int, Field(ge=1, le=MAX_COPIES)] = 1
    """`counts`, `head_tail`: independent draws kept per position; epoch e of a reader reads draw
    e modulo `copies`, so that epochs do not all see the same draw."""
    logp: bool = False
    """`counts`, `head_tail`: keep log p of the drawn ids too, which divergences other than the
    forward KL need."""

    @property
    def uniforms(self) -> int:
        """One for each copy. Copy m uses the m-th, so that more copies do not change the first."""
        return self.copies

    def one_draw(self) -> Self:
        """The record with a single draw of each position."""
        return self.model_copy(update={"copies": 1})


class Sampled(Record):
    """Log p of the realised token only."""

    kind: Literal["sampled"] = "sampled"


class Counts(Drawn):
    """Ids and counts of `draws` draws."""

    kind: Literal["counts"] = "counts"
    draws: Annotated[int, Field(ge=1, le=MAX_DRAWS)] = 50
    """`counts`: number of draws N."""
    sampler: Literal["systematic", "multinomial"] = "systematic"
    """`counts`: `multinomial` is RS-KD as published; `systematic` has a third of its variance."""

    @property
    def uniforms(self) -> int:
        """One for each copy, or one for each of its independent draws."""
        return self.copies * (self.draws if self.sampler == "multinomial" else 1)

    def ids_per_position(self, entries: float) -> tuple[float, float]:
        """As `Record.ids_per_position`; the exponent is that of text (arXiv 2503.16870)."""
        return 0.0, entries * (self.draws / 50) ** 0.63


class HeadTail(Drawn):
    """Every id with p >= tau exactly, and a systematic sample of the rest."""

    kind: Literal["head_tail"] = "head_tail"
    tau: Annotated[float, Field(ge=MIN_TAU, lt=1.0)] | None = 0.023
    """`head_tail`: probability from which an id is stored exactly; also bounds tail weights."""
    entries: Annotated[float, Field(ge=1.0)] | None = None
    """`head_tail`, instead of `tau`: the mean number of ids to keep per position. tau is calibrated
    once, on a sample of the positions to be scored, and then holds for all of them."""
    candidates: Candidates = 4
    """`head_tail`: how many of pi_ref's own top ids are forced into the head; 0 is off. A number
    takes the first that the rollouts keep; `{ mass = 0.95, at_most = 64 }` takes those that cover
    that share of pi_ref's mass, and needs rollouts that keep them by the same mass."""

    @model_validator(mode="before")
    @classmethod
    def _tau_or_entries(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("entries") is not None:
            if values.get("tau") is not None:
                raise ValueError(
                    "`tau` and `entries` exclude each other: give `tau`, or the mean number of "
                    "`entries` from which it is calibrated"
                )
            return {**values, "tau": None}
        return values

    @model_validator(mode="after")
    def _some_tau(self) -> Self:
        if self.tau is None and self.entries is None:
            raise ValueError("`head_tail` needs `tau`, or `entries` from which it is calibrated")
        return self

    @property
    def wanted(self) -> Candidates:
        """`candidates`."""
        return self.candidates

    @property
    def known_tau(self) -> float:
        """tau.

        Raises:
            ValueError: the record asks for a number of entries and has not been calibrated yet.
        """
        if self.tau is None:
            raise ValueError(f"tau for {self.entries} entries is unknown: calibrate the record")
        return self.tau

    def calibrated(self, tau: float) -> Self:
        """The record as it is drawn and stored: `tau` filled in, `entries` left to tell why."""
        return self.model_copy(update={"tau": tau})

    @property
    def tail_floor(self) -> float:
        """A tail of less mass keeps its one id with probability mass / `tail_floor`.

        That id then weighs `tail_floor`; with log p of drawn ids no tail is left out, and this is
        0. So positions at which the teacher is sure cost hardly more than their head.
        """
        return 0.0 if self.logp or self.tau is None else self.tau * TAIL_FLOOR

    def ids_per_position(self, entries: float) -> tuple[float, float]:
        """As `Record.ids_per_position`; half of the candidates are in the head anyway."""
        forced = 0.5 * mean_candidates(self.candidates)
        own = entries * 0.023 / self.tau if self.tau else max(1.0, (self.entries or 0.0) - forced)
        return 0.4 * own + forced, 0.6 * own

    def described(self) -> dict[str, Any]:
        """As `Record.described`, with the `tail_floor` that follows from the options."""
        return super().described() | ({"tail_floor": self.tail_floor} if self.tail_floor else {})


class TopK(Record):
    """The `k` likeliest ids exactly and nothing of the rest but its mass (biased)."""

    kind: Literal["top_k"] = "top_k"
    k: Annotated[int, Field(ge=1, le=MAX_TOP)] = 50
    """`top_k`: number of ids."""

    def ids_per_position(self, entries: float) -> tuple[float, float]:
        """As `Record.ids_per_position`."""
        return float(self.k), 0.0


def stored_record(table: Mapping[str, Any]) -> Record:
    """The record of a set, from the `record` object of its manifest or footer.

    Old sets list the options of all kinds; those of others are ignored. A calibrated tau is kept
    beside the `entries` that asked for it, and counts alone.
    """
    known = Layers(table)
    if known.get("tau") is not None:
        known.pop("entries", None)
    known.inherited = frozenset(known)
    return Record.model_validate(known)
