"""Both samplers as functions of arrays, the weights a reader forms, and exact expectations.

Systematic sampling is a function of one uniform u that is constant between breakpoints, and
independent draws are a product of such functions. So an expectation over draws is a finite sum, and
`mean_weight` computes it: the record at the middle of every interval, weighted by its width. What
remains is the float32 rounding of the breakpoints, 1e-6 at most, and no statistical error.

Shape letters: R rows, V vocabulary, E entries.
"""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from stages.config import Record
from stages.scoring import sampler, torch_sampler
from stages.scoring.sampler import Records

EXACT = 5e-6
Draw = Callable[..., Records]


def draw_numba(
    z_RW: np.ndarray, V: int, tok_R: np.ndarray, cand_RC: np.ndarray, u_RU: np.ndarray, rec: Record
) -> Records:
    return sampler.sample(z_RW, V, tok_R, cand_RC, u_RU, rec)


def draw_torch(
    z_RW: np.ndarray, V: int, tok_R: np.ndarray, cand_RC: np.ndarray, u_RU: np.ndarray, rec: Record
) -> Records:
    tok, cand, u = (torch.tensor(array) for array in (tok_R, cand_RC, u_RU))
    return torch_sampler.sample(torch.tensor(z_RW), V, tok, cand, u, rec)


both = pytest.mark.parametrize("draw", [draw_numba, draw_torch])


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z.astype(np.float64) - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def no_candidates(rows: int) -> np.ndarray:
    return np.zeros((rows, 0), np.int64)


def weights(records: Records, record: Record, V: int) -> np.ndarray:
    """[R, V] weight of every id, as a reader forms it."""
    assert records.nu_R is not None
    assert records.ids_E is not None
    row_E = np.repeat(np.arange(len(records.nu_R)), records.nu_R)
    out = np.zeros((len(records.nu_R), V))
    if record.kind == "counts":
        assert records.cnt_E is not None
        np.add.at(out, (row_E, records.ids_E), records.cnt_E / record.draws)
        return out
    assert records.nh_R is not None
    assert records.rest_R is not None
    assert records.hlp_H is not None
    nu_R, nh_R = records.nu_R.astype(int), records.nh_R.astype(int)
    weight_E = (records.rest_R / np.maximum(nu_R - nh_R, 1))[row_E].astype(np.float64)
    weight_E[in_head(records)] = np.exp(records.hlp_H.astype(np.float64))
    np.add.at(out, (row_E, records.ids_E), weight_E)
    return out


def in_head(records: Records) -> np.ndarray:
    """[E] whether an entry belongs to the head."""
    assert records.nu_R is not None
    assert records.nh_R is not None
    slots = [np.arange(nu) < nh for nu, nh in zip(records.nu_R, records.nh_R, strict=True)]
    return np.concatenate(slots)


def mean_weight(
    draw: Draw, z_V: np.ndarray, record: Record, candidates: tuple[int, ...] = ()
) -> np.ndarray:
    """[V] expected weight of every id over the uniforms of a position."""
    V = len(z_V)

    def at(u_RU: np.ndarray) -> np.ndarray:
        rows = len(u_RU)
        tok_R = np.full(rows, int(z_V.argmax()))
        cand_RC = np.tile(np.array(candidates, np.int64), (rows, 1))
        records = draw(np.tile(z_V, (rows, 1)), V, tok_R, cand_RC, u_RU, record)
        return weights(records, record, V)

    p_V = softmax(z_V / record.temperature)
    if record.kind == "counts" and record.sampler == "multinomial":
        middles, widths = intervals(np.cumsum(p_V))
        grid = list(itertools.product(range(len(middles)), repeat=record.draws))
        chance_R = widths[np.array(grid)].prod(axis=1)
        return chance_R @ at(middles[np.array(grid)])
    if record.kind == "counts":
        middles, widths = intervals(np.cumsum(p_V) * record.draws)
        return widths @ at(middles[:, None])
    cand_RC = np.array([candidates], np.int64)
    tok_R = np.array([int(z_V.argmax())])
    one = draw(z_V[None], V, tok_R, cand_RC, np.array([[0.5]]), record)
    assert one.ids_E is not None
    assert one.nu_R is not None
    assert one.nh_R is not None
    tail_V = p_V.copy()
    tail_V[one.ids_E[: one.nh_R[0]]] = 0
    draws = int(one.nu_R[0]) - int(one.nh_R[0])
    edges_V = np.cumsum(tail_V) * (draws / tail_V.sum() if draws else 0)
    middles, widths = intervals(edges_V)
    return widths @ at(middles[:, None])


def intervals(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Middles and widths of the intervals between the breakpoints modulo 1 of a function of u."""
    points = np.unique(np.concatenate([[0.0, 1.0], np.mod(edges, 1.0)]))
    return (points[1:] + points[:-1]) / 2, np.diff(points)


def assert_unbiased(mean_V: np.ndarray, p_V: np.ndarray) -> None:
    np.testing.assert_allclose(mean_V, p_V, atol=EXACT, rtol=0)


def some_rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    rows = {
        f"normal, sd {sd}": (sd * rng.standard_normal(V)).astype(np.float32)
        for sd, V in ((0.1, 90), (0.7, 40), (2.0, 300), (5.0, 23))
    }
    rows["uniform"] = np.zeros(100, np.float32)
    rows["one hot"] = np.where(np.arange(30) == 7, 40, 0).astype(np.float32)
    rows["ties"] = rng.integers(0, 3, 60).astype(np.float32)
    rows["impossible ids"] = np.where(np.arange(50) % 3, rng.standard_normal(50), -np.inf).astype(
        np.float32
    )
    rows["zipf"] = -np.log(np.arange(1, 400)).astype(np.float32)
    rows["one id"] = np.zeros(1, np.float32)
    return rows


ROWS = some_rows()
