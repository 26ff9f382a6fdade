"""Accuracy by difficulty of the prompt, from the answers that evaluations keep.

Prompts are sorted by the share of right answers that all models together gave to them. The groups
are the same for every model, so models can be compared within a group. Their own answers are among
those that sort the prompts, so the figures describe these answers and predict no others.

Imports no torch.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from stages.evaluation.answers import RIGHT, UNKNOWN, Answer

EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of right answers between which a group lies, the upper end included."""


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy of one model on the prompts of one group."""

    prompts: int
    accuracy: float
    """Mean over prompts of the share of right sampled answers."""
    error: float | None
    """Standard error over prompts; None for a single one."""


@dataclass(frozen=True)
class Difficulty:
    """Groups from hard to easy, and how each model does on them."""

    groups: tuple[str, ...]
    models: Mapping[str, Sequence[GroupAccuracy | None]]


def by_difficulty(answers: Mapping[str, Iterable[Answer]]) -> Difficulty | None:
    """Accuracy of every model by group of prompts; None unless two models answered the same ones.

    Args:
        answers: By model. Prompts that a model has no judged answer to are left out for all.
    """
    sampled: dict[str, dict[int, list[bool]]] = {}
    every: dict[str, dict[int, list[bool]]] = {}
    for name, found in answers.items():
        for answer in found:
            if answer.outcome == UNKNOWN:
                continue
            right = answer.outcome == RIGHT
            every.setdefault(name, {}).setdefault(answer.prompt_id, []).append(right)
            if not answer.greedy:
                sampled.setdefault(name, {}).setdefault(answer.prompt_id, []).append(right)
    if len(sampled) < 2:
        return None
    shared = set[int].intersection(*(set(found) for found in sampled.values()))
    if not shared:
        return None
    share = {
        prompt: statistics.fmean(
            statistics.fmean(found[prompt]) for found in every.values() if prompt in found
        )
        for prompt in shared
    }
    members = [
        [prompt for prompt in sorted(shared) if _group(share[prompt]) == group]
        for group in range(len(EDGES) - 1)
    ]
    return Difficulty(
        tuple(f"{100 * low:.0f}-{100 * high:.0f} %" for low, high in pairwise(EDGES)),
        {
            name: [_accuracy([found[prompt] for prompt in group]) for group in members]
            for name, found in sampled.items()
        },
    )


def _group(share: float) -> int:
    return next(index for index, edge in enumerate(EDGES[1:]) if share <= edge + 1e-12)


def _accuracy(answers: Sequence[Sequence[bool]]) -> GroupAccuracy | None:
    if not answers:
        return None
    means = [statistics.fmean(right) for right in answers]
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None
    return GroupAccuracy(len(means), statistics.fmean(means), error)
