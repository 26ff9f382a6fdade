"""A loaded teacher that turns sequences into records: the same rows, whatever runs the teacher."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel

from stages.config.record_kinds import Record
from stages.config.records import ScoreRun
from stages.models.model import Head, load_model, load_tokenizer, pick_device, real_vocab_size
from stages.scoring.memory import memory_errors
from stages.scoring.score import score_rows, scoring_head
from stages.skipping import Skipped
from storage.errors import ConfigError, SequenceError
from storage.rows import Rows


class Scorer(Protocol):
    """An engine with the teacher in it."""

    @property
    def vocab_size(self) -> int:
        """Number of real ids; logits of ids above are left out of the softmax."""
        ...

    @property
    def logits(self) -> int:
        """Number of logits, padding of the vocabulary included."""
        ...

    def score(
        self,
        rows: Rows,
        record: Record,
        seed: int,
        advance: Callable[[int], None] | None = None,
    ) -> Rows:
        """The sequences of `rows` with the teacher's record at every response position.

        What is drawn depends on `seed`, `seq_id` and the index of the response token alone.

        Args:
            rows: Plain sequences; `cand` where the record wants candidates.
            record: What to keep. Of more candidates than it asks for, the first are taken.
            seed: Of the draws.
            advance: Called now and then with the number of positions done since the last call.

        Returns:
            The same sequences in the same order: row, prompt and position columns of `rows`
            without `cand`, plus the columns of the record.

        Raises:
            ConfigError: the record wants more candidates than the rows have.
            SequenceError: an id outside the vocabulary, a sequence longer than the teacher's
                context, or logits that are NaN or +inf or give a realised token probability zero;
                sequence and position are named.
            DataError: a sequence without a prompt.
        """
        ...


@dataclass(frozen=True)
class UsableScorer:
    """A `Scorer` that leaves out the sequences that cannot be scored, if that is allowed."""

    scorer: Scorer
    skipped: Skipped

    @property
    def vocab_size(self) -> int:
        """As `Scorer.vocab_size`."""
        return self.scorer.vocab_size

    @property
    def logits(self) -> int:
        """As `Scorer.logits`."""
        return self.scorer.logits

    def score(
        self,
        rows: Rows,
        record: Record,
        seed: int,
        advance: Callable[[int], None] | None = None,
    ) -> Rows:
        """As `Scorer.score`, of the sequences that can be scored, in their order.

        Raises:
            SequenceError: others may not be left out.
        """
        while True:
            try:
                return self.scorer.score(rows, record, seed, advance)
            except SequenceError as error:
                self.skipped.add(error)
                rows = rows.take(np.flatnonzero(~np.isin(rows["seq_id"], error.seq_ids)))


@dataclass(frozen=True)
class TransformersScorer:
    """A `Scorer` on plain transformers."""

    model: PreTrainedModel
    head: Head
    vocab_size: int
    run: ScoreRun

    @property
    def logits(self) -> int:
        """As `Scorer.logits`."""
        return self.head.weight.shape[0]

    def score(
        self,
        rows: Rows,
        record: Record,
        seed: int,
        advance: Callable[[int], None] | None = None,
    ) -> Rows:
        """As `Scorer.score`.

        Raises:
            EngineError: memory ran out.
        """
        weight = self.head.weight
        lengths = rows.lengths("prompt") + rows.lengths("position")
        with memory_errors(
            self.run,
            int(lengths.max(initial=0)),
            hidden_size=weight.shape[1],
            vocabulary=weight.shape[0],
            element_bytes=self.model.dtype.itemsize,
        ):
            return score_rows(
                self.model,
                self.head,
                rows,
                record,
                seed,
                vocab_size=self.vocab_size,
                tokens_per_batch=self.run.tokens_per_batch,
                rows_per_chunk=self.run.rows_per_chunk,
                advance=advance,
            )


@contextmanager
def open_scorer(directory: Path, dtype: str, run: ScoreRun) -> Iterator[Scorer]:
    """Load the model in `directory`; leaving the context frees its memory.

    Raises:
        DataError: it cannot be loaded, or has no tokenizer.
        ConfigError: vLLM is asked for and not installed.
        EngineError: an architecture whose head is not understood, or vLLM does not start.
    """
    if run.engine == "vllm":
        if importlib.util.find_spec("vllm") is None:
            raise ConfigError(
                'teacher-logits.run.engine = "vllm", but vLLM is not installed. Install the extra '
                '`cpu` or `cuda`, or use "transformers".'
            )
        from stages.scoring.vllm_scorer import open_vllm

        with open_vllm(directory, dtype, run) as scorer:
            yield scorer
        return
    model = load_model(directory, dtype, pick_device(run.device))
    vocab_size = real_vocab_size(model, load_tokenizer(directory))
    yield TransformersScorer(model, scoring_head(model), vocab_size, run)
