"""The interface of a generation engine, and the limits every engine checks.

An engine draws each sequence from its own stream of random numbers, named by `Request.seed`, so
a response does not depend on which others are decoded beside it. (Logits do, in the last
bits: matrix kernels differ with the batch shape. A draw changes only where a uniform number falls
into that gap.)

The end token is whatever the model and its tokenizer call one, kept in the response when drawn; so
are the tokens of a stop string (`stages.engines.stop_strings`).

Engines apply, in this order: penalties to the logits, temperature, min-p, top-k, top-p.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from stages.config.candidates import Candidates, Coverage, most_candidates
from stages.config.data import Sampling
from stages.config.generation import EngineRun
from stages.counter import hash64
from stages.models.facts import ModelFacts
from storage.errors import ConfigError, DataError, SequenceError

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """One response to be drawn."""

    seq_id: int
    prompt_ids: NDArray[np.uint32]
    seed: int
    """Names the stream of random numbers; see `sequence_seed`."""


@dataclass(frozen=True)
class Completion:
    """One response of T tokens."""

    seq_id: int
    tok: NDArray[np.uint32]
    """[T] token ids as drawn, the end token included."""
    logprob: NDArray[np.float32]
    """[T] log-probability with which each token was drawn: under penalties, temperature, min-p,
    top-k and top-p of the request. At temperature 0 nothing is drawn, and it is that of the model
    (temperature 1) under the penalties. NaN at the last token if the logits there were not finite.
    """
    cand: NDArray[np.uint32]
    """[sum of nc] the likeliest ids at each position under that distribution, likeliest first,
    chosen without looking at the token drawn. Where min-p, top-k or top-p leave fewer than the
    number asked for, the list is filled with other ids."""
    nc: NDArray[np.uint8]
    """[T] how many of them each position has: the number asked for, or the fewest that cover the
    mass asked for."""
    finish: Finish
    """`stop`: the end token was drawn or a stop string completed; `length`: the token limit or the
    context was reached."""


class Generator(Protocol):
    """An engine with a model in it."""

    facts: ModelFacts
    repeats: bool
    """Whether the same requests, given together, get the same bits again: on a CPU."""

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, candidates: Candidates = 0
    ) -> Iterator[Completion]:
        """Draw a response to each request; completions come in any order.

        Requests are taken from the iterator as there is room, so it may be long. A response ends
        at `sampling.max_tokens` or where the context is full.

        Raises:
            DataError: a prompt leaves no room for one token of response; its seq_id is named.
            ConfigError: more candidates than the vocabulary has ids.
            EngineError: the engine failed.
        """
        ...


def needed_context(facts: ModelFacts, longest_prompt: int, max_tokens: int, run: EngineRun) -> int:
    """The context an engine is opened with: prompt plus response, at most the model's own.

    `run.max_model_len` may raise it but not lower it: how work is executed must not change what
    comes out.

    Raises:
        ConfigError: `run.max_model_len` would cut responses, or exceeds the model's context.
    """
    needed = longest_prompt + max_tokens
    if facts.context is not None:
        needed = min(needed, facts.context)
    asked = run.max_model_len
    if asked is None:
        return needed
    if asked < needed or (facts.context is not None and asked > facts.context):
        raise ConfigError(
            f"run.max_model_len = {asked}: prompts of up to {longest_prompt} and responses of up "
            f"to {max_tokens} tokens need {needed}, and the model's context is {facts.context}. "
            "Remove it, or lower `sampling.max_tokens`."
        )
    return asked


def token_limit(request: Request, sampling: Sampling, context: int) -> int:
    """Most tokens the response to `request` may have.

    Raises:
        DataError: not even one.
    """
    room = context - len(request.prompt_ids)
    if room < 1:
        raise DataError(
            f"sequence {request.seq_id}: the prompt has {len(request.prompt_ids)} tokens, but the "
            f"context is {context} and one token of response must fit. Shorten the prompt."
        )
    return min(sampling.max_tokens, room)


def candidate_room(candidates: Candidates, facts: ModelFacts) -> int:
    """Most candidates that a position may have: what an engine looks for.

    Raises:
        ConfigError: a number is asked for that the vocabulary does not have; both are named.
    """
    if isinstance(candidates, Coverage):
        return min(candidates.at_most, facts.vocab_size)
    if candidates > facts.vocab_size:
        raise ConfigError(
            f"candidates = {candidates}, but the vocabulary has {facts.vocab_size} ids; lower it"
        )
    return candidates


def candidate_counts(logp_TK: NDArray[np.float32], candidates: Candidates) -> NDArray[np.uint8]:
    """[T] how many of the K likeliest ids of each position are kept.

    Args:
        logp_TK: Their log-probabilities, likeliest first; K as `candidate_room` says.
        candidates: What is asked for.
    """
    if not isinstance(candidates, Coverage):
        return np.full(len(logp_TK), logp_TK.shape[1], np.uint8)
    covered_TK = np.cumsum(np.exp(logp_TK.astype(np.float64)), axis=1)
    return (1 + (covered_TK[:, :-1] < candidates.mass).sum(axis=1)).astype(np.uint8)


def candidate_columns(made: Sequence[Completion], candidates: Candidates) -> dict[str, Any]:
    """The columns of a set that hold the candidates of these responses."""
    if not most_candidates(candidates):
        return {}
    columns: dict[str, Any] = {"cand": np.concatenate([one.cand for one in made])}
    if isinstance(candidates, Coverage):
        columns["nc"] = np.concatenate([one.nc for one in made])
    return columns


def check_finite(completion: Completion, model: object, dtype: str) -> None:
    """Raise if the model gave no distribution to draw a token from.

    Raises:
        SequenceError: naming sequence, position, model and numeric type.
    """
    broken = np.flatnonzero(~np.isfinite(completion.logprob))
    if len(broken):
        raise SequenceError(
            [completion.seq_id],
            f"sequence {completion.seq_id}, position {broken[0]}: the log-probability of the "
            f"drawn token is not finite. The weights of {model} may be damaged, or too large for "
            f"{dtype}.",
        )


def sequence_seed(seed: int, seq_id: int) -> int:
    """Seed of one sequence: 63 bits of a hash of the run's seed and the sequence's id."""
    return int(hash64(seed, seq_id)[0] >> np.uint64(1))
