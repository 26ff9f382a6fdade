"""The legality table: what an objective (with its form) is on each kind of record.

Data only; the rules that depend on temperatures, sampling and options are in `contract`. A kind
with `+logp` is a record that keeps log p of its drawn ids too. Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Level = Literal["exact", "unbiased", "lower_bound", "biased", "refused"]

WEAKEST_LAST: tuple[Level, ...] = ("exact", "unbiased", "lower_bound", "biased", "refused")

NO_TEACHER = "sequences"
"""Stands for the record kind of a set that holds tokens only."""

KINDS = (
    NO_TEACHER,
    "sampled",
    "counts",
    "counts+logp",
    "head_tail",
    "head_tail+logp",
    "top_k",
)


@dataclass(frozen=True)
class Guarantee:
    """What an objective is on given records, and why."""

    level: Level
    reason: str
    note: str = ""
    """What a first pass over the data does not yet show; empty where there is nothing to say."""

    def to_json(self) -> dict[str, str]:
        """A JSON-ready dictionary; `note` only where there is one."""
        stated = {"level": self.level, "reason": self.reason}
        return stated | ({"note": self.note} if self.note else {})


FULL = Guarantee("exact", "no record: the whole distribution of the teacher, run at every position")
"""Of `live = "full"`, which asks no record for anything."""


def _refused(reason: str) -> Guarantee:
    return Guarantee("refused", reason)


_NO_TEACHER = _refused("the set holds tokens but no teacher log-probabilities")
_NO_SUPPORT = _refused(
    "one token drawn by another policy says nothing of the teacher's distribution"
)
_NO_LOGP = _refused("draws without log p estimate only what is linear in p, and this is not")
_NO_HEAD = _refused(
    "no id is stored exactly, so all of the vocabulary is one symbol and nothing trains"
)

_LIKELIHOOD = Guarantee("exact", "maximum likelihood of the stored tokens; no teacher is read")
_WEIGHTS = Guarantee("unbiased", "linear in weights whose expectation is the teacher's probability")
_RENORMALISED = Guarantee(
    "biased",
    "renormalised over the k ids: its optimum gives them all the mass and is overconfident",
)
_GHOST = Guarantee("lower_bound", "everything outside the stored head counts as one symbol")
_DRAWN = Guarantee(
    "unbiased", "terms bounded by p, each drawn id weighted by the inverse of its probability"
)
_INTERPOLATED = Guarantee(
    "biased",
    "the target's normaliser depends on the student and is estimated from the same draws: "
    "consistent; unbiased at the end of the schedule, where the target is the teacher",
)
_INTERPOLATED_BUCKET = Guarantee(
    "biased", "the target is interpolated with everything outside the stored head as one symbol"
)
_LIGHTNING = Guarantee(
    "exact",
    "the published sampled-token objective; as an estimate of reverse KL it holds near pi_ref only",
)
_ONE_TOKEN = Guarantee("unbiased", "the importance-weighted realised token alone: very noisy")
_CORRECTED = Guarantee(
    "unbiased", "exact on the stored head, importance-corrected by the realised token outside"
)
_RESIDUAL = Guarantee(
    "unbiased", "exact on the stored head, importance-weighted outside, no control variate: noisy"
)
_NOTHING_EXACT = Guarantee(
    "unbiased", "no id is stored exactly: the importance-weighted realised token alone, very noisy"
)


def _row(*cells: Guarantee) -> Mapping[str, Guarantee]:
    return dict(zip(KINDS, cells, strict=True))


_F_DIVERGENCE = _row(_NO_TEACHER, _NO_SUPPORT, _NO_LOGP, _DRAWN, _GHOST, _DRAWN, _GHOST)

TABLE: Mapping[str, Mapping[str, Guarantee]] = {
    "cross_entropy": _row(*[_LIKELIHOOD] * 7),
    "forward_kl": _row(_NO_TEACHER, _NO_SUPPORT, *[_WEIGHTS] * 4, _RENORMALISED),
    "ghost_kl": _row(_NO_TEACHER, _NO_HEAD, _NO_HEAD, _NO_HEAD, _GHOST, _GHOST, _GHOST),
    "jsd": _F_DIVERGENCE,
    "skew_forward_kl": _F_DIVERGENCE,
    "skew_reverse_kl": _F_DIVERGENCE,
    "tvd": _F_DIVERGENCE,
    "taid": _row(
        _NO_TEACHER,
        _NO_SUPPORT,
        _NO_LOGP,
        _INTERPOLATED,
        _INTERPOLATED_BUCKET,
        _INTERPOLATED,
        _INTERPOLATED_BUCKET,
    ),
    "lightning": _row(_NO_TEACHER, *[_LIGHTNING] * 6),
    "policy_gradient": _row(_NO_TEACHER, *[_ONE_TOKEN] * 6),
    "reverse_kl/corrected": _row(_NO_TEACHER, *[_NOTHING_EXACT] * 3, *[_CORRECTED] * 3),
    "reverse_kl/residual_only": _row(_NO_TEACHER, *[_NOTHING_EXACT] * 3, *[_RESIDUAL] * 3),
    "reverse_kl/bucketed": _row(_NO_TEACHER, *[_NO_HEAD] * 3, *[_GHOST] * 3),
}
"""Row -> kind -> guarantee, before the rules are applied."""
