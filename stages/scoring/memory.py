"""Memory of scoring: the largest forward pass is run first, and running out is explained.

Which sequences share a forward pass depends on their lengths, so the largest pass of a set may
come hours after the first one. `rehearsal` makes sequences that are as large as any will be;
scoring them once, before the first part, shows whether the sizes in `run` fit. vLLM measures its
own forward pass when it starts, but not the logits and records that are made beside it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from stages.config.record_kinds import Record
from stages.config.records import ScoreRun
from storage.errors import EngineError
from storage.rows import Rows
from storage.schema import FINISH, OUTCOME

_GIB = 1 << 30


def rehearsal(longest: int, run: ScoreRun, record: Record) -> Rows:
    """As many sequences of `longest` tokens as fit into a forward pass, at least one.

    Args:
        longest: Tokens of the longest sequence of the set, prompt included; at least 2.
        run: With `tokens_per_batch`.
        record: Says how many candidates each position has.
    """
    response = longest - 1
    sequence: dict[str, Any] = {
        "prompt_id": 0,
        "sample": 0,
        "finish": FINISH["length"],
        "outcome": OUTCOME["unknown"],
        "prompt": np.zeros(1, np.uint32),
        "tok": np.zeros(response, np.uint32),
    }
    if record.forced:
        sequence["cand"] = np.tile(np.arange(record.forced, dtype=np.uint32), response)
    count = max(1, run.tokens_per_batch // longest)
    return Rows.from_sequences([{"seq_id": index, **sequence} for index in range(count)])


@contextmanager
def memory_errors(
    run: ScoreRun, longest: int, *, hidden_size: int, vocabulary: int, element_bytes: int
) -> Iterator[None]:
    """Turn running out of memory into an error that says what took how much.

    Args:
        run: Sizes of a pass and of a chunk.
        longest: Tokens of the longest sequence.
        hidden_size: Of the model.
        vocabulary: Logits of a position, padding included.
        element_bytes: Bytes of a hidden number.

    Raises:
        EngineError: memory ran out.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; on a CPU it has no class
        text = str(error)
        known = ("out of memory", "can't allocate memory")
        if not any(words in text for words in known):
            raise
        tokens = max(run.tokens_per_batch, longest)
        states = tokens * hidden_size * element_bytes / _GIB
        logits = run.rows_per_chunk * vocabulary * 4 / _GIB
        raise EngineError(
            f"out of memory while scoring ({text.splitlines()[0]}). A forward pass has up to "
            f"{tokens:,} tokens (run.tokens_per_batch = {run.tokens_per_batch:,}, longest "
            f"sequence {longest:,}): {tokens:,} x {hidden_size:,} x {element_bytes} bytes = "
            f"{states:.2f} GiB for the hidden states of one layer, of which about ten exist at "
            f"once. The head makes {run.rows_per_chunk:,} x {vocabulary:,} x 4 bytes = "
            f"{logits:.2f} GiB of logits at a time, of which about four copies exist. "
            "Lower run.tokens_per_batch or run.rows_per_chunk: neither is in the key, and parts "
            "that are done are kept."
        ) from error
