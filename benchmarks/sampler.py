"""Record kernels on one core, against softmax + multinomial: rows of logits to records.

    python -m benchmarks.sampler

Logits are those of the synthetic teacher of text (`benchmarks.generator`) over 151,936 ids. The
peer is what RS-KD is usually made with, `torch.multinomial(logits.softmax(-1), 50)`; it returns raw
draws, without the counts and the log-probabilities ours comes with.
"""

import statistics
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.generator import SETS, Teacher, small_world, world
from benchmarks.harness import (
    Goal,
    Options,
    Report,
    Table,
    figure,
    interleave,
    main,
    ratios,
    speed_line,
)
from stages.config.record_kinds import Counts, HeadTail, Sampled
from stages.scoring.sampler import on_cpu

RECORDS = {
    "head_tail": HeadTail(),
    "counts, systematic": Counts(),
    "counts, multinomial": Counts(sampler="multinomial"),
    "sampled": Sampled(),
}
_PEER = "softmax + multinomial"
_GOALS = (Goal("ours", ">=", 10_000), Goal("ratio", ">=", 5))


def run(options: Options) -> Report:
    """Positions per second of every kind of record."""
    rows = 16 if options.quick else 256
    teacher = Teacher(SETS["r12"], 11, small_world() if options.quick else world())
    block = teacher.block(rows)
    z_RV = block.log_p(0, rows, teacher.world)
    found = interleave(_candidates(z_RV, block.tok_T), options.rounds)
    lines = [
        speed_line(
            f"sampler kernel, V = {z_RV.shape[1]:,}, one core: {name}",
            "positions/s",
            found,
            name,
            _PEER,
            amount=rows,
            goals=_GOALS,
        )
        for name in ("head_tail", "counts, systematic")
    ]
    others = [
        [
            name,
            figure(rows / statistics.median(seconds)),
            f"{statistics.median(ratios(found, _PEER, name)):.2f}",
        ]
        for name, seconds in found.items()
    ]
    table = Table(
        f"Rows of logits to records, {rows} rows, 4 candidates forced into the head",
        ("record", "positions/s", f"x {_PEER}"),
        others,
    )
    return Report("Sampling records", lines, [table], [], {"seconds": found})


def _candidates(z_RV: np.ndarray, tok_R: np.ndarray) -> dict[str, Callable[[], object]]:
    rng = np.random.default_rng(0)
    rows, vocabulary = z_RV.shape
    cand_RC = np.argpartition(-z_RV, 4, axis=1)[:, :4]
    z = torch.from_numpy(z_RV)
    work: dict[str, Callable[[], object]] = {
        _PEER: lambda: torch.multinomial(z.softmax(-1), 50, replacement=True)
    }
    for name, record in RECORDS.items():
        u_RU = rng.random((rows, record.uniforms))
        arguments = (z_RV, vocabulary, tok_R, cand_RC, u_RU, record)
        work[name] = lambda arguments=arguments: on_cpu(*arguments)
    return work


if __name__ == "__main__":
    main(run, __doc__)
