"""What records of a language model cost and give: entries, bytes and gradient error of every kind.

    python -m benchmarks.error_by_size [--into docs/records.md]

SmolLM2-135M-Instruct with its whole vocabulary, on source code and on its own answers. Each kind
of record is drawn in several sizes by the product's sampler and written as real parts; errors are
exact (`benchmarks.errors`).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.errors import Error, Profile, profile
from benchmarks.generator import small_world
from benchmarks.harness import Options, Report, Table, main
from benchmarks.size import weigh
from benchmarks.sources import Source, Synthetic
from benchmarks.teachers import smollm2
from stages.config.record_kinds import Counts, HeadTail, Record, TopK

_TAUS = (0.1, 0.06, 0.04, 0.023, 0.0125)
_DRAWS = (12, 25, 50, 100, 200)
_TOP = (6, 12, 25, 50)


def run(options: Options) -> Report:
    """One row for each record and teacher."""
    positions = 1_000 if options.quick else 4_064
    rows: list[list[str]] = []
    for source in _sources(options):
        found = profile(source, positions, _DRAWS)
        errors = _errors(found)
        sizes = weigh(source, positions, [record for _, record, _ in errors])
        packed = [size["packed"].record for size in sizes]
        theirs = {
            size: error.mse
            for (_, record, error), size in zip(errors, packed, strict=True)
            if isinstance(record, Counts) and record.sampler == "multinomial"
        }
        for (kind, _, error), size in zip(errors, sizes, strict=True):
            rows.append(
                [
                    source.name,
                    kind,
                    f"{error.entries:.1f}",
                    f"{size['open'].record:.1f}",
                    f"{size['packed'].record:.1f}",
                    f"{error.mse:.3g} ± {error.mse_error:.2g}",
                    _against(theirs, size["packed"].record, error.mse),
                ]
            )
    header = ("teacher", "record", "entries", "open, B", "packed, B", "gradient MSE", "over RS-KD")
    title = f"Entries, bytes and error per position, {positions:,} positions"
    return Report("Error by size", (), [Table(title, header, rows)], _NOTES)


_NOTES = (
    "Bytes are those of the record's columns on disk. gradient MSE: of the forward KL by the "
    "student's logits, ± its standard error over positions.",
    "over RS-KD: the error over that of independent draws of as many packed bytes, between the "
    "sizes above; `head_tail` pays for log p of its head and for the mass outside, which counts do "
    "not hold and reverse KL needs.",
    "The error of `top-k` is a bias: more positions do not average it out.",
)


def _sources(options: Options) -> Sequence[Source]:
    if options.quick:
        return [Synthetic("r12", small_world())]
    return smollm2(options.store, options.scratch)


def _errors(found: Profile) -> list[tuple[str, Record, Error]]:
    """The records by size, with their errors."""
    return [
        *(
            (f"head_tail, tau = {tau:g}", HeadTail(tau=tau, candidates=0), found.head_tail(tau))
            for tau in _TAUS
        ),
        *((f"systematic counts, N = {n}", Counts(draws=n), found.systematic(n)) for n in _DRAWS),
        *(
            (
                f"RS-KD counts, N = {n}",
                Counts(draws=n, sampler="multinomial"),
                found.independent[n],
            )
            for n in _DRAWS
        ),
        *((f"top-{k}", TopK(k=k), found.top_k(k)) for k in _TOP),
    ]


def _against(theirs: Mapping[float, float], size: float, mse: float) -> str:
    """An error over that of RS-KD in as many bytes; "-" outside of the sizes measured.

    Args:
        theirs: Errors of RS-KD by bytes; a power law between neighbours.
        size: Bytes.
        mse: The error.
    """
    known = sorted(theirs)
    if not known[0] <= size <= known[-1]:
        return "-"
    logs = np.log([theirs[one] for one in known])
    return f"{mse / math.exp(float(np.interp(math.log(size), np.log(known), logs))):.2f}"


if __name__ == "__main__":
    main(run, __doc__, block="error_by_size")
