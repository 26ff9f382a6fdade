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
from numpy.typing import NDArray

from benchmarks.errors import Error, Profile, probabilities, profile
from benchmarks.generator import small_world
from benchmarks.harness import Goal, Line, Options, Report, Table, main
from benchmarks.records import Sequences, draw, meta_of
from benchmarks.sources import Block, Source, Synthetic, affordable
from benchmarks.teachers import demo, smollm2, text
from stages.config.record_kinds import Counts, HeadTail, Record, TopK
from storage.codec import stored, to_batch

_GRID = tuple(round(4 * 2 ** (step / 2)) for step in range(30))
"""Numbers of draws between which the number of distinct ids is interpolated: 4 to 92,682."""
_FEWER = (16, 25, 35, 71, 100, 141, 200)
"""The same for a real vocabulary, over which each number of draws is a long walk."""
_GOAL = Goal("ratio", "<=", 1 / 3)
TAU = 0.023
_TAUS = (0.1, 0.0625, 0.045, 0.032, TAU, 0.016, 0.0113)
"""Some of those that a recipe may choose."""


def run(options: Options) -> Report:
    """Exact and measured errors for each teacher."""
    asked, seeds = (256, 4) if options.quick else (8192, 16)
    lines: list[Line] = []
    rows: list[list[str]] = []
    chosen: list[list[str]] = []
    checks: list[list[str]] = []
    for source in _sources(options):
        positions = affordable(source, asked)
        grid = _GRID if source.vocabulary < 10_000 else _FEWER
        found = profile(source, positions, (*grid, 50))
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
        chosen += [_choice(source.name, found, tau) for tau in _TAUS]
        checks += _checks(source, positions // 4, seeds)
    tables = [
        Table(
            "Exact errors",
            ("teacher", "record", "entries", "gradient MSE"),
            rows,
        ),
        Table(
            "Choice of tau",
            ("teacher", "tau", "entries", "gradient MSE", "over the bound", "over RS-KD"),
            chosen,
        ),
        Table(
            f"Stored records against the exact error, a quarter of the positions, {seeds} seeds",
            ("teacher", "record", "exact", "measured", "standard error"),
            checks,
        ),
    ]
    return Report("Gradient error of records", lines, tables, _NOTES)


_NOTES = (
    "gradient MSE: mean over positions of the squared distance between two gradients of the "
    "forward KL with respect to the student's logits: from the record and from the whole "
    "distribution.",
    "8,192 positions of the small teachers, 4,064 of SmolLM2. ± is a standard error, over means of "
    "64 positions in a row.",
    "over the bound, over RS-KD: gradient MSE divided by that of the best unbiased record, and of "
    "independent draws, with as many entries.",
    "`head_tail` keeps a tail lighter than tau / sqrt(2) with a probability below 1, so for a "
    "nearly certain teacher it needs little more than the one entry that counts need.",
)


def _sources(options: Options) -> Sequence[Source]:
    if options.quick:
        return [Synthetic("r12", small_world())]
    return [
        *smollm2(options.store, options.scratch),
        demo(options.store),
        text(options.store),
    ]


def equal_entries(found: Profile, entries: float) -> tuple[float, Error]:
    """Number and error of independent draws that give `entries` distinct ids on average.

    The number is interpolated between those of the profile; the error is 1 / N times a constant.

    Raises:
        ValueError: the numbers of the profile do not reach that far.
    """
    draws = sorted(found.independent)
    distinct = [found.independent[n].entries for n in draws]
    if not distinct[0] <= entries <= distinct[-1]:
        raise ValueError(f"{entries:g} entries lie outside {distinct[0]:g} to {distinct[-1]:g}")
    wanted = math.exp(float(np.interp(entries, distinct, np.log(draws))))
    constant = found.independent[draws[0]].mse * draws[0]
    return wanted, Error(constant / wanted, entries)


def _rows(name: str, found: Profile) -> list[list[str]]:
    def row(record: str, error: Error) -> list[str]:
        return [name, record, *_figures(error)]

    rows = [
        row("RS-KD counts, N = 50", found.independent[50]),
        row("systematic counts, N = 50", found.systematic(50)),
        row(f"head_tail, tau = {TAU} (default)", found.head_tail(TAU)),
    ]
    theirs = found.independent[50]
    k = max(1, round(theirs.entries))
    rows.append(row(f"top-{k} (entries of N = 50)", found.top_k(k)))
    tau = found.find_tau(lambda error: error.entries <= theirs.entries)
    if tau is not None:
        rows.append(row(f"head_tail, tau = {tau:.3g} (entries of N = 50)", found.head_tail(tau)))
    tau = found.find_tau(lambda error: error.mse <= theirs.mse)
    if tau is not None:
        rows.append(row(f"head_tail, tau = {tau:.3g} (error of N = 50)", found.head_tail(tau)))
    for entries in (theirs.entries, found.head_tail(TAU).entries):
        rows.append(row("lower bound for unbiased records", found.bound(entries)))
    return rows


def _figures(error: Error) -> list[str]:
    """Entries and error, each with its standard error."""
    return [
        f"{error.entries:.2f} ± {error.entries_error:.2g}",
        f"{error.mse:.3g} ± {error.mse_error:.2g}",
    ]


def _choice(name: str, found: Profile, tau: float) -> list[str]:
    """What a tau costs and gives."""
    ours = found.head_tail(tau)
    try:
        over = f"{ours.mse / equal_entries(found, ours.entries)[1].mse:.2f}"
    except ValueError:
        over = "-"
    bound = found.bound(ours.entries)
    return [name, f"{tau:g}", *_figures(ours), f"{ours.mse / bound.mse:.2f}", over]


def _checks(source: Source, positions: int, seeds: int) -> list[list[str]]:
    """Exact errors of records, and means of what came back from storage."""
    found = profile(source, positions, (50,))
    exact: list[tuple[Record, Error]] = [
        (HeadTail(tau=TAU, candidates=0), found.head_tail(TAU)),
        (Counts(sampler="multinomial"), found.independent[50]),
        (Counts(), found.systematic(50)),
        (TopK(k=12), found.top_k(12)),
    ]
    found_RS = measure(source, positions, [record for record, _ in exact], seeds)
    rows: list[list[str]] = []
    for (record, expected), by_seed in zip(exact, found_RS, strict=True):
        name = f"counts, {record.sampler}" if isinstance(record, Counts) else record.kind
        error = float(np.std(by_seed, ddof=1)) / math.sqrt(seeds)
        measured = f"{np.mean(by_seed):.4g}"
        rows.append([source.name, name, f"{expected.mse:.4g}", measured, f"{error:.2g}"])
    return rows


def measure(
    source: Source, positions: int, records: Sequence[Record], seeds: int
) -> NDArray[np.float64]:
    """[records, seeds] mean squared error of the weights of a draw, after storing and reading it.

    All in one walk over the teacher's logits.
    """
    rng = [[np.random.default_rng(seed) for seed in range(seeds)] for _ in records]
    total = np.zeros((len(records), seeds))
    count = 0
    for block in source.blocks(positions):
        p_RV = probabilities(block.z_RV)
        for row, record in enumerate(records):
            for seed in range(seeds):
                total[row, seed] += _errors(block, p_RV, record, rng[row][seed]).sum()
        count += len(block.tok_R)
    return total / count


def _errors(block: Block, p_RV: Any, record: Record, rng: np.random.Generator) -> Any:
    """Squared error of each position: sum p^2 + sum over entries of w (w - 2 p)."""
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
