"""Scoring inside vLLM: sequences in, records out, vLLM's own loop in between.

A sequence is one pooling request of its prompt and response (the last token is not fed: nothing is
predicted from it); `vllm_model` makes the records where the logits are. Requests are kept in flight
until the source is dry; answers come in any order.

Prompts are shared through vLLM's prefix cache. Where two responses to one prompt begin alike, the
cache may hold more than the prompt, and the later answer lacks its first positions: those are asked
for once more, without the cache. The two requests together compute no more than one would have
without sharing.
"""

from collections import deque
from collections.abc import Callable, Iterator
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
from stages.scoring.score import Positions, check_sequences, joined, make_records
from stages.scoring.vllm_wire import Answer, Array, Request
from storage.errors import ConfigError, EngineError
from storage.rows import Rows

_SEQUENCES = 256
"""Most sequences in one step; twice as many are in flight, so that a successor is at hand."""
_CPU_BLOCK = 32
"""Tokens in one block of the cache on a CPU, the unit in which prompts are shared."""


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
        positions = Positions.of(rows, cand_TC)
        asked = np.flatnonzero(rows.lengths("position"))
        check_prompts(rows.lengths("prompt")[asked], rows["seq_id"][asked])
        self._check_room(rows)

        def request(ask: _Ask) -> tuple[Array, Request]:
            prompt = rows["prompt"][slice(*rows.offsets["prompt"][ask.row : ask.row + 2])]
            start = rows.offsets["position"][ask.row]
            fed = rows["tok"][start : start + ask.stop - 1]
            wanted = positions[start : start + ask.stop]
            text = record.model_dump_json()
            return np.concatenate([prompt, fed]), Request(len(prompt), wanted, text, seed)

        pieces: list[list[dict[str, Array]]] = [[] for _ in range(len(rows))]
        lengths = rows.lengths("position")
        for ask, answer in self._ask([_Ask(row, int(lengths[row])) for row in asked], request):
            pieces[ask.row].insert(0, answer.columns)
            if advance is not None:
                advance(ask.stop - answer.first)
        columns = _concat([piece for row in pieces for piece in row])
        if not columns:
            empty = torch.zeros(0, self.vocab_size)
            settings = {"vocab_size": self.vocab_size, "rows_per_chunk": 1}
            columns = make_records(lambda _: empty, positions, record, seed, **settings).columns()
        return joined(rows, columns)

    def _ask(
        self, asks: list[_Ask], request: Callable[[_Ask], tuple[Array, Request]]
    ) -> Iterator[tuple[_Ask, Answer]]:
        """Answers as they come; of one sequence those for later positions first."""
        waiting = deque(asks)
        running: dict[str, _Ask] = {}
        try:
            while waiting or running:
                while waiting and len(running) < 2 * _SEQUENCES:
                    ask = waiting.popleft()
                    running[self._add(*request(ask), ask.cached)] = ask
                with engine_errors("vLLM failed while scoring"):
                    outputs = self._engine.step()
                for output in outputs:
                    ask = running.pop(output.request_id)
                    answer = Answer.from_bytes(output.outputs.data.numpy())
                    if answer.error:
                        raise EngineError(answer.error)
                    if answer.first:
                        waiting.appendleft(_Ask(ask.row, answer.first, cached=False))
                    yield ask, answer
        finally:
            if running:
                self._engine.abort_request(list(running))

    def _add(self, fed: Array, request: Request, cached: bool) -> str:
        from vllm import PoolingParams

        name = str(self._serial)
        self._serial += 1
        params = PoolingParams(
            task="token_embed",
            skip_reading_prefix_cache=not cached,
            extra_kwargs=request.to_kwargs(),
        )
        with engine_errors(f"vLLM rejects sequence {request.positions.seq_T[0]}"):
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


def _concat(pieces: list[dict[str, Array]]) -> dict[str, Array]:
    names = pieces[0] if pieces else ()
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in names}


# ---------------------------------------------------------------------------------------------
# Starting


@contextmanager
def open_vllm(directory: Path, dtype: str, run: ScoreRun) -> Iterator[VllmScorer]:
    """As `stages.scoring.scorer.open_scorer`, on vLLM."""
    facts = model_facts(directory)
    with _pooling_model(directory) as overrides:

        def options(on_cpu: bool) -> dict[str, Any]:
            return {
                "dtype": dtype,
                "runner": "pooling",
                "convert": "none",
                "max_model_len": -1,  # the model's context, or what of it fits into memory
                "max_num_seqs": min(_SEQUENCES, run.tokens_per_batch),
                "max_num_batched_tokens": run.tokens_per_batch,
                "tensor_parallel_size": run.tensor_parallel,
                "model_class_overrides": overrides,
                "additional_config": {
                    "afterglow": {
                        "vocab_size": facts.vocab_size,
                        "rows_per_chunk": run.rows_per_chunk,
                    }
                },
                **(_cpu_options(run) if on_cpu else _gpu_options(run)),
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
    overrides = {name: f"stages.scoring.vllm_model:{_path(before[name])}" for name in names}
    try:
        for name, target in overrides.items():
            ModelRegistry.register_model(name, target)
        yield overrides
    finally:
        known.update(before)


def _path(entry: Any) -> str:
    """`<module>.<class>` of an entry of vLLM's registry."""
    if hasattr(entry, "model_cls"):
        return f"{entry.model_cls.__module__}.{entry.model_cls.__qualname__}"
    return f"{entry.module_name}.{entry.class_name}"


def _cpu_options(run: ScoreRun) -> dict[str, Any]:
    return {
        "enforce_eager": True,
        "kv_cache_memory_bytes": run.kv_cache_mib << 20,
        "block_size": _CPU_BLOCK,
    }


def _gpu_options(run: ScoreRun) -> dict[str, Any]:
    return {"gpu_memory_utilization": run.memory_fraction}
