"""The teacher inside vLLM: any architecture vLLM generates with, as a pooling model.

vLLM hands the hidden states of every computed token to a model's pooler, and this one makes records
of them: head on `rows_per_chunk` rows at a time, records by the same code as everywhere else
(`score.make_records`), bytes out. `Pooler`, `PoolingMetadata` and the request's own parameters are
vLLM's published way to add a model, and mean the same under both of its model runners. The other
way, a worker extension that replaces the runner's prompt log-probabilities, would have to patch a
private method that each runner has in another form.

The class is made from the one vLLM has for the architecture, under the same name, so that whatever
vLLM decides by name (attention, cache layout, quantisation, multi-modal parts) stays decided:
`model_class_overrides = {architecture: "stages.scoring.vllm_model:<module>.<class>"}`, applied by
vLLM in every process that loads the model. Nothing is installed or patched.

What a pooler must hold against, and how:

* Chunked prefill: a request comes in pieces; the pieces of its answer wait in the state that vLLM
  keeps with it. vLLM's own count of computed tokens says where a piece begins; adding up pieces
  would not.
* Prefix caching: the computed tokens may begin inside the response, where another response began
  alike. The answer then says from which position it holds, and the client asks for the others.
* Preemption: the request starts over. Positions that were recorded before are not made again (one
  runner keeps the state), or the answer begins anew (the other drops it).
* Tensor parallelism: every rank takes part in the head, the first makes the records.

Imported by vLLM only.
"""

import contextlib
import importlib
import itertools
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.v1.pool.metadata import PoolingMetadata

from stages.config.record_kinds import HeadTail, Record
from stages.scoring.drawn import Array
from stages.scoring.score import ScoredPositions, make_records
from stages.scoring.vllm_scorer import ScoreAnswer, ScoreRequest, concat_columns
from storage.errors import EngineError
from storage.rows import Rows, offsets_of

SETTINGS = "afterglow"
"""Key of the settings of the pooler in vLLM's `additional_config`."""


def __getattr__(name: str) -> type[nn.Module]:
    """The scoring class of `<module>.<class>`: how vLLM comes by it."""
    module, _, base = name.rpartition(".")
    if not module:
        raise AttributeError(name)
    return _scoring_class(getattr(importlib.import_module(module), base))


