"""What pi_ref's candidates do to records of a real language model: cover, size, noise of gradients.

    python -m benchmarks.candidates --store STORE [--into docs/records.md]

Teacher, pi_ref and rollouts are those of the recipe smollm2, made in the store unless they are
there, or those of `--teacher`, `--policy` and `--sequences`. Records are drawn by the product's
sampler and written as real parts.

With head S, student q, teacher p, pi_ref b and A = log q - log p, the gradient of the corrected
reverse KL by the student's logits at a realised token a is

    g(a) = g_bucket + 1[a not in S] w (A(a) - A_tail) (e_a - q),    w = q(a) / b(a), not capped,

whose mean over a is that of the full KL. Its variance is summed here over the whole vocabulary:

    sum_{a not in S} b(a) [w (A(a) - A_tail)]^2 |e_a - q|^2 - |m|^2,
    m = sum_{a not in S} q(a) (A(a) - A_tail) (e_a - q).

Shape letters: T positions, R rows of a block, V vocabulary, K candidates, E entries.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.__main__ import processor
from benchmarks.harness import Table, markdown
from benchmarks.packed import write_both
from benchmarks.records import Sequences, draw, rows_of
from benchmarks.sources import Block
from benchmarks.teachers import Real, make
from pipeline.planning.document import replace_block
from stages.config.candidates import Candidates, Coverage, most_candidates
from stages.config.record_kinds import HeadTail
from stages.engines.base import candidate_counts
from stages.scoring.drawn import Records, concat
from storage.kinds import MAX_CANDIDATES
from storage.manifest import SetMeta
from storage.parquet.reader import column_bytes
from storage.rows import offsets_of
from storage.sets import position_bytes
from storage.shard import PartWriter

log = logging.getLogger("benchmarks")

Array = NDArray[Any]

KEPT: Sequence[Candidates] = (0, 4, 16, *(Coverage(mass=mass) for mass in (0.8, 0.9, 0.95, 0.99)))
TAU = 0.023
_ROWS = 64


class Policies(NamedTuple):
    """Some positions: log-probabilities over the whole vocabulary, float64."""

    block: Block
    """Of the teacher; no candidates yet."""
    logp_RV: Array
    logb_RV: Array
    """Of pi_ref."""


class Cover(NamedTuple):
    """Sums over positions."""

    positions: int
    kept: int
    """Candidates."""
    mass: float
    """pi_ref's, in the head."""
    realised: int
    """Tokens in the head."""
    noise: Array
    """[2] variance of the gradient, for a student at pi_ref and for one half-way to the teacher."""
    signal: Array
    """[2] squared norm of its mean."""


@dataclass
class Found:
    """What was measured of one choice of candidates."""

    records: list[Records] = field(default_factory=list)
    cand: list[Array] = field(default_factory=list)
    counts: list[Array] = field(default_factory=list)
    covers: list[Cover] = field(default_factory=list)


def measure(teacher: Real, policy: Real, positions: int) -> tuple[dict[str, Found], Array]:
    """All choices of `KEPT` by name, and the realised tokens."""
    found = {_named(kept): Found() for kept in KEPT}
    rng = {name: np.random.default_rng(0) for name in found}
    tok: list[Array] = []
    for both in _policies(teacher, policy, positions):
        tok.append(both.block.tok_R)
        order_RK = _likeliest(both.logb_RV)
        top_RK = np.take_along_axis(both.logb_RV, order_RK, 1)
        students = _Student.of(both.logb_RV, both), _Student.of(_half_way(both), both)
        for kept in KEPT:
            one = found[_named(kept)]
            room = most_candidates(kept)
            count_R = candidate_counts(top_RK[:, :room].astype(np.float32), kept)
            slot_RK = np.minimum(np.arange(room), count_R[:, None].astype(np.int64) - 1)
            cand_RC = np.take_along_axis(order_RK, slot_RK, 1)
            record = HeadTail(tau=TAU, candidates=kept)
            made = draw(both.block._replace(cand_RC=cand_RC), record, rng[_named(kept)])
            one.records.append(made)
            one.cand.append(order_RK[:, :room][np.arange(room) < count_R[:, None]])
            one.counts.append(count_R)
            one.covers.append(_cover(both, made, count_R, students))
    return found, np.concatenate(tok)


