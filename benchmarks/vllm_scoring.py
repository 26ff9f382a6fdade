"""Scoring inside vLLM on a CPU: what records add there, and how near it is to transformers.

    python -m benchmarks.vllm_scoring

One teacher with random weights, a vocabulary of 151,936 and a small body, scored by both engines.
The peer of the cost is the same engine on the same requests, its logits made and thrown away. A
larger body makes the share of the records smaller.
"""

import itertools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.harness import (
    Options,
    Report,
    Seconds,
    Table,
    cost_line,
    figure,
    interleave,
    main,
    ratios,
    spread,
)
from benchmarks.models import random_teacher, save_numbers
from stages.config.record_kinds import Counts, HeadTail, Sampled
from stages.config.records import ScoreRun
from stages.models.environment import prepare_environment
from stages.scoring.drawn import Records
from stages.scoring.scorer import Scorer, open_scorer
from storage.rows import Rows

_RUN = {"tokens_per_batch": 512, "rows_per_chunk": 128, "device": "cpu"}
_IN_VLLM = {**_RUN, "engine": "vllm"}


def run(options: Options) -> Report:
    """Seconds with records over seconds without, and differences between the engines."""
    prepare_environment()
    vocabulary, hidden, count = (4096, 64, 4) if options.quick else (151_936, 512, 16)
    rows = _sequences(vocabulary, count)
    record = HeadTail()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        random_teacher(vocabulary, hidden, 4, context=256).save_pretrained(directory)
        save_numbers(directory, vocabulary)
        scored: dict[tuple[str, str], Rows] = {}
        found: dict[str, Seconds] = {}
        for dtype in ("float32", "bfloat16"):
            with (
                open_scorer(directory, dtype, ScoreRun.model_validate(_RUN)) as one,
                open_scorer(directory, dtype, ScoreRun.model_validate(_IN_VLLM)) as other,
            ):
                scored["transformers", dtype] = one.score(rows, record, 0)
                scored["vllm", dtype] = other.score(rows, record, 0)
                found[dtype] = interleave(_candidates(one, other, rows), options.rounds)
    line = cost_line(
        f"record extraction inside vLLM on CPU, head_tail, V = {vocabulary:,}, hidden {hidden}",
        f"s per {rows.tokens:,} positions",
        found["float32"],
        "vLLM, head_tail",
        "vLLM, forward + head",
        goals=(),
    )
    tables = [_cost(found, rows.tokens), _agreement(scored)]
    return Report("Scoring inside vLLM", [line], tables, [], found)


def _cost(found: dict[str, Seconds], positions: int) -> Table:
    table: list[list[str]] = []
    for dtype, seconds in found.items():
        for name, values in seconds.items():
            over = ratios(seconds, name, "vLLM, forward + head")
            speed = positions / statistics.median(values)
            ratio = f"{statistics.median(over):.3f} ± {spread(over):.2g}"
            table.append([dtype, name, figure(speed), ratio])
    header = ("dtype", "what", "positions per second", "time over vLLM, forward + head")
    return Table("Cost, one core", header, table)


def _candidates(transformers: Scorer, vllm: Scorer, rows: Rows) -> dict[str, Callable[[], object]]:
    from stages.scoring import vllm_model

    def thrown_away(logits: Any, positions: Any, *_: Any, rows_per_chunk: int, **__: Any) -> Any:
        for start in range(0, len(positions), rows_per_chunk):
            logits(slice(start, min(len(positions), start + rows_per_chunk)))
        nothing_R = np.zeros(len(positions), np.float32)
        return Records(nothing_R, nothing_R)

    def bare() -> None:
        with mock.patch.object(vllm_model, "make_records", thrown_away):
            vllm.score(rows, Sampled(), 0)

    return {
        "vLLM, forward + head": bare,
        "vLLM, head_tail": lambda: vllm.score(rows, HeadTail(), 0),
        "vLLM, counts": lambda: vllm.score(rows, Counts(), 0),
        "vLLM, sampled": lambda: vllm.score(rows, Sampled(), 0),
        "transformers, head_tail": lambda: transformers.score(rows, HeadTail(), 0),
    }


def _agreement(scored: dict[tuple[str, str], Rows]) -> Table:
    """Differences of log p of the realised token, of the entropy, and of what is drawn."""
    table: list[list[str]] = []
    for (engine, dtype), (other, as_dtype) in (
        (("vllm", "float32"), ("transformers", "float32")),
        (("vllm", "bfloat16"), ("transformers", "bfloat16")),
        (("vllm", "bfloat16"), ("transformers", "float32")),
        (("transformers", "bfloat16"), ("transformers", "float32")),
    ):
        one, two = scored[engine, dtype], scored[other, as_dtype]
        lp = np.abs(one["lp"].astype(np.float64) - two["lp"])
        entropy = np.abs(one["ent"].astype(np.float64) - two["ent"])
        same = np.mean([a == b for a, b in zip(_drawn(one), _drawn(two), strict=True)])
        table.append(
            [
                f"{engine} {dtype}",
                f"{other} {as_dtype}",
                f"{lp.max():.2g}",
                f"{lp.mean():.2g}",
                f"{entropy.max():.2g}",
                f"{same:.1%}",
            ]
        )
    header = ("engine", "against", "log p, largest", "log p, mean", "entropy, largest", "same ids")
    return Table(
        "Difference between engines; `same ids`: positions with equal entries", header, table
    )


def _drawn(rows: Rows) -> list[frozenset[int]]:
    """Ids of each position."""
    edges = np.cumsum([0, *rows["nu"].tolist()])
    return [frozenset(rows["ids"][a:b].tolist()) for a, b in itertools.pairwise(edges)]


def _sequences(vocabulary: int, count: int) -> Rows:
    rng = np.random.default_rng(1)
    return Rows.from_sequences(
        {
            "seq_id": index,
            "prompt_id": index,
            "sample": 0,
            "finish": 0,
            "outcome": -1,
            "prompt": rng.integers(0, vocabulary, 64),
            "tok": rng.integers(0, vocabulary, 64),
            "cand": rng.integers(0, vocabulary // 4, 64 * 4) * 4 + np.tile(range(4), 64),
        }
        for index in range(count)
    )


if __name__ == "__main__":
    main(run, __doc__)
