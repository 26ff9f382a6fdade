"""The comparison: the same training with the teacher in the loop.

Each step takes the prompts that step would have read from the stored records, samples responses
from the *current* student, has the live teacher score them with the record parameters of the stored
set, and returns the batch. Prompts, order, sampling, record and objective are those of the
offline run; only the contexts are fresh. What it costs is the teacher, resident and run at every
step, and decoding in between.

Sequences that no model sampled (a text corpus) are taken as they are: there the teacher alone is
live.
"""

import zlib
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.config.candidates import Candidates, Coverage, stored_candidates
from stages.config.data import Sampling
from stages.config.record_kinds import stored_record
from stages.counter import hash64
from stages.engines.base import (
    Completion,
    Request,
    candidate_columns,
    check_finite,
    sequence_seed,
)
from stages.engines.transformers_engine import TransformersGenerator
from stages.models.facts import ModelFacts
from stages.scoring.score import score_rows, scoring_head
from storage.batch import Batch
from storage.codec import to_batch
from storage.manifest import SetMeta
from storage.rows import Rows, offsets_of
from storage.schema import FINISH, OUTCOME
from storage.stream import Stream

_NO_LIMIT = 1 << 30
_DRAWS = zlib.crc32(b"live/sample")  # scoring draws from the same seed: no number serves both


class LiveSource:
    """Batches scored while the student trains; a `microbatches.BatchSource`.

    The batch of a step depends on seed, step and the student's weights alone, so a resumed run
    sees what an undisturbed one would have seen.

    Args:
        prompts: The stored set, read in its order; only its prompts are used.
        student: The model being trained.
        facts: What an engine must know of it: end tokens and context.
        teacher: In evaluation mode, on the student's device.
        meta: Of the stored set's manifest: `record`, and `sampling` where its sequences were
            sampled.
        seed: Of the run.
        dtype: Of the student's forward pass.
        rows_per_chunk, tokens_per_batch: Execution of scoring.
        plain: Return sequences without records, for a loss that reads the teacher itself.
        tokenizer: Its directory; only stop strings need it.

    Raises:
        EngineError: the teacher's head is of an unknown kind.
    """

    def __init__(
        self,
        *,
        prompts: Stream,
        student: PreTrainedModel,
        facts: ModelFacts,
        teacher: PreTrainedModel,
        meta: Mapping[str, Any],
        seed: int,
        dtype: torch.dtype,
        rows_per_chunk: int,
        tokens_per_batch: int,
        plain: bool = False,
        tokenizer: Path | None = None,
    ) -> None:
        self.student = student
        self._tokenizer = tokenizer
        self._prompts, self._teacher = prompts, teacher
        self._head = scoring_head(teacher)
        drawn = meta.get("sampling")
        self._sampling = Sampling.model_validate(drawn) if drawn else None
        # No position is seen twice, so one draw is enough.
        self._record = stored_record(meta["record"]).one_draw()
        self._plain = plain
        forced = 0 if plain else self._record.forced
        self._candidates: Candidates = forced
        if forced and isinstance(kept := stored_candidates(meta), Coverage):
            # The first `forced` of what the stored rollouts keep.
            self._candidates = Coverage(mass=kept.mass, at_most=forced)
        self._meta = SetMeta(
            stage="live",
            key=prompts.meta.key,
            kind="sequences" if plain else "records",
            vocab_size=prompts.meta.vocab_size,
            candidates=forced,
            record=None if plain else self._record.described(),
        )
        # Ids above the stored vocabulary are padding of the head, which the teacher cannot score.
        self._facts = replace(facts, vocab_size=min(facts.vocab_size, self._meta.vocab_size))
        self._seed, self._dtype = seed, dtype
        self._draws = int(hash64(seed, _DRAWS)[0])
        self._rows_per_chunk, self._tokens_per_batch = rows_per_chunk, tokens_per_batch

    @property
    def steps_per_epoch(self) -> float:
        """As for the stored set."""
        return self._prompts.steps_per_epoch

    def __next__(self) -> Batch:
        first = self._prompts.step
        stored = next(self._prompts)
        if self._sampling is None:
            rows = _as_stored(stored)
        else:
            # Fresh sequence ids give fresh randomness.
            seq_id = np.arange(len(stored), dtype=np.int64) + first * len(stored)
            rows = self._rollouts(stored, seq_id, self._sampling)
        return to_batch(rows if self._plain else self._score(rows), self._meta)

    def state_dict(self) -> dict[str, Any]:
        """Position in the prompts."""
        return self._prompts.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position in the prompts."""
        self._prompts.load_state_dict(state)

    def _rollouts(self, stored: Batch, seq_id: np.ndarray, sampling: Sampling) -> Rows:
        """One fresh response per prompt, as the rollouts stage would store them."""
        prompt = stored.prompt.astype(np.uint32)
        made = self._generate(
            [
                Request(name, prompt[a:b], sequence_seed(self._draws, name))
                for name, (a, b) in zip(seq_id.tolist(), pairwise(stored.prompt_off), strict=True)
            ],
            sampling,
        )
        columns = {
            "seq_id": seq_id,
            "prompt_id": stored.prompt_id,
            "sample": np.zeros(len(stored), np.int32),
            "finish": [FINISH[one.finish] for one in made],
            "outcome": np.full(len(stored), OUTCOME["unknown"], np.int8),
            "prompt": stored.prompt,
            "tok": np.concatenate([one.tok for one in made]),
            "ref_lp": np.concatenate([one.logprob for one in made]),
            **candidate_columns(made, self._candidates),
        }
        position = offsets_of([len(one.tok) for one in made])
        return Rows.from_columns(columns, {"prompt": stored.prompt_off, "position": position})

    def _generate(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        """Completions in the order of `requests`; the student is left in the mode it was in."""
        context = self._facts.context or _NO_LIMIT
        engine = TransformersGenerator(
            self.student, self._facts, context, len(requests), self._tokenizer
        )
        training = self.student.training
        self.student.eval()
        kind = self.student.device.type
        with torch.autocast(kind, torch.bfloat16, self._dtype == torch.bfloat16):
            made = list(engine.generate(requests, sampling, self._candidates))
        self.student.train(training)
        for completion in made:
            check_finite(completion, "the student", str(self._dtype))
        return sorted(made, key=lambda completion: completion.seq_id)

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


def _as_stored(stored: Batch) -> Rows:
    """The sequences of a batch, without what else was stored with them."""
    columns = {
        "seq_id": stored.seq_id,
        "prompt_id": stored.prompt_id,
        "sample": np.zeros(len(stored), np.int32),
        "finish": np.full(len(stored), FINISH["length"]),
        "outcome": stored.outcome,
        "prompt": stored.prompt,
        "tok": stored.tok,
    }
    return Rows.from_columns(columns, {"prompt": stored.prompt_off, "position": stored.tok_off})