def _policies(teacher: Real, policy: Real, positions: int) -> Iterator[Policies]:
    """Teacher and pi_ref at the same positions."""
    for theirs, own in zip(teacher.blocks(positions), policy.blocks(positions), strict=True):
        for start in range(0, len(theirs.tok_R), _ROWS):
            rows = slice(start, start + _ROWS)
            none_RC = np.zeros((len(theirs.tok_R[rows]), 0), np.int64)
            block = Block(np.ascontiguousarray(theirs.z_RV[rows]), theirs.tok_R[rows], none_RC)
            yield Policies(block, _log_softmax(block.z_RV), _log_softmax(own.z_RV[rows]))


def _log_softmax(z_RV: Array) -> Array:
    z_RV = z_RV.astype(np.float64)
    z_RV -= z_RV.max(axis=1, keepdims=True)
    return z_RV - np.log(np.exp(z_RV).sum(axis=1, keepdims=True))


def _half_way(both: Policies) -> Array:
    """Log-probabilities of the geometric mean of pi_ref and teacher, as a student may get there."""
    return _log_softmax((both.logp_RV + both.logb_RV) / 2)


def _likeliest(logb_RV: Array) -> Array:
    """[R, 64] ids of pi_ref, likeliest first."""
    some_RK = np.argpartition(-logb_RV, MAX_CANDIDATES, axis=1)[:, :MAX_CANDIDATES]
    order_RK = np.argsort(-np.take_along_axis(logb_RV, some_RK, 1), axis=1, kind="stable")
    return np.take_along_axis(some_RK, order_RK, 1)


@dataclass(frozen=True)
class _Student:
    """A student at some positions, and its gradient over the whole vocabulary."""

    q_RV: Array
    apart_RV: Array
    """A = log q - log p."""
    weight_RV: Array
    """q / b."""
    signal_R: Array

    @classmethod
    def of(cls, logq_RV: Array, both: Policies) -> "_Student":
        q_RV, apart_RV = np.exp(logq_RV), logq_RV - both.logp_RV
        kl_R1 = (q_RV * apart_RV).sum(axis=1, keepdims=True)
        signal_R = np.square(q_RV * (apart_RV - kl_R1)).sum(axis=1)
        return cls(q_RV, apart_RV, np.exp(logq_RV - both.logb_RV), signal_R)

    def noise(self, head_RV: Array, rest_R: Array) -> Array:
        """[R] variance of the gradient over the realised token; the formula is above."""
        outside_RV = np.where(head_RV, 0.0, self.q_RV)
        tail_R = outside_RV.sum(axis=1)
        with np.errstate(divide="ignore"):
            tail_apart_R = np.log(tail_R) - np.log(rest_R)
        tail_apart_R = np.where((tail_R > 0) & (rest_R > 0), tail_apart_R, 0.0)
        r_RV = outside_RV * (self.apart_RV - tail_apart_R[:, None])
        square_R = np.square(self.q_RV).sum(axis=1)
        # b w^2 (A - A_tail)^2 = w r (A - A_tail), and r = 0 on the head
        each_RV = self.weight_RV * r_RV * (self.apart_RV - tail_apart_R[:, None])
        spread_RV = 1.0 - 2.0 * self.q_RV + square_R[:, None]
        total_R = r_RV.sum(axis=1)
        mean_R = np.square(r_RV).sum(axis=1) - 2 * total_R * (r_RV * self.q_RV).sum(axis=1)
        return (each_RV * spread_RV).sum(axis=1) - mean_R - total_R**2 * square_R


def _cover(both: Policies, made: Records, count_R: Array, students: Sequence[_Student]) -> Cover:
    assert made.nu_RM is not None
    assert made.nh_R is not None
    assert made.ids_E is not None
    entries_R = made.nu_RM[:, 0].astype(np.int64)
    row_E = np.repeat(np.arange(len(entries_R)), entries_R)
    slot_E = np.arange(len(row_E)) - offsets_of(entries_R)[row_E]
    in_head_E = slot_E < made.nh_R[row_E]
    head_RV = np.zeros(both.logp_RV.shape, np.bool_)
    head_RV[row_E[in_head_E], made.ids_E[in_head_E]] = True
    rest_R = np.where(head_RV, 0.0, np.exp(both.logp_RV)).sum(axis=1)
    tok_R = both.block.tok_R
    return Cover(
        positions=len(tok_R),
        kept=int(count_R.sum()),
        mass=float(np.exp(both.logb_RV[head_RV]).sum()),
        realised=int(head_RV[np.arange(len(tok_R)), tok_R].sum()),
        noise=np.array([one.noise(head_RV, rest_R).sum() for one in students]),
        signal=np.array([one.signal_R.sum() for one in students]),
    )


