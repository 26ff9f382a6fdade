"""Scoring inside vLLM: sequences in, records out, vLLM's own loop in between.

A sequence is one pooling request of its prompt and response (the last token is not fed: nothing is
predicted from it); `vllm_model` makes the records where the logits are. Requests are kept in flight
until the source is dry; answers come in any order.

A request and its answer travel between the processes as pickled bytes, whatever their length, so
that no log-probability ever becomes a Python object and nothing depends on how vLLM serialises
arrays.

Prompts are shared through vLLM's prefix cache. Where two responses to one prompt begin alike, the
cache may hold more than the prompt, and the later answer lacks its first positions: those are asked
for once more, without the cache. The two requests together compute no more than one would have
without sharing.
"""

import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.config.record_kinds import Record
from stages.config.records import ScoreRun
from stages.engines.vllm_process import engine_errors, running_engine
from stages.models.facts import ModelFacts, model_facts
from stages.models.model import check_prompts
from stages.scoring.drawn import Array
from stages.scoring.score import ScoredPositions, check_sequences, joined, make_records
from storage.errors import ConfigError, SequenceError
from storage.rows import Rows

_SEQUENCES = 256
"""Most sequences in one step; twice as many are in flight, so that a successor is at hand."""
_CPU_BLOCK = 32
"""Tokens in one block of the cache on a CPU, the unit in which prompts are shared."""


@dataclass(frozen=True)
class ScoreRequest:
    """Response positions 0..T of one sequence, to be recorded."""

    prompt: int
    """Tokens before the response."""
    positions: ScoredPositions
    record: Record
    seed: int


@dataclass(frozen=True)
class ScoreAnswer:
    """Columns of the records of positions `first`..T, or what went wrong."""

    first: int
    """Positions before were not computed: vLLM took them from its prefix cache."""
    columns: dict[str, Array]
    error: str = ""


@dataclass(frozen=True)
class _Ask:
    """Positions 0 to `stop` of one sequence."""

    row: int
    stop: int
    cached: bool = True


class VllmScorer:
    """A `stages.scoring.scorer.Scorer` on top of a started vLLM."""

    def __init__(self, engine: Any, facts: ModelFacts) -> None:
        self.vocab_size = facts.vocab_size
        self.logits = facts.rows
        self._context = facts.context
        self._room = int(engine.model_config.max_model_len)
        self._engine: Any = engine
        self._serial = 0

    def close(self) -> None:
        """Let go of the engine, so that its memory is free even while someone holds this object."""
        self._engine = None

    def score(
        self,
        rows: Rows,
        record: Record,
        seed: int,
        advance: Callable[[int], None] | None = None,
    ) -> Rows:
        """As `Scorer.score`."""
        cand_TC = check_sequences(rows, record, self.vocab_size, self._context)
        positions = ScoredPositions.of(rows, cand_TC)
        length_N = rows.lengths("position")
        asked = np.flatnonzero(length_N)
        check_prompts(rows.lengths("prompt")[asked], rows["seq_id"][asked])
        self._check_room(rows)
        if not len(asked):
            empty = torch.zeros(0, self.vocab_size)
            settings = {"vocab_size": self.vocab_size, "rows_per_chunk": 1}
            made = make_records(lambda _: empty, positions, record, seed, **settings)
            return joined(rows, made.columns())

        pieces: list[list[dict[str, Array]]] = [[] for _ in range(len(rows))]
        waiting = deque(_Ask(row, int(length_N[row])) for row in asked.tolist())
        running: dict[str, _Ask] = {}
        try:
            while waiting or running:
                while waiting and len(running) < 2 * _SEQUENCES:
                    ask = waiting.popleft()
                    running[self._add(ask, rows, positions, record, seed)] = ask
                with engine_errors("vLLM failed while scoring"):
                    outputs = self._engine.step()
                for output in outputs:
                    ask = running.pop(output.request_id)
                    answer: ScoreAnswer = pickle.loads(output.outputs.data.numpy())
                    if answer.error:
                        raise SequenceError([rows["seq_id"][ask.row]], answer.error)
                    if answer.first:
                        waiting.appendleft(_Ask(ask.row, answer.first, cached=False))
                    pieces[ask.row].insert(0, answer.columns)  # later positions come first
                    if advance is not None:
                        advance(ask.stop - answer.first)
        finally:
            if running:
                self._engine.abort_request(list(running))
        return joined(rows, concat_columns([piece for row in pieces for piece in row]))

    def _add(
        self, ask: _Ask, rows: Rows, positions: ScoredPositions, record: Record, seed: int
    ) -> str:
        """Hand a request to vLLM; returns its name."""
        from vllm import PoolingParams

        prompt = rows["prompt"][slice(*rows.offsets["prompt"][ask.row : ask.row + 2])]
        start = rows.offsets["position"][ask.row]
        fed = np.concatenate([prompt, rows["tok"][start : start + ask.stop - 1]])
        request = ScoreRequest(len(prompt), positions[start : start + ask.stop], record, seed)
        params = PoolingParams(
            task="token_embed",
            skip_reading_prefix_cache=not ask.cached,
            extra_kwargs={"request": pickle.dumps(request)},
        )
        name = str(self._serial)
        self._serial += 1
        with engine_errors(f"vLLM refuses sequence {rows['seq_id'][ask.row]}"):
            self._engine.add_request(name, {"prompt_token_ids": fed.tolist()}, params)
        return name

    def _check_room(self, rows: Rows) -> None:
        fed_N = rows.lengths("prompt") + rows.lengths("position") - 1
        if len(rows) and int(fed_N.max()) > self._room:
            row = int(fed_N.argmax())
            raise ConfigError(
                f"sequence {rows['seq_id'][row]} has {fed_N[row] + 1} tokens, but vLLM's cache "
                f"holds {self._room}. Raise run.kv_cache_mib (CPU) or run.memory_fraction (GPU)."
            )


