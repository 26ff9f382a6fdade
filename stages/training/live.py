"""The comparison: the same training with the teacher in the loop.

Each step takes the prompts that step would have read from the stored records, samples responses
from the *current* student, has the live teacher score them with the record parameters of the stored
set, and hands out the batch. Prompts, order, record and objective are those of the offline run;
only the contexts are fresh. What it costs is the teacher, resident and run at every step.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.config import Record, Sampling
from stages.scoring.score import score_rows, scoring_head
from stages.training.sampler import sample
from storage.codec import Batch, to_batch
from storage.errors import ConfigError
from storage.manifest import SetMeta
from storage.rows import Rows
from storage.stream import Stream


class LiveSource:
    """Batches scored while the student trains; a `training.data.Source`.

    The batch of a step depends on seed, step and the student's weights alone, so a resumed run
    sees what an undisturbed one would have seen.

    Args:
        prompts: The stored set, read in its order; only its prompts are used.
        student: The model being trained.
        teacher: In evaluation mode, on the student's device.
        meta: Of the stored set's manifest: `record` and `sampling`.
        stop_ids: Ids that end a response.
        seed: Of the run.
        dtype: Of the student's forward pass.
        rows_per_chunk, tokens_per_batch: Execution of scoring.

    Raises:
        ConfigError: the stored set was sampled without full support, which is not reproduced here.
        EngineError: the teacher's head is of an unknown kind.
    """

    def __init__(
        self,
        *,
        prompts: Stream,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        meta: Mapping[str, Any],
        stop_ids: Sequence[int],
        seed: int,
        dtype: torch.dtype,
        rows_per_chunk: int,
        tokens_per_batch: int,
    ) -> None:
        self._prompts = prompts
        self.student, self._teacher = student, teacher
        self._head = scoring_head(teacher)
        self._sampling = Sampling.model_validate(meta["sampling"])
        self._record = Record.model_validate(meta["record"])
        self._meta = SetMeta(
            stage="live",
            key=prompts.meta.key,
            kind="records",
            vocab_size=prompts.meta.vocab_size,
            candidates=self._record.candidates,
            record=self._record.model_dump(),
        )
        self._stop_ids, self._seed, self._dtype = stop_ids, seed, dtype
        self._rows_per_chunk, self._tokens_per_batch = rows_per_chunk, tokens_per_batch
        if not self._sampling.full_support:
            raise ConfigError(
                'train.data = "live" samples with full support, but the stored rollouts were drawn '
                f"with {self._sampling}. Compare on rollouts with top_p = 1 and top_k = 0."
            )

    @property
    def steps_per_epoch(self) -> float:
        """As for the stored set."""
        return self._prompts.steps_per_epoch

    def __next__(self) -> Batch:
        first = self._prompts.step
        stored = next(self._prompts)
        # Never seen before and never again: fresh names give fresh randomness.
        seq_id = np.arange(len(stored), dtype=np.int64) + first * len(stored)
        return to_batch(self._score(self._sample(stored, seq_id)), self._meta)

    def state_dict(self) -> dict[str, Any]:
        """Position in the prompts."""
        return self._prompts.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position in the prompts."""
        self._prompts.load_state_dict(state)

    def _sample(self, stored: Batch, seq_id: np.ndarray) -> Rows:
        """One fresh response per prompt, as the rollouts stage would store them."""
        off = stored.prompt_off
        kind = self.student.device.type
        training = self.student.training
        self.student.eval()
        with torch.autocast(kind, torch.bfloat16, self._dtype == torch.bfloat16):
            made = sample(
                self.student,
                [stored.prompt[a:b] for a, b in pairwise(off)],
                seq_id=seq_id,
                seed=self._seed,
                temperature=self._sampling.temperature,
                max_tokens=self._sampling.max_tokens,
                vocab_size=self._meta.vocab_size,
                stop_ids=self._stop_ids,
                candidates=self._record.candidates,
            )
        self.student.train(training)
        columns = {
            "seq_id": seq_id,
            "prompt_id": stored.prompt_id,
            "sample": np.zeros(len(stored), np.int32),
            "finish": made.finish_N,
            "outcome": np.full(len(stored), -1, np.int8),
            "prompt": stored.prompt,
            "tok": made.tok_T,
            "ref_lp": made.ref_lp_T,
        }
        if self._record.candidates:
            columns["cand"] = made.cand_TK.reshape(-1)
        return Rows.from_columns(columns, {"prompt": off, "position": made.off_N})

    def _score(self, rows: Rows) -> Rows:
        """The teacher's record of every position, drawn as the teacher-logits stage draws it."""
        return score_rows(
            self._teacher,
            self._head,
            rows,
            self._record,
            self._seed,
            vocab_size=self._meta.vocab_size,
            tokens_per_batch=self._tokens_per_batch,
            rows_per_chunk=self._rows_per_chunk,
        )
