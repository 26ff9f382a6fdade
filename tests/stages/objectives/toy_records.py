"""Every record a sampler could have made of one small distribution, with its probability.

Enumeration instead of simulation: an expectation over draws and realised tokens becomes a weighted
sum over positions of one `TorchRecords`, exact to rounding. Shape letters: V vocabulary, E entries
of one record, T positions.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from stages.objectives.tensors import TorchRecords

V = 8
RIGHT = (0, 2, 5)
"""Realised tokens after which the response turns out right."""


@dataclass(frozen=True)
class Draw:
    """One record and how likely it was."""

    chance: float
    ids: list[int]
    weight: list[float]
    logp: list[float]
    """NaN where not stored."""
    rest: float
    head: int = 0
    """How many of the ids, from the first on, were chosen without randomness."""


def softmax(logits_V: np.ndarray) -> np.ndarray:
    exp_V = np.exp(logits_V - logits_V.max())
    return exp_V / exp_V.sum()


def sampled() -> list[Draw]:
    """Nothing but the realised token."""
    return [Draw(1.0, [], [], [], 1.0)]


def multinomial_counts(p_V: np.ndarray, n: int, logp: bool = False) -> list[Draw]:
    """All multisets of n draws with replacement; `logp`: with log p of the drawn ids."""
    chances: dict[tuple[int, ...], float] = {}
    for draw in itertools.product(range(len(p_V)), repeat=n):
        counts = tuple(np.bincount(draw, minlength=len(p_V)))
        chances[counts] = chances.get(counts, 0.0) + float(np.prod(p_V[list(draw)]))
    known_V = _known(p_V, logp)
    return [_counts(chance, np.array(counts), known_V) for counts, chance in chances.items()]


def systematic_counts(p_V: np.ndarray, n: int, logp: bool = False) -> list[Draw]:
    """All outcomes of n equally spaced points with one uniform offset."""
    edges_V = np.cumsum(p_V) * n
    return [
        _counts(chance, counts_V, _known(p_V, logp))
        for chance, points in _offsets(edges_V, n)
        for ids in [np.searchsorted(edges_V, points, "right").clip(max=len(p_V) - 1)]
        for counts_V in [np.bincount(ids, minlength=len(p_V))]
    ]


def head_tail(
    p_V: np.ndarray, head: list[int], n: int, logp: bool = False, floor: float = 0.0
) -> list[Draw]:
    """`head` exactly, and all outcomes of n tail ids by systematic sampling.

    With a `floor` above the tail's mass, its one id weighs as much and is often left out.
    """
    q_V = p_V.copy()
    q_V[head] = 0.0
    rest = float(q_V.sum())
    known_V = _known(p_V, logp)
    of_head = [float(np.log(p_V[i])) for i in head]
    weight = [float(p_V[i]) for i in head]
    if n == 0:
        return [Draw(1.0, head, weight, of_head, rest, len(head))]
    if rest < floor:
        return _by_chance(q_V, head, of_head, known_V, floor)
    edges_V = np.cumsum(q_V) * (n / rest)
    assert np.all(n * q_V <= rest + 1e-12), "tail ids would repeat: put the large ones in the head"
    return [
        Draw(
            chance,
            head + tail,
            weight + [rest / n] * n,
            of_head + [float(known_V[i]) for i in tail],
            rest,
            len(head),
        )
        for chance, points in _offsets(edges_V, n)
        for tail in [[int(i) for i in np.searchsorted(edges_V, points, "right")]]
    ]


def _by_chance(
    q_V: np.ndarray, head: list[int], of_head: list[float], known_V: np.ndarray, floor: float
) -> list[Draw]:
    """No id of the tail, or one that weighs `floor`; the head has what is left, in proportion."""
    rest = float(q_V.sum())
    kept = [float(np.exp(lp)) / (1 - rest) for lp in of_head]
    taken = [
        Draw(
            float(q_V[i]) / floor,
            [*head, i],
            [*(w * (1 - floor) for w in kept), floor],
            [*of_head, float(known_V[i])],
            rest,
            len(head),
        )
        for i in map(int, np.flatnonzero(q_V))
    ]
    return [Draw(1 - rest / floor, head, kept, of_head, rest, len(head)), *taken]


def top_k(p_V: np.ndarray, k: int) -> list[Draw]:
    """The k likeliest ids, their weights renormalised."""
    ids = [int(i) for i in np.argsort(-p_V)[:k]]
    mass = float(p_V[ids].sum())
    weight = [float(p_V[i] / mass) for i in ids]
    return [Draw(1.0, ids, weight, [float(np.log(p_V[i])) for i in ids], 1.0 - mass, k)]


def _known(p_V: np.ndarray, logp: bool) -> np.ndarray:
    """Log p as stored of drawn ids: there, or NaN."""
    return np.log(p_V) if logp else np.full(len(p_V), np.nan)


def _counts(chance: float, counts_V: np.ndarray, known_V: np.ndarray) -> Draw:
    ids = [int(i) for i in np.flatnonzero(counts_V)]
    weight = [float(counts_V[i] / counts_V.sum()) for i in ids]
    return Draw(chance, ids, weight, [float(known_V[i]) for i in ids], 1.0)


def _offsets(edges_V: np.ndarray, n: int) -> list[tuple[float, np.ndarray]]:
    """Intervals of the offset u in [0, 1) with equal outcome: their lengths, and u + 0..n-1."""
    borders = np.unique(np.concatenate([[0.0, 1.0], edges_V % 1.0]))
    spans = [(lo, hi) for lo, hi in itertools.pairwise(borders) if hi - lo > 1e-13]
    return [(float(hi - lo), (lo + hi) / 2 + np.arange(n)) for lo, hi in spans]


def enumerate_positions(
    p_V: np.ndarray, b_V: np.ndarray, draws: list[Draw]
) -> tuple[TorchRecords, torch.Tensor]:
    """One position per (draw, realised token), and its probability [T], in float64."""
    pairs = [(draw, token) for draw in draws for token in range(len(p_V))]
    entropy = float(-(p_V * np.log(p_V)).sum())
    tokens = np.array([token for _, token in pairs])
    records = make_records([draw for draw, _ in pairs], tokens)
    records = TorchRecords(
        **{
            **vars(records),
            "lp_T": torch.from_numpy(np.log(p_V)[tokens]),
            "ref_lp_T": torch.from_numpy(np.log(b_V)[tokens]),
            "ent_T": torch.full((len(pairs),), entropy, dtype=torch.float64),
            "outcome_T": torch.from_numpy(np.isin(tokens, RIGHT).astype(np.int8)),
        }
    )
    chance_T = torch.tensor([draw.chance * b_V[token] for draw, token in pairs])
    return records, chance_T.double()


def make_records(draws: list[Draw], tokens: np.ndarray) -> TorchRecords:
    """Records of one position per draw; the columns of the realised token are left out."""
    counts = [len(draw.ids) for draw in draws]

    def flat(values: list[list[float]]) -> torch.Tensor:
        return torch.tensor([x for value in values for x in value], dtype=torch.float64)

    logp_E = flat([draw.logp for draw in draws])
    return TorchRecords(
        entry_off=torch.tensor([0, *np.cumsum(counts)], dtype=torch.int64),
        tok_T=torch.from_numpy(tokens),
        row_E=torch.from_numpy(np.repeat(np.arange(len(draws)), counts)),
        ids_E=torch.tensor([i for draw in draws for i in draw.ids], dtype=torch.int64),
        weight_E=flat([draw.weight for draw in draws]),
        logp_E=logp_E,
        exact_E=torch.tensor(
            [i < draw.head for draw in draws for i in range(len(draw.ids))]
        ).bool(),
        rest_T=torch.tensor([draw.rest for draw in draws], dtype=torch.float64),
        lp_T=None,
        ref_lp_T=None,
        ent_T=None,
    )
