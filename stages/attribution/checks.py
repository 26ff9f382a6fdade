"""Two checks: did a model draw these tokens, and did it make these records?"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stages.attribution.evidence import MOST_SKEW, Evidence, groups
from stages.attribution.observe import Observed
from storage.batch import Batch

Verdict = Literal["consistent", "rejected", "undecided"]

DRAWN_TOLERANCE = {"float32": 1e-2, "bfloat16": 0.1}
"""Mean |difference| in nats between log-probabilities of two engines running one model."""
RECORD_TOLERANCE = {"float32": 2e-3, "bfloat16": 0.05}
"""The same between what is stored (entropies in float16, log p rounded) and the model again."""
MOST_IMPOSSIBLE = 1e-3
"""Share of tokens outside a truncated distribution that rounding at its edge may account for."""


@dataclass(frozen=True)
class CheckOutcome:
    """A verdict with its grounds; a figure is None where it does not apply."""

    verdict: Verdict
    reasons: tuple[str, ...]
    figures: dict[str, float | int | None]


@dataclass
class Gap:
    """Absolute differences between stored values and a model's."""

    count: int = 0
    total: float = 0.0
    worst: float = 0.0

    def add(self, said_R: Tensor, stored_R: np.ndarray) -> None:
        """Add some positions; those the model rules out (-inf) are counted elsewhere."""
        gap_R = np.abs(said_R.cpu().numpy() - stored_R)
        gap_R = gap_R[np.isfinite(gap_R)]
        self.count += len(gap_R)
        self.total += float(gap_R.sum(dtype=np.float64))
        self.worst = max(self.worst, float(gap_R.max(initial=0.0)))

    @property
    def mean(self) -> float | None:
        """Nats; None before the first position."""
        return self.total / self.count if self.count else None


@dataclass
class DrawnCheck:
    """Did the model draw these tokens?"""

    class_V: Tensor
    level: float
    compare: bool
    """Whether stored log-probabilities of the draws count as evidence."""
    tolerance: float
    evidence: Evidence = field(default_factory=Evidence)
    gap: Gap = field(default_factory=Gap)

    def add(self, batch: Batch, chunk: slice, seen: Observed) -> None:
        """Positions `chunk` of `batch`."""
        class_R = self.class_V[torch.from_numpy(batch.tok[chunk])]
        self.evidence.add(seen, class_R, groups(previous_tokens(batch)[chunk]))
        if self.compare and batch.ref_lp is not None:
            self.gap.add(seen.lp_R, batch.ref_lp[chunk])

    def decide(self) -> CheckOutcome:
        """Each of the two tests at half the level; impossible tokens and a large gap reject too."""
        seen, reasons = self.evidence, list[str]()
        chi_square, freedom = seen.chi_square()
        if seen.impossible > MOST_IMPOSSIBLE * seen.tokens:
            reasons.append(f"{seen.impossible} tokens could not have been drawn")
        if seen.p_mean is not None and seen.p_mean < self.level / 2:
            reasons.append("mean of log p + H is not zero")
        if seen.p_classes is not None and seen.p_classes < self.level / 2:
            reasons.append("classes of ids do not have the model's proportions")
        if self.gap.mean is not None and not self.gap.mean <= self.tolerance:
            reasons.append(f"stored log-probabilities of the draws differ by {self.gap.mean:.2g}")
        figures = {
            "z": seen.z,
            "mean": seen.excess / seen.drawn if seen.drawn else None,
            "skewness": seen.skewness if seen.drawn else None,
            "p_mean": seen.p_mean,
            "chi_square": chi_square if freedom else None,
            "freedom": freedom if freedom else None,
            "p_classes": seen.p_classes,
            "impossible": seen.impossible,
            "stored_gap": self.gap.mean,
        }
        verdict: Verdict = "undecided"
        if reasons:
            verdict = "rejected"
        elif not seen.drawn:  # greedy: every token is the likeliest, and nothing else to test
            verdict = "consistent" if seen.tokens else "undecided"
        elif seen.p_mean is not None and abs(seen.skewness) <= MOST_SKEW:
            verdict = "consistent"
        return CheckOutcome(verdict, tuple(reasons), figures)


@dataclass
class RecordCheck:
    """Did the model make these records?"""

    tolerance: float
    lp: Gap = field(default_factory=Gap)
    ent: Gap = field(default_factory=Gap)

    def add(self, batch: Batch, chunk: slice, seen: Observed) -> None:
        """Positions `chunk` of `batch`."""
        assert batch.lp is not None, "every record holds it"
        assert batch.ent is not None, "every record holds it"
        self.lp.add(seen.lp_R, batch.lp[chunk])
        self.ent.add(seen.ent_R, batch.ent[chunk])

    def decide(self) -> CheckOutcome:
        """Mean differences within the tolerance."""
        reasons = tuple(
            f"{what} differs by {gap.mean:.2g} nats a token"
            for what, gap in (("log p", self.lp), ("the entropy", self.ent))
            if gap.mean is not None and not gap.mean <= self.tolerance
        )
        figures = {
            "lp_gap": self.lp.mean,
            "lp_worst": self.lp.worst if self.lp.count else None,
            "ent_gap": self.ent.mean,
            "tolerance": self.tolerance,
        }
        if not self.lp.count:
            return CheckOutcome("undecided", (), figures)
        return CheckOutcome("rejected" if reasons else "consistent", reasons, figures)


def previous_tokens(batch: Batch) -> np.ndarray:
    """[T] the token before each response token: the last of the prompt for the first of them."""
    before_T = np.roll(batch.tok, 1)
    first_N = batch.tok_off[:-1][np.diff(batch.tok_off) > 0]
    before_T[first_N] = batch.prompt[batch.prompt_off[1:] - 1][np.diff(batch.tok_off) > 0]
    return before_T
