"""vLLM, driven through its `LLMEngine` loop so that requests and completions stream.

Three settings decide what the numbers mean:

* `logprobs_mode="processed_logprobs"`: the stored log-probability is that of the distribution the
  token was drawn from, after penalties, temperature, min-p, top-k and top-p. vLLM's default
  (`raw_logprobs`) is the model's own at temperature 1; both agree at temperature 1 with full
  support and without penalties.
* a seed per request, so that a response does not depend on the batch it is decoded in;
* `generation_config="vllm"` (`vllm_process`): sampling defaults shipped with a model are not
  applied, end tokens are passed explicitly.

Stop strings are found here and not by vLLM, which has no tokenizer: the tokens then come step by
step, and a response that is complete is taken out of the engine.

On a CPU chunked prefill is off: vLLM 0.32 rewinds the generator of a sequence whose prompt is split
over steps, which CPU generators cannot do.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stages.config.candidates import Candidates
from stages.config.data import Sampling
from stages.config.generation import EngineRun
from stages.engines.base import (
    Completion,
    Finish,
    Request,
    candidate_counts,
    candidate_room,
    token_limit,
)
from stages.engines.stop_strings import StopStrings, stop_strings
from stages.engines.vllm_process import engine_errors, running_engine
from stages.models.facts import ModelFacts, model_facts
from storage.kinds import MAX_CANDIDATES

_NEVER = -1e9
"""Added to a logit that must not be drawn; its probability underflows to 0."""
_MAX_BIASES = 1024
"""Biased ids per request in vLLM's second model runner; the first has no limit."""
_PREFILL_TOKENS = 8192
"""Prompt tokens in one step on a CPU; more where the context is longer."""


class VllmGenerator:
    """A `Generator` on top of a started vLLM."""

    def __init__(
        self, engine: Any, facts: ModelFacts, context: int, max_sequences: int, tokenizer: Path
    ) -> None:
        self.facts = facts
        self._tokenizer = tokenizer
        self.repeats: bool = engine.vllm_config.device_config.device_type == "cpu"
        self._engine: Any = engine
        self._context = context
        # Twice what is decoded at once: the scheduler always has a successor at hand.
        self._in_flight = 2 * max_sequences
        self._surplus = dict.fromkeys(range(facts.vocab_size, facts.rows), _NEVER) or None
        self._serial = 0

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, candidates: Candidates = 0
    ) -> Iterator[Completion]:
        """As `Generator.generate`."""
        room = candidate_room(candidates, self.facts)
        stop = stop_strings(sampling, self._tokenizer)
        source = iter(requests)
        running: dict[str, _Running] = {}
        try:
            while True:
                while len(running) < self._in_flight and (request := next(source, None)):
                    name = self._add(request, sampling, room)
                    running[name] = _Running(request, room, candidates, stop)
                if not running:
                    return
                with engine_errors("vLLM failed while decoding"):
                    outputs = self._engine.step()
                for output in outputs:
                    name = output.request_id
                    if name not in running:  # a token on its way when the response was complete
                        continue
                    running[name].take(output.outputs[0])
                    complete = running[name].ended_by_string
                    if complete and not output.finished:
                        self._engine.abort_request([name])
                    if complete or output.finished:
                        yield running.pop(name).completion()
        finally:
            if running:
                self._engine.abort_request(list(running))

    def close(self) -> None:
        """Drop the engine, so that its memory is freed even while this object is referenced."""
        self._engine = None

    def _add(self, request: Request, sampling: Sampling, room: int) -> str:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        name = str(self._serial)
        self._serial += 1
        prompt = {"prompt_token_ids": request.prompt_ids.tolist()}
        with engine_errors(f"vLLM rejects sequence {request.seq_id}"):
            params = SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                repetition_penalty=sampling.repetition_penalty,
                presence_penalty=sampling.presence_penalty,
                frequency_penalty=sampling.frequency_penalty,
                max_tokens=token_limit(request, sampling, self._context),
                seed=request.seed,
                logprobs=room,
                flat_logprobs=True,
                stop_token_ids=list(self.facts.stop_ids),
                ignore_eos=True,
                detokenize=False,
                logit_bias=self._surplus,
                output_kind=(
                    RequestOutputKind.DELTA if sampling.stop else RequestOutputKind.FINAL_ONLY
                ),
                skip_clone=True,
            )
            self._engine.add_request(name, prompt, params)
        return name


class _Running:
    """A response as far as vLLM has given it: all at once, or in pieces where it may end early."""

    def __init__(
        self, request: Request, room: int, candidates: Candidates, stop: StopStrings | None
    ) -> None:
        self._request = request
        self._width = room + 1
        self._candidates = candidates
        self._stop = stop
        self.ended_by_string = False
        self._finish: Finish = "length"
        self._tok: list[int] = []
        self._ids: list[int] = []
        self._logprobs: list[float] = []

    def take(self, output: Any) -> None:
        """Add what is new; flat log-probs hold, for each position, the token drawn and then the k
        likeliest.
        """
        self._tok += output.token_ids
        self._ids += output.logprobs.token_ids
        self._logprobs += output.logprobs.logprobs
        if output.finish_reason == "stop":
            self._finish = "stop"
        if self._stop is None:
            return
        for length in range(len(self._tok) - len(output.token_ids) + 1, len(self._tok) + 1):
            if self._stop.end(self._tok[:length]):
                self.ended_by_string, self._finish = True, "stop"
                del self._tok[length:]
                return

    def completion(self) -> Completion:
        """The response; of pieces that came together, what follows the end is left out."""
        tok = np.array(self._tok, np.uint32)
        shape = (-1, self._width)
        ids = np.array(self._ids, np.uint32).reshape(shape)[: len(tok)]
        logprob = np.array(self._logprobs, np.float32).reshape(shape)[: len(tok)]
        nc = candidate_counts(logprob[:, 1:], self._candidates)
        return Completion(
            seq_id=self._request.seq_id,
            tok=tok,
            logprob=logprob[:, 0],
            cand=ids[:, 1:][np.arange(self._width - 1) < nc[:, None]],
            nc=nc,
            finish=self._finish,
        )


@contextmanager
def open_vllm(
    directory: Path, *, dtype: str, run: EngineRun, max_model_len: int, seed: int
) -> Iterator[VllmGenerator]:
    """As `open_generator`, on vLLM."""
    facts = model_facts(directory)
    if facts.rows - facts.vocab_size > _MAX_BIASES:
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")

    def options(on_cpu: bool) -> dict[str, Any]:
        common = {
            "dtype": dtype,
            "max_model_len": max_model_len,
            "max_num_seqs": run.max_sequences,
            "max_logprobs": MAX_CANDIDATES,
            "logprobs_mode": "processed_logprobs",
            "seed": seed,
        }
        if not on_cpu:
            return common | {
                "gpu_memory_utilization": run.memory_fraction,
                "tensor_parallel_size": run.tensor_parallel,
            }
        return common | {
            "enforce_eager": True,
            "kv_cache_memory_bytes": run.kv_cache_mib << 20,
            "enable_chunked_prefill": False,
            "enable_prefix_caching": False,
            "max_num_batched_tokens": max(max_model_len, run.max_sequences, _PREFILL_TOKENS),
        }

    with running_engine(directory, options) as engine:
        generator = VllmGenerator(engine, facts, max_model_len, run.max_sequences, directory)
        del engine  # memory is freed when the context is left, and this name would hold it
        try:
            yield generator
        finally:
            generator.close()
