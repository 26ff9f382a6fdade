"""Both samplers as functions of arrays, the weights a reader forms, and exact expectations.

Systematic sampling is a function of one uniform u that is constant between breakpoints, and
independent draws are a product of such functions. So an expectation over draws is a finite sum, and
`mean_weight` computes it: the record at the middle of every interval, weighted by its width. What
remains is the float32 rounding of the breakpoints, 1e-6 at most, and no statistical error.

Shape letters: R rows, V vocabulary, E entries.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from stages.config.record_kinds import Counts, HeadTail, Record
from stages.scoring import sampler
from stages.scoring.drawn import Records

EXACT = 5e-6
Draw = Callable[..., Records]


def draw_numba(
    z_RW: np.ndarray, V: int, tok_R: np.ndarray, cand_RC: np.ndarray, u_RU: np.ndarray, rec: Record
) -> Records:
    return sampler.on_cpu(z_RW, V, tok_R, cand_RC, u_RU, rec)


def draw_torch(
    z_RW: np.ndarray, V: int, tok_R: np.ndarray, cand_RC: np.ndarray, u_RU: np.ndarray, rec: Record
) -> Records:
    tok, cand, u = (torch.tensor(array) for array in (tok_R, cand_RC, u_RU))
    return sampler.on_gpu(torch.tensor(z_RW), V, tok, cand, u, rec)


both = pytest.mark.parametrize("draw", [draw_numba, draw_torch])


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z.astype(np.float64) - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def no_candidates(rows: int) -> np.ndarray:
    return np.zeros((rows, 0), np.int64)


def entries(records: Records) -> np.ndarray:
    """[R] entries of each position; of records with one copy."""
    assert records.nu_RM is not None
    assert records.nu_RM.shape[1] == 1
    return records.nu_RM[:, 0].astype(np.int64)


def head(records: Records) -> np.ndarray:
    """[R] entries of each head."""
    assert records.nu_RM is not None
    nh_R = np.zeros(len(records.nu_RM)) if records.nh_R is None else records.nh_R
    return nh_R.astype(np.int64)


def ids(records: Records) -> np.ndarray:
    assert records.ids_E is not None
    return records.ids_E.astype(np.int64)


def copy_of(records: Records, m: int) -> Records:
    """The records as if only copy m had been kept."""
    assert records.nu_RM is not None
    nh_R = head(records)
    drawn_RM = records.nu_RM.astype(np.int64) - nh_R[:, None]
    of_M = np.arange(drawn_RM.shape[1]) == m
    drawn = [np.repeat(of_M, drawn_M) for drawn_M in drawn_RM]
    kept_E = np.concatenate(
        [np.r_[np.ones(nh, bool), one] for nh, one in zip(nh_R, drawn, strict=True)]
    )
    return replace(
        records,
        nu_RM=records.nu_RM[:, m : m + 1],
        ids_E=ids(records)[kept_E],
        cnt_E=None if records.cnt_E is None else records.cnt_E[kept_E],
        tlp_S=None if records.tlp_S is None else records.tlp_S[np.concatenate(drawn)],
    )


def split(records: Records) -> list[Records]:
    """One `Records` per row."""
    out: list[Records] = []
    e = h = s = 0
    for r in range(len(records.lp_R)):
        nh = 0 if records.nh_R is None else int(records.nh_R[r])
        drawn = 0 if records.nu_RM is None else int((records.nu_RM[r].astype(int) - nh).sum())
        cuts = {
            "_R": slice(r, r + 1),
            "_RM": slice(r, r + 1),
            "_E": slice(e, e + nh + drawn),
            "_H": slice(h, h + nh),
            "_S": slice(s, s + drawn),
        }
        cut = {
            name: values[cuts[name[name.index("_") :]]]
            for name, values in vars(records).items()
            if values is not None
        }
        out.append(Records(**cut))
        e, h, s = e + nh + drawn, h + nh, s + drawn
    return out


def weights(records: Records, record: Record, V: int) -> np.ndarray:
    """[R, V] weight of every id, as a reader forms it; of records with one copy."""
    nu_R, nh_R = entries(records), head(records)
    row_E = np.repeat(np.arange(len(nu_R)), nu_R)
    out = np.zeros((len(nu_R), V))
    if isinstance(record, Counts):
        assert records.cnt_E is not None
        np.add.at(out, (row_E, ids(records)), records.cnt_E / record.draws)
        return out
    assert records.rest_R is not None
    assert records.hlp_H is not None
    rest_R = records.rest_R.astype(np.float64)
    floor = record.tail_floor if isinstance(record, HeadTail) else 0.0
    outside_R = np.maximum(rest_R, floor)
    if floor:
        outside_R[nu_R == nh_R] = 0
    weight_E = (outside_R / np.maximum(nu_R - nh_R, 1))[row_E]
    kept_R = (1 - outside_R) / np.where(rest_R < 1, 1 - rest_R, 1.0)
    kept_R[rest_R == 1] = 1  # a head of impossible candidates
    of_head_E = in_head(records)
    weight_E[of_head_E] = np.exp(records.hlp_H.astype(np.float64)) * kept_R[row_E[of_head_E]]
    np.add.at(out, (row_E, ids(records)), weight_E)
    return out


def in_head(records: Records) -> np.ndarray:
    """[E] whether an entry belongs to the head; of records with one copy."""
    slots = [np.arange(n) < h for n, h in zip(entries(records), head(records), strict=True)]
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
    if isinstance(record, Counts) and record.sampler == "multinomial":
        middles, widths = intervals(np.cumsum(p_V))
        grid = list(itertools.product(range(len(middles)), repeat=record.draws))
        chance_R = widths[np.array(grid)].prod(axis=1)
        return chance_R @ at(middles[np.array(grid)])
    if isinstance(record, Counts):
        middles, widths = intervals(np.cumsum(p_V) * record.draws)
        return widths @ at(middles[:, None])
    cand_RC = np.array([candidates], np.int64)
    tok_R = np.array([int(z_V.argmax())])
    one = draw(z_V[None], V, tok_R, cand_RC, np.array([[0.0]]), record)  # never left out
    tail_V = p_V.copy()
    tail_V[ids(one)[: head(one)[0]]] = 0
    draws = int(entries(one)[0] - head(one)[0])
    middles, widths = intervals(np.cumsum(tail_V) * density(tail_V.sum(), draws, record))
    return widths @ at(middles[:, None])


def density(rest: float, draws: int, record: Record) -> float:
    """Uniforms per unit of the tail's mass at which its ids are drawn."""
    floor = record.tail_floor if draws == 1 and isinstance(record, HeadTail) else 0.0
    return draws / max(rest, floor) if draws else 0.0


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
    rows["nearly sure"] = np.where(np.arange(200) == 50, 9, rng.standard_normal(200)).astype(
        np.float32
    )
    rows["one of two"] = np.r_[8.0, rng.standard_normal(40), 7.5].astype(np.float32)
    return rows


ROWS = some_rows()
