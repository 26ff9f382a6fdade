"""Gradient error of `head_tail` against RS-KD's counts on real teachers, at equal mean entries.

    python -m benchmarks.gradient_error

The published record is N independent draws (arXiv 2503.16870). `head_tail` at its default tau keeps
some mean number of entries per position; N is chosen so that as many distinct ids are drawn. Errors
are exact (`benchmarks.errors`), and checked by drawing records with the product's sampler, storing
them, reading them back and comparing their weights with the probabilities.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.errors import Error, Profile, probabilities, profile
from benchmarks.generator import small_world
from benchmarks.harness import Goal, Line, Options, Report, Table, main
from benchmarks.records import Sequences, draw, meta_of
from benchmarks.sources import Block, Source, Synthetic
from benchmarks.teachers import demo, text
from stages.config.record_kinds import Counts, HeadTail, Record
from storage.codec import stored, to_batch

_GRID = tuple(round(4 * 2 ** (step / 2)) for step in range(30))
"""Numbers of draws between which the number of distinct ids is interpolated: 4 to 92,682."""
_GOAL = Goal("ratio", "<=", 1 / 3)
TAU = 0.023


def run(options: Options) -> Report:
    """Exact and measured errors for each teacher."""
    positions, seeds = (256, 4) if options.quick else (8192, 16)
    lines: list[Line] = []
    rows: list[list[str]] = []
    checks: list[list[str]] = []
    for source in _sources(options):
        found = profile(source, positions, (*_GRID, 50))
        ours = found.head_tail(TAU)
        draws, theirs = equal_entries(found, ours.entries)
        lines.append(
            Line(
                what=f"gradient MSE of head_tail, {source.name}, {ours.entries:.2f} entries",
                unit="",
                ours=ours.mse,
                against=f"RS-KD counts, N = {draws:.0f}",
                peer=theirs.mse,
                ratio=ours.mse / theirs.mse,
                goals=(_GOAL,),
            )
        )
        rows += _rows(source.name, found)
        for record in (
            HeadTail(tau=TAU, candidates=0),
            Counts(sampler="multinomial"),
            Counts(),
        ):
            checks.append(_check(source, positions // 4, record, seeds))
    tables = [
        Table(
            f"Exact errors over {positions:,} positions",
            ("teacher", "record", "entries", "gradient MSE"),
            rows,
        ),
        Table(
            f"Stored records against the exact error, {positions // 4:,} positions, {seeds} seeds",
            ("teacher", "record", "exact", "measured", "standard error"),
            checks,
        ),
    ]
    return Report("Gradient error of records", lines, tables, _NOTES)


_NOTES = (
    "gradient MSE: mean over positions of the squared distance between two gradients of the "
    "forward KL with respect to the student's logits: from the record and from the whole "
    "distribution.",
    "`head_tail` keeps a tail lighter than tau / sqrt(2) with a probability below 1, so for a "
    "nearly certain teacher it needs little more than the one entry that counts need.",
)


def _sources(options: Options) -> Sequence[Source]:
    if options.quick:
        return [Synthetic("r12", small_world())]
    return [demo(options.store), text(options.store)]


def equal_entries(found: Profile, entries: float) -> tuple[float, Error]:
    """Number and error of independent draws that give `entries` distinct ids on average.

    The number is interpolated between those of the profile; the error is 1 / N times a constant.
    """
    draws = sorted(found.independent)
    distinct = [found.independent[n].entries for n in draws]
    wanted = math.exp(float(np.interp(entries, distinct, np.log(draws))))
    constant = found.independent[draws[0]].mse * draws[0]
    return wanted, Error(constant / wanted, entries)


def _rows(name: str, found: Profile) -> list[list[str]]:
    def row(record: str, error: Error) -> list[str]:
        return [name, record, f"{error.entries:.2f}", f"{error.mse:.3g}"]

    rows = [
        row("RS-KD counts, N = 50", found.independent[50]),
        row("systematic counts, N = 50", found.systematic(50)),
        row(f"head_tail, tau = {TAU} (default)", found.head_tail(TAU)),
    ]
    theirs = found.independent[50]
    tau = found.find_tau(lambda error: error.entries <= theirs.entries)
    if tau is not None:
        rows.append(row(f"head_tail, tau = {tau:.3g} (entries of N = 50)", found.head_tail(tau)))
    tau = found.find_tau(lambda error: error.mse <= theirs.mse)
    if tau is not None:
        rows.append(row(f"head_tail, tau = {tau:.3g} (error of N = 50)", found.head_tail(tau)))
    for entries in (theirs.entries, found.head_tail(TAU).entries):
        rows.append(row("lower bound for unbiased records", found.bound(entries)))
    return rows


def _check(source: Source, positions: int, record: Record, seeds: int) -> list[str]:
    """Exact error of a record, and the mean of what came back from storage."""
    found = profile(source, positions, (50,))
    exact = {
        "head_tail": found.head_tail(TAU),
        "multinomial": found.independent[50],
        "systematic": found.systematic(50),
    }[getattr(record, "sampler", record.kind)]
    measured = [measure(source, positions, record, seed) for seed in range(seeds)]
    error = float(np.std(measured, ddof=1)) / math.sqrt(seeds)
    name = f"counts, {record.sampler}" if isinstance(record, Counts) else record.kind
    return [source.name, name, f"{exact.mse:.4g}", f"{np.mean(measured):.4g}", f"{error:.2g}"]


def measure(source: Source, positions: int, record: Record, seed: int) -> float:
    """Mean squared error of the weights of one draw, after storing and reading it back."""
    rng = np.random.default_rng(seed)
    total, count = 0.0, 0
    for block in source.blocks(positions):
        total += float(_errors(block, record, rng).sum())
        count += len(block.tok_R)
    return total / count


def _errors(block: Block, record: Record, rng: np.random.Generator) -> Any:
    """Squared error of each position: sum p^2 + sum over entries of w (w - 2 p)."""
    p_RV = probabilities(block.z_RV)
    columns = draw(block, record, rng).columns()
    lp_R, ent_R = columns.pop("lp"), columns.pop("ent")
    one = Sequences(block.tok_R, lp_R, ent_R, columns, np.array([len(block.tok_R)]))
    batch = to_batch(stored(one.rows()), meta_of(record, p_RV.shape[1]))
    row_E = np.repeat(np.arange(len(p_RV)), np.diff(batch.entry_off))
    weight_E = batch.weight.astype(np.float64)
    change_E = weight_E * (weight_E - 2 * p_RV[row_E, batch.ids])
    return np.square(p_RV).sum(axis=1) + np.bincount(row_E, change_E, len(p_RV))


if __name__ == "__main__":
    main(run, __doc__)
