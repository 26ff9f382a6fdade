"""Plain transformers: batched decoding with a key-value cache, where vLLM is not installed.

Prompts of a batch are padded on the left, sorted by length so that there is little of it; masks and
position ids make the padding invisible. Rows that have ended leave the batch when half of it has.
The uniform number for each token is a hash of the request's seed and the position, so a response
does not depend on the batch.

Shape letters: B sequences in the batch, V vocabulary, K candidates.
"""

import gc
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.config.candidates import Candidates
from stages.config.data import Sampling
from stages.config.generation import EngineRun
from stages.counter import uniform
from stages.engines.base import (
    Completion,
    Finish,
    Request,
    candidate_counts,
    candidate_room,
    token_limit,
)
from stages.engines.stop_strings import StopStrings, stop_strings
from stages.models.facts import ModelFacts, model_facts
from stages.models.model import load_model, pick_device

_SORTED = 8
"""Batches' worth of requests that are sorted by length together."""
_BELOW_ONE = 1.0 - 2.0**-52


class TransformersGenerator:
    """A `Generator` on top of a causal language model of transformers."""

    def __init__(
        self,
        model: Any,
        facts: ModelFacts,
        context: int,
        max_sequences: int,
        tokenizer: Path | None = None,
    ) -> None:
        """`tokenizer`: its directory; only stop strings need it."""
        self.facts = facts
        self._tokenizer = tokenizer
        self.repeats = model.device.type == "cpu"
        self._model = model
        self._context = context
        self._max_sequences = max_sequences

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, candidates: Candidates = 0
    ) -> Iterator[Completion]:
        """As `Generator.generate`."""
        candidate_room(candidates, self.facts)  # before anything is decoded
        stop = stop_strings(sampling, self._tokenizer)
        source = iter(requests)
        while window := list(islice(source, _SORTED * self._max_sequences)):
            window.sort(key=lambda request: len(request.prompt_ids))
            for start in range(0, len(window), self._max_sequences):
                rows = [
                    _DecodingRow(request, token_limit(request, sampling, self._context), stop)
                    for request in window[start : start + self._max_sequences]
                ]
                yield from self._decode(rows, sampling, candidates)

    def _decode(
        self, rows: list["_DecodingRow"], sampling: Sampling, candidates: Candidates
    ) -> Iterator[Completion]:
        """Decode the rows together; every row is at the same position of its response."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        longest = max(len(row.request.prompt_ids) for row in rows)
        ids_BL = torch.zeros(len(rows), longest, dtype=torch.long)
        mask_BL = torch.zeros_like(ids_BL)
        for place, row in enumerate(rows):  # padded on the left
            prompt = torch.from_numpy(row.request.prompt_ids.astype(np.int64))
            ids_BL[place, longest - len(prompt) :] = prompt
            mask_BL[place, longest - len(prompt) :] = 1
        ids_BL, mask_BL = ids_BL.to(self._model.device), mask_BL.to(self._model.device)
        penalties = None
        if sampling.penalised:
            penalties = _Penalties(sampling, ids_BL, mask_BL, self.facts.vocab_size)
        while True:
            logits_BV = self._step(ids_BL, mask_BL, cache)
            if penalties is not None:
                logits_BV = penalties.apply(logits_BV)
            tok_B = self._draw(logits_BV, rows, sampling, candidates)
            if penalties is not None:
                penalties.count(tok_B)
            yield from (row.completion() for row in rows if row.ends_now(self.facts))
            alive = [place for place, row in enumerate(rows) if not row.ended]
            if not alive:
                return
            ids_BL = tok_B[:, None]
            mask_BL = torch.cat([mask_BL, torch.ones_like(ids_BL)], dim=1)
            if 2 * len(alive) <= len(rows):
                index = torch.tensor(alive, device=ids_BL.device)
                # `batch_select_indices` leaves out the states of state-space and linear attention.
                cache.reorder_cache(index)  # type: ignore[reportArgumentType]
                ids_BL, mask_BL = ids_BL[index], mask_BL[index]
                if penalties is not None:
                    penalties.select(index)
                rows = [rows[place] for place in alive]

    @torch.inference_mode()
    def _step(self, ids_BL: Tensor, mask_BL: Tensor, cache: Any) -> Tensor:
        """Logits [B, V] of the next token, in float32; the cache grows by the given tokens."""
        # A row that has ended may run past the context until it leaves the batch.
        position_BL = (mask_BL.cumsum(1) - 1).clamp(0, self._context - 1)
        out = self._model(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            position_ids=position_BL[:, -ids_BL.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1, : self.facts.vocab_size].float()

    @torch.inference_mode()
    def _draw(
        self,
        logits_BV: Tensor,
        rows: list["_DecodingRow"],
        sampling: Sampling,
        candidates: Candidates,
    ) -> Tensor:
        """Draw one token per row and note it there; returns the tokens, [B]."""
        logp_BV = _log_probs(logits_BV, sampling)
        broken_B = logp_BV.isnan().any(1)
        if broken_B.any():  # such a row ends here; what it draws is of no use
            logits_BV = logits_BV.masked_fill(broken_B[:, None], 0.0)
            logp_BV = logp_BV.masked_fill(broken_B[:, None], -math.log(logp_BV.shape[1]))
        if sampling.temperature == 0:
            tok_B = logits_BV.argmax(1)
        else:
            seeds_B = np.array([row.request.seed for row in rows], np.uint64)
            uniform_B = torch.from_numpy(uniform(0, seeds_B, rows[0].length))
            tok_B = _invert(logp_BV, uniform_B.to(logp_BV.device))
        logp_B = logp_BV.gather(1, tok_B[:, None])[:, 0].masked_fill(broken_B, torch.nan)
        likeliest = logp_BV.topk(candidate_room(candidates, self.facts), dim=1)
        cand_BK = likeliest.indices.cpu().numpy()
        kept_B = candidate_counts(likeliest.values.cpu().numpy(), candidates)
        for row, tok, logp, cand, kept in zip(
            rows, tok_B.tolist(), logp_B.tolist(), cand_BK, kept_B.tolist(), strict=True
        ):
            row.take(tok, logp, cand[:kept])
        return tok_B


class _DecodingRow:
    """One sequence being decoded."""

    def __init__(self, request: Request, limit: int, stop: StopStrings | None) -> None:
        self.request = request
        self.ended = False
        self._limit = limit
        self._stop = stop
        self._finish: Finish = "length"
        self._tok: list[int] = []
        self._logp: list[float] = []
        self._cand: list[NDArray[np.int64]] = []

    @property
    def length(self) -> int:
        """Tokens drawn."""
        return len(self._tok)

    def take(self, tok: int, logp: float, cand: NDArray[np.int64]) -> None:
        """Note the next token. A row that has ended goes on until its batch is thinned out."""
        self._tok.append(tok)
        self._logp.append(logp)
        self._cand.append(cand)

    def ends_now(self, facts: ModelFacts) -> bool:
        """Whether the token just noted is the last; true once."""
        if self.ended:
            return False
        if self._tok[-1] in facts.stop_ids or (self._stop and self._stop.end(self._tok)):
            self._finish = "stop"
        broken = math.isnan(self._logp[-1])
        self.ended = self._finish == "stop" or self.length >= self._limit or broken
        return self.ended

    def completion(self) -> Completion:
        """The response as it is now."""
        return Completion(
            seq_id=self.request.seq_id,
            tok=np.array(self._tok, np.uint32),
            logprob=np.array(self._logp, np.float32),
            cand=np.concatenate(self._cand).astype(np.uint32),
            nc=np.array([len(cand) for cand in self._cand], np.uint8),
            finish=self._finish,
        )


class _Penalties:
    """Penalties on tokens that sequences have already, as vLLM applies them.

    Args:
        sampling: Their sizes.
        ids_BL: Prompts.
        mask_BL: 1 where they are no padding.
        vocab_size: V.
    """

    def __init__(
        self, sampling: Sampling, ids_BL: Tensor, mask_BL: Tensor, vocab_size: int
    ) -> None:
        self._sampling = sampling
        shape = (len(ids_BL), vocab_size)
        seen_BV = torch.zeros(shape, dtype=torch.int32, device=ids_BL.device)
        self._prompt_BV = seen_BV.scatter_add_(1, ids_BL, mask_BL.int()) > 0
        self._count_BV = torch.zeros_like(seen_BV)

    def apply(self, logits_BV: Tensor) -> Tensor:
        """The logits [B, V] under the penalties."""
        sampling, drawn_BV = self._sampling, self._count_BV > 0
        scaled_BV = torch.where(
            logits_BV > 0,
            logits_BV / sampling.repetition_penalty,
            logits_BV * sampling.repetition_penalty,
        )
        logits_BV = torch.where(drawn_BV | self._prompt_BV, scaled_BV, logits_BV)
        logits_BV = logits_BV - sampling.frequency_penalty * self._count_BV
        return logits_BV - sampling.presence_penalty * drawn_BV

    def count(self, tok_B: Tensor) -> None:
        """Note a token of every row."""
        self._count_BV.scatter_add_(
            1, tok_B[:, None], torch.ones_like(tok_B, dtype=torch.int32)[:, None]
        )

    def select(self, index: Tensor) -> None:
        """Go on with these rows only."""
        self._prompt_BV, self._count_BV = self._prompt_BV[index], self._count_BV[index]


def _log_probs(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities [B, V] of the distribution drawn from: min-p, top-k, top-p, as vLLM."""
    if sampling.temperature == 0:
        return logits_BV.log_softmax(1)
    logits_BV = logits_BV / sampling.temperature
    if sampling.min_p > 0:
        logits_BV = keep_min_p(logits_BV, sampling.min_p)
    if 0 < sampling.top_k < logits_BV.shape[1]:
        logits_BV = keep_top_k(logits_BV, sampling.top_k)
    if sampling.top_p < 1:
        logits_BV = keep_top_p(logits_BV, sampling.top_p)
    return logits_BV.log_softmax(1)


