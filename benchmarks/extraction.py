"""What making records adds to the teacher's forward pass on a CPU.

    python -m benchmarks.extraction

A teacher with random weights, a vocabulary of 151,936 and a small body: everything else in the
forward pass makes the share of the records smaller, so a real teacher is below the figures here.
The peer is the same body and the same head over the same chunks of positions, its logits thrown
away.
"""

import statistics
from collections.abc import Callable

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.harness import (
    Goal,
    Options,
    Report,
    Table,
    cost_line,
    interleave,
    main,
    ratios,
)
from benchmarks.models import random_teacher
from stages.config.record_kinds import Counts, HeadTail, Sampled
from stages.models.model import response_hidden
from stages.scoring.score import score_rows, scoring_head
from storage.codec import to_batch
from storage.manifest import SetMeta
from storage.rows import Rows

_CHUNK = 128
_LIMIT = Goal("ratio", "<=", 1.06)
RECORDS = {
    "head_tail": HeadTail(),
    "counts": Counts(),
    "sampled": Sampled(),
}


def run(options: Options) -> Report:
    """Seconds with records over seconds without, for several bodies."""
    vocabulary, length = (4096, 16) if options.quick else (151_936, 128)
    shapes = [(64, 1)] if options.quick else [(1024, 2), (512, 2), (256, 2)]
    lines, rows, raw = [], [], {}
    for hidden, layers in shapes:
        model = random_teacher(vocabulary, hidden, layers)
        found = interleave(_candidates(model, length, vocabulary), options.rounds)
        name = f"hidden {hidden}, {layers} layers"
        raw[name] = found
        if not lines:
            lines.append(
                cost_line(
                    f"record extraction on CPU, head_tail, V = {vocabulary:,}, {name}",
                    f"s per {length} positions",
                    found,
                    "head_tail",
                    "forward + head",
                    goals=(_LIMIT,),
                )
            )
        alone = statistics.median(found["forward + head"])
        over = {
            record: statistics.median(ratios(found, record, "forward + head")) for record in RECORDS
        }
        rows.append(
            [name, f"{1e3 * alone / length:.3f}", *(f"{over[record]:.3f}" for record in RECORDS)]
        )
    table = Table(
        "Time of the forward pass with records over the time without, one core, float32",
        ("teacher (Qwen3 blocks)", "forward + head, ms/position", *RECORDS),
        rows,
    )
    return Report("Extraction of records", lines, [table], [], raw)


def _candidates(
    model: PreTrainedModel, length: int, vocabulary: int
) -> dict[str, Callable[[], object]]:
    rng = np.random.default_rng(1)
    rows = Rows.from_sequences(
        {
            "seq_id": 0,
            "prompt_id": 0,
            "sample": 0,
            "finish": 0,
            "outcome": -1,
            "prompt": [1],
            "tok": rng.integers(0, vocabulary, length),
            "cand": rng.integers(0, vocabulary, 4 * length),
        }
        for _ in range(1)
    )
    meta = SetMeta(stage="", key="", kind="sequences", vocab_size=vocabulary, candidates=4)
    batch = to_batch(rows, meta)
    head = scoring_head(model)

    @torch.no_grad()
    def forward() -> None:
        hidden_TD = response_hidden(model, batch)
        for start in range(0, batch.tokens, _CHUNK):
            head.logits(hidden_TD[start : start + _CHUNK])

    work: dict[str, Callable[[], object]] = {"forward + head": forward}
    for name, record in RECORDS.items():
        work[name] = lambda record=record: score_rows(
            model, head, rows, record, 0, vocab_size=vocabulary, rows_per_chunk=_CHUNK
        )
    return work


if __name__ == "__main__":
    main(run, __doc__)