def concat_columns(pieces: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """Columns of all pieces, one piece after the other."""
    names = pieces[0] if pieces else ()
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in names}


# ---------------------------------------------------------------------------------------------
# Starting


@contextmanager
def open_vllm(directory: Path, dtype: str, run: ScoreRun) -> Iterator[VllmScorer]:
    """As `stages.scoring.scorer.open_scorer`, on vLLM."""
    facts = model_facts(directory)
    settings = {"vocab_size": facts.vocab_size, "rows_per_chunk": run.rows_per_chunk}
    in_memory = {
        "enforce_eager": True,
        "kv_cache_memory_bytes": run.kv_cache_mib << 20,
        "block_size": _CPU_BLOCK,
    }
    with _pooling_model(directory) as overrides:

        def options(on_cpu: bool) -> dict[str, Any]:
            from vllm import envs

            # An engine in this process finds the class that is registered here.
            alone = on_cpu and run.tensor_parallel == 1 and not envs.VLLM_ENABLE_V1_MULTIPROCESSING
            return {
                "dtype": dtype,
                "runner": "pooling",
                "convert": "none",
                "max_model_len": -1,  # the model's context, or what of it fits into memory
                "max_num_seqs": min(_SEQUENCES, run.tokens_per_batch),
                "max_num_batched_tokens": run.tokens_per_batch,
                "tensor_parallel_size": run.tensor_parallel,
                "model_class_overrides": {} if alone else overrides,
                "additional_config": {"afterglow": settings},
                **(in_memory if on_cpu else {"gpu_memory_utilization": run.memory_fraction}),
            }

        with running_engine(directory, options) as engine:
            scorer = VllmScorer(engine, facts)
            del engine  # memory is freed when the context is left, and this name would hold it
            try:
                yield scorer
            finally:
                scorer.close()


@contextmanager
def _pooling_model(directory: Path) -> Iterator[dict[str, str]]:
    """Overrides that make scoring models of what vLLM has for the model in `directory`.

    vLLM applies them in each process that loads the model, once in its life, and never takes them
    back; in this one, where another engine may follow, they are taken back at the end.
    """
    from transformers import AutoConfig
    from vllm.model_executor.models import ModelRegistry

    known = ModelRegistry.models
    architectures = AutoConfig.from_pretrained(directory, local_files_only=True).architectures or []
    # An architecture unknown to vLLM is run by one of its classes around transformers.
    names = [name for name in architectures if name in known][:1] or [
        name for name in known if name.startswith("Transformers")
    ]
    before = {name: known[name] for name in names}
    overrides: dict[str, str] = {}
    for name, registered in before.items():
        entry: Any = registered  # a class that is loaded, or the name of one
        if hasattr(entry, "model_cls"):
            module, cls = entry.model_cls.__module__, entry.model_cls.__qualname__
        else:
            module, cls = entry.module_name, entry.class_name
        overrides[name] = f"stages.scoring.vllm_model:{module}.{cls}"
    try:
        for name, target in overrides.items():
            ModelRegistry.register_model(name, target)
        yield overrides
    finally:
        known.update(before)