@cache
def _scoring_class(base: Any) -> type[nn.Module]:
    class Scoring(base):
        is_pooling_model = True

        def __init__(self, *, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
            settings = vllm_config.additional_config[SETTINGS]
            self.pooler = RecordPooler(self.compute_logits, **settings)

    Scoring.__name__ = base.__name__
    return Scoring


# ---------------------------------------------------------------------------------------------
# Where a request stands


@dataclass
class _RequestProgress:
    """A request and the pieces of its answer."""

    request: ScoreRequest
    first: int = 0
    """Records begin at this position ..."""
    done: int = 0
    """... and end before this one."""
    pieces: list[dict[str, Array]] = field(default_factory=list)
    error: str = ""

    def take(self, start: int, stop: int) -> range:
        """Positions to record, of those from `start` to `stop` that this step predicts."""
        if start > self.done:  # what lies between was not computed, so what came before is no use
            self.first = self.done = start
            self.pieces.clear()
        taken = range(self.done, max(self.done, min(stop, len(self.request.positions))))
        self.done = taken.stop
        return taken

    def answer(self) -> ScoreAnswer:
        """All pieces joined."""
        return ScoreAnswer(self.first, concat_columns(self.pieces), self.error)


@dataclass(frozen=True)
class _Share:
    """The positions of one request that one step predicts."""

    progress: _RequestProgress
    taken: range
    row: int
    """Row of the hidden state that predicts the first of them."""

    @property
    def key(self) -> tuple[Record, int]:
        """Requests that agree in this can be recorded together."""
        return self.progress.request.record, self.progress.request.seed

    @property
    def positions(self) -> ScoredPositions:
        return self.progress.request.positions[self.taken.start : self.taken.stop]


def _shares(metadata: PoolingMetadata) -> Iterator[_Share]:
    """What to record in this step."""
    cursor = metadata.get_pooling_cursor()
    row = 0
    for params, state, count, end in zip(
        metadata.pooling_params,
        metadata.pooling_states,
        cursor.num_scheduled_tokens_cpu.tolist(),
        cursor.seq_lens_cpu.tolist(),
        strict=True,
    ):
        progress = _progress(params, state)
        # The hidden state of token i predicts token i + 1: response position i + 1 - prompt.
        start = end - count + 1 - progress.request.prompt
        taken = progress.take(start, start + count)
        if taken:
            yield _Share(progress, taken, row + taken.start - start)
        row += count


def _progress(params: Any, state: Any) -> _RequestProgress:
    """Of a request, kept in the list vLLM has for pieces of chunked prefill and empties itself."""
    if not state.hidden_states_cache:
        state.hidden_states_cache.append(
            _RequestProgress(pickle.loads(params.extra_kwargs["request"]))
        )
    return state.hidden_states_cache[0]


# ---------------------------------------------------------------------------------------------
# The pooler


class RecordPooler(Pooler):
    """Hidden states -> records."""

    def __init__(
        self, compute_logits: Callable[[Tensor], Tensor], vocab_size: int, rows_per_chunk: int
    ) -> None:
        super().__init__()
        self._compute_logits = compute_logits
        self._vocab_size = vocab_size
        self._rows_per_chunk = rows_per_chunk
        self._makes_records = get_tensor_model_parallel_rank() == 0

    def get_supported_tasks(self) -> set[Any]:
        """One output per request, made of all its tokens."""
        return {"token_embed"}

    def forward(
        self, hidden_states: Tensor, pooling_metadata: PoolingMetadata
    ) -> list[Tensor | None]:
        """Answers [bytes] of the requests that end with this step, None for the others.

        Args:
            hidden_states: [S, D], the tokens of this step, request after request.
            pooling_metadata: The requests, and how many tokens of each are computed.
        """
        params, states = pooling_metadata.pooling_params, pooling_metadata.pooling_states
        if any(param.extra_kwargs is None for param in params):
            return self._rehearse(hidden_states, len(params))
        for _, group in itertools.groupby(_shares(pooling_metadata), lambda share: share.key):
            self._record(hidden_states, list(group))
        answers: list[Tensor | None] = []
        ended = pooling_metadata.get_pooling_cursor().get_finished_mask()
        for param, state, end in zip(params, states, ended, strict=True):
            data = bytearray(pickle.dumps(_progress(param, state).answer())) if end else None
            answers.append(None if data is None else torch.frombuffer(data, dtype=torch.uint8))
        return answers

    def _record(self, hidden_SD: Tensor, shares: list[_Share]) -> None:
        """Records of positions of requests that agree in record and seed."""
        row_T = np.concatenate([share.row + np.arange(len(share.taken)) for share in shares])
        positions = ScoredPositions.concat(
            [
                share.progress.request.positions[share.taken.start : share.taken.stop]
                for share in shares
            ]
        )
        try:
            columns = self._columns(hidden_SD, row_T, positions, *shares[0].key)
        except EngineError as error:
            for share in shares:
                share.progress.error = str(error)
            return
        off = offsets_of([len(share.taken) for share in shares])
        rows = Rows.from_columns(columns, {"prompt": np.zeros_like(off), "position": off})
        for index, share in enumerate(shares if columns else ()):
            share.progress.pieces.append(rows.slice(index, index + 1).columns)

    def _columns(
        self, hidden_SD: Tensor, row_T: Array, positions: ScoredPositions, record: Record, seed: int
    ) -> dict[str, Array]:
        """Columns of the records of hidden states `row_T`; empty on all ranks but the first."""
        index_T = torch.from_numpy(row_T).to(hidden_SD.device)
        seen = 0

        def logits(chunk: slice) -> Tensor:
            nonlocal seen
            seen = chunk.stop
            return self._compute_logits(hidden_SD[index_T[chunk]])

        try:
            if not self._makes_records:
                return {}
            made = make_records(
                lambda chunk: logits(chunk).float().contiguous(),
                positions,
                record,
                seed,
                vocab_size=self._vocab_size,
                rows_per_chunk=self._rows_per_chunk,
            )
            return made.columns()
        finally:  # ranks meet in the head: each must come to every chunk, also after an error
            for start in range(seen, len(row_T), self._rows_per_chunk):
                logits(slice(start, start + self._rows_per_chunk))

    def _rehearse(self, hidden_SD: Tensor, requests: int) -> list[Tensor | None]:
        """Take as much memory as the work will: vLLM sizes its cache by this run."""
        T = min(len(hidden_SD), self._rows_per_chunk)
        zero_T = np.zeros(T, np.int64)
        positions = ScoredPositions(zero_T, np.zeros((T, 0), np.int64), zero_T, zero_T)
        with contextlib.suppress(EngineError):  # the hidden states of such a run mean nothing
            self._columns(hidden_SD, np.arange(T), positions, HeadTail(candidates=0), 0)
        return [torch.zeros(1, dtype=torch.uint8)] * requests
