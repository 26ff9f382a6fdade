"""Speed of the record kernels against torch, on one thread: `python -m benchmarks.scoring`.

Rows are interleaved with the reference in every round, because other load on the machine moves all
figures; the ratio within a round is what to look at. Times are CPU seconds of this process.
"""

import argparse
import logging
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from stages.config import Record
from stages.scoring.sampler import sample, uniforms_needed

log = logging.getLogger("benchmarks.scoring")

RECORDS = {
    "sampled": Record(kind="sampled"),
    "counts, systematic": Record(kind="counts"),
    "counts, multinomial": Record(kind="counts", sampler="multinomial"),
    "head_tail": Record(),
}


def rate(rows: int, work: Callable[[], object]) -> float:
    """Rows per CPU second of one call."""
    start = time.process_time()
    work()
    return rows / (time.process_time() - start)


def measure(rows: int, vocab_size: int, spread: float, rounds: int) -> None:
    """Log medians over `rounds` of rows per second, and of the ratio to softmax + multinomial."""
    rng = np.random.default_rng(0)
    z_RV = (spread * rng.standard_normal((rows, vocab_size))).astype(np.float32)
    z = torch.from_numpy(z_RV)
    tok_R = rng.integers(0, vocab_size, rows)
    cand_RC = np.argpartition(-z_RV, 4, axis=1)[:, :4]
    u = {name: rng.random((rows, uniforms_needed(record))) for name, record in RECORDS.items()}
    found: dict[str, list[float]] = {name: [] for name in (*RECORDS, "torch")}
    for turn in range(rounds + 1):
        speed = {"torch": rate(rows, lambda: torch.multinomial(z.softmax(-1), 50, True))}
        for name, record in RECORDS.items():
            arguments = (z_RV, vocab_size, tok_R, cand_RC, u[name], record)
            speed[name] = rate(rows, lambda arguments=arguments: sample(*arguments))
        if turn:  # the first round compiles
            for name, value in speed.items():
                found[name].append(value)
    log.info("V = %d, logits of standard deviation %g, %d rows", vocab_size, spread, rows)
    for name, speeds in found.items():
        ratio = statistics.median(a / b for a, b in zip(speeds, found["torch"], strict=True))
        log.info("%-20s %8.0f rows/s  %5.1f x torch", name, statistics.median(speeds), ratio)


def main() -> None:
    """Parse arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=151_936)
    parser.add_argument("--spread", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    measure(arguments.rows, arguments.vocab_size, arguments.spread, arguments.rounds)


if __name__ == "__main__":
    main()
