"""What tokens are coloured by: one number for each position, from a set alone or with models.

Imports no torch. Shape letters: N sequences, T positions over all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stages.evaluation.positions import PositionValues
from storage.batch import Batch
from storage.rows import Offsets

Floats = NDArray[np.floating]
Worst = Literal["low", "high", "large"]


@dataclass(frozen=True)
class Quantity:
    """A number of every position."""

    key: str
    title: str
    about: str
    worst: Worst
    """Which values are worst: the lowest, the highest, or the furthest from 0."""
    model: str | None = None
    """The model it is about; None for what the set itself holds."""

    @property
    def signed(self) -> bool:
        """Whether 0 is in the middle of the scale."""
        return self.worst != "high"


def of_set(batch: Batch) -> dict[Quantity, Floats]:
    """What the set holds, the most telling first: [T] each."""
    out: dict[Quantity, Floats] = {}
    if batch.lp is not None and batch.ref_lp is not None:
        advantage = Quantity(
            "advantage",
            "advantage: teacher - sampler",
            "log p of the teacher minus the log-probability the token was drawn with, nats",
            "low",
        )
        out[advantage] = batch.lp - batch.ref_lp
    if batch.ent is not None:
        entropy = Quantity("entropy", "entropy of the teacher", "nats", "high")
        out[entropy] = batch.ent
    if batch.lp is not None:
        surprise = Quantity(
            "surprise", "surprise of the teacher", "-log p of the token, nats", "high"
        )
        out[surprise] = -batch.lp
    if batch.exact.any():
        rest = Quantity("rest", "teacher mass outside the head", "a share of 1", "high")
        out[rest] = batch.rest
    if batch.ref_lp is not None:
        drawn = Quantity(
            "drawn",
            "surprise of the sampler",
            "minus the log-probability the token was drawn with, nats",
            "high",
        )
        out[drawn] = -batch.ref_lp
    if not out:  # a text corpus
        out[Quantity("none", "nothing", "the set holds tokens alone", "high")] = np.zeros(
            batch.tokens
        )
    return out


def of_model(batch: Batch, name: str, values: PositionValues) -> dict[Quantity, Floats]:
    """What a model adds, the most telling first: [T] each."""
    out: dict[Quantity, Floats] = {}

    def add(key: str, title: str, about: str, worst: Worst, found_T: Floats) -> None:
        out[Quantity(f"{key}:{name}", f"{name}: {title}", about, worst, name)] = found_T

    if values.reverse_kl_T is not None:
        add(
            "reverse_kl",
            "KL to the teacher",
            "KL(model, teacher), all ids outside the head as one symbol: a lower bound, nats",
            "high",
            values.reverse_kl_T,
        )
    if batch.lp is not None:
        add(
            "gap",
            "teacher - model",
            "log p minus log q of the token, nats",
            "low",
            batch.lp - values.logq_T,
        )
    if values.forward_kl_T is not None:
        add(
            "forward_kl",
            "forward KL",
            "KL(teacher, model), estimated from the record of one position: noisy, nats",
            "high",
            values.forward_kl_T,
        )
    add("entropy", "entropy", "nats", "high", values.entropy_T)
    if batch.ref_lp is not None:
        drift_T = values.logq_T - batch.ref_lp
        add(
            "drift",
            "drift: model - sampler",
            "log q minus the log-probability the token was drawn with, nats",
            "large",
            drift_T,
        )
        if batch.exact.any():
            weight_T = np.where(covered(batch), 0.0, np.exp(np.minimum(drift_T, 11.0)))
            add(
                "weight",
                "importance weight",
                "q over the probability the token was drawn with, where the token is outside the "
                "head; 0 where it is inside: the weight in the corrected reverse KL",
                "high",
                weight_T,
            )
    return out


def covered(batch: Batch) -> NDArray[np.bool_]:
    """[T] whether the realised token is among the exact ids of its position."""
    row_E = np.repeat(np.arange(batch.tokens), np.diff(batch.entry_off))
    match_E = batch.exact & (batch.ids == batch.tok[row_E])
    return np.bincount(row_E[match_E], minlength=batch.tokens) > 0


def mean(values_T: Floats, off: Offsets) -> Floats:
    """[N] mean of every sequence; 0 of one without positions."""
    sums = np.concatenate([[0.0], np.cumsum(values_T, dtype=np.float64)])
    return (sums[off[1:]] - sums[off[:-1]]) / np.maximum(np.diff(off), 1)


def worst(quantity: Quantity, values_T: Floats, off: Offsets) -> Floats:
    """[N] worst value of every sequence; 0 of one without positions."""
    found: Mapping[Worst, Callable[[Floats], Floats]] = {
        "low": lambda part: part[np.argmin(part)],
        "high": lambda part: part[np.argmax(part)],
        "large": lambda part: part[np.argmax(np.abs(part))],
    }
    pick = found[quantity.worst]
    out = np.zeros(len(off) - 1)
    for index, (start, stop) in enumerate(zip(off[:-1].tolist(), off[1:].tolist(), strict=True)):
        if stop > start:
            out[index] = pick(values_T[start:stop])
    return out


def badness(quantity: Quantity, values: Floats) -> Floats:
    """The values such that larger is worse."""
    return {"low": np.negative, "high": np.positive, "large": np.abs}[quantity.worst](values)