def keep_min_p(logits_BV: Tensor, p: float) -> Tensor:
    """Logits with -inf at ids less than p times as probable as the likeliest of their row."""
    least_B1 = logits_BV.amax(1, keepdim=True) + math.log(p)
    return logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Logits with -inf at all but the k highest of each row and those equal to the k-th."""
    least_B1 = logits_BV.topk(k, dim=1).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Logits with -inf at ids above which, in order of probability, lies a mass of p or more."""
    sorted_BV, order_BV = logits_BV.softmax(1).sort(dim=1, descending=True)
    above_BV = sorted_BV.cumsum(1) - sorted_BV
    outside_BV = torch.zeros_like(above_BV, dtype=torch.bool)
    return logits_BV.masked_fill(outside_BV.scatter_(1, order_BV, above_BV >= p), -torch.inf)


def _invert(logp_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """First id whose cumulative probability exceeds the uniform number; never one of mass 0."""
    cdf_BV = logp_BV.double().exp().cumsum(1)
    target_B1 = cdf_BV[:, -1:] * uniform_B.clamp(max=_BELOW_ONE)[:, None]
    return torch.searchsorted(cdf_BV, target_B1, right=True)[:, 0]


@contextmanager
def open_transformers(
    directory: Path, *, dtype: str, run: EngineRun, max_model_len: int
) -> Iterator[TransformersGenerator]:
    """As `open_generator`, on transformers; on a GPU where there is one."""
    from transformers.utils.logging import disable_progress_bar

    facts = model_facts(directory)
    disable_progress_bar()
    model = load_model(directory, dtype, pick_device("auto"))
    try:
        yield TransformersGenerator(model, facts, max_model_len, run.max_sequences, directory)
    finally:
        del model
        gc.collect()