def table(found: dict[str, Found], tok_T: Array, lengths: Array, vocabulary: int) -> Table:
    """One row for each choice of candidates."""
    rows: list[list[str]] = []
    for kept in KEPT:
        one = found[_named(kept)]
        totals: list[Any] = [sum(getattr(c, name) for c in one.covers) for name in Cover._fields]
        cover = Cover(*totals)
        records = concat(one.records)
        assert records.nu_RM is not None
        T = cover.positions
        layouts = _record_bytes(
            records, HeadTail(tau=TAU, candidates=kept), tok_T, lengths, vocabulary
        )
        rows.append(
            [
                f"`{_named(kept)}`",
                f"{cover.kept / T:.1f}",
                f"{records.nu_RM.mean():.1f}",
                f"{100 * cover.mass / T:.1f}",
                f"{100 * cover.realised / T:.1f}",
                f"{_rollout_bytes(one, kept, tok_T, lengths, vocabulary):.1f}",
                *(f"{size:.1f}" for size in layouts),
                *(f"{noise:.3g}" for noise in cover.noise / cover.signal),
            ]
        )
    header = (
        "`candidates`",
        "ids of pi_ref",
        "entries",
        "pi_ref's mass in the head, %",
        "realised tokens in the head, %",
        "rollouts, B",
        "record, B",
        "packed, B",
        "noise at pi_ref",
        "noise half-way",
    )
    return Table("", header, rows)


def _named(kept: Candidates) -> str:
    return f"mass = {kept.mass:g}" if isinstance(kept, Coverage) else str(kept)


def _record_bytes(
    records: Records, record: HeadTail, tok_T: Array, lengths: Array, vocabulary: int
) -> list[float]:
    """Bytes of the record per position, in the open and in the packed layout."""
    columns = records.columns()
    lp_T, ent_T = columns.pop("lp"), columns.pop("ent")
    data = Sequences(tok_T, lp_T, ent_T, columns, lengths)
    with tempfile.TemporaryDirectory() as scratch:
        paths = write_both(Path(scratch), data, record, vocabulary)
        return [position_bytes(path.parent).record for path in paths.values()]


def _rollout_bytes(
    one: Found, kept: Candidates, tok_T: Array, lengths: Array, vocabulary: int
) -> float:
    """Bytes of the candidates per position, in the rollouts."""
    if not most_candidates(kept):
        return 0.0
    columns: dict[str, Array] = {"tok": tok_T, "cand": np.concatenate(one.cand)}
    if isinstance(kept, Coverage):
        columns["nc"] = np.concatenate(one.counts)
    meta = SetMeta("rollouts", "0" * 64, "sequences", vocabulary, most_candidates(kept))
    with tempfile.TemporaryDirectory() as scratch:
        with PartWriter(Path(scratch), 0, meta) as writer:
            writer.write(rows_of(columns, lengths))
        sizes = column_bytes(Path(scratch) / writer.part.file)
    return sum(sizes.get(name, 0) for name in ("cand", "nc")) / len(tok_T)


def main() -> None:
    """Measure, and print the table or put it into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=Path("store"), help="where the sets lie")
    for name in ("teacher", "policy", "sequences"):
        parser.add_argument(f"--{name}", type=Path, help="a directory in the place of the recipe's")
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--into", type=Path, help="a page with the markers of a generated block")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    given = [options.teacher, options.policy, options.sequences]
    if not all(given):
        names = ["derive.teacher", "sft", "rollouts"]
        sets = make(options.store, names, "--recipe", "smollm2")
        given = [sets[name] for name in names]
    teacher, policy = (Real("", model, given[2]) for model in given[:2])
    start = time.time()
    found, tok_T = measure(teacher, policy, options.positions)
    made = table(found, tok_T, teacher.lengths(options.positions), teacher.vocabulary)
    text = (
        f"{markdown(made)}\n`python -m benchmarks.candidates`: {len(tok_T):,} positions, "
        f"{time.time() - start:.0f} s on one core of {processor()}, "
        f"{time.strftime('%Y-%m-%d', time.gmtime())}."
    )
    if options.into:
        replace_block(options.into, text)
    log.info("%s", text)


if __name__ == "__main__":
    main()
