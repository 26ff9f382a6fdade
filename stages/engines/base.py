"""The interface of a generation engine, and what must be known of a model to drive one.

An engine draws each sequence from its own stream of random numbers, named by `Request.seed`, so
what a sequence says does not depend on which others are decoded beside it. (Logits do, in the last
bits: matrix kernels differ with the batch shape. A draw changes only where a uniform number falls
into that gap.)

The end token is whatever the model and its tokenizer call one, kept in the response when drawn.
"""

import importlib.util
import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from stages.config import EngineRun, Sampling
from stages.counter import hash64
from stages.models.environment import prepare_environment
from storage.errors import ConfigError, DataError

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
    """[T] log-probability with which each token was drawn: under the temperature, top-p and top-k
    of the request. At temperature 0 nothing is drawn, and it is the model's own (temperature 1)."""
    cand: NDArray[np.uint32]
    """[T * k] the k likeliest ids at each position, likeliest first, chosen without looking at the
    token drawn. Where top-p or top-k leave fewer than k, the list is filled with other ids."""
    finish: Finish
    """`stop`: the end token was drawn; `length`: the token limit or the context was reached."""


class Generator(Protocol):
    """An engine with a model in it."""

    facts: "ModelFacts"

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, candidates: int = 0
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


@dataclass(frozen=True)
class ModelFacts:
    """What the files of a model say about generating with it."""

    vocab_size: int
    """Ids that mean something: one above the tokenizer's highest, at most the number of logits."""
    rows: int
    """Number of logits. Models pad their vocabulary; ids from `vocab_size` on are never drawn, as
    scoring leaves them out too (`stages.models.model.real_vocab_size`)."""
    context: int | None
    """Longest sequence; None where the model names no limit."""
    stop_ids: tuple[int, ...]
    """Ids that end a response: of the tokenizer, the generation config and the config."""


def model_facts(directory: Path) -> ModelFacts:
    """Read the facts from the model's own files, without loading weights.

    Raises:
        DataError: there is no configuration transformers knows, or no tokenizer.
    """
    from transformers import AutoConfig

    from stages.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(directory)
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{directory}: config.json cannot be read ({error}). Give a directory written by "
            "`save_pretrained` of an architecture that transformers knows."
        ) from error
    rows = int(config.vocab_size)
    vocab_size = min(rows, max(tokenizer.get_vocab().values()) + 1)
    ends = [tokenizer.eos_token_id, config.eos_token_id, _generation_end(directory)]
    flat = [end for found in ends for end in (found if isinstance(found, list) else [found])]
    stop_ids = tuple(sorted({end for end in flat if end is not None and 0 <= end < vocab_size}))
    return ModelFacts(vocab_size, rows, _context(config), stop_ids)


def _generation_end(directory: Path) -> int | list[int] | None:
    path = directory / "generation_config.json"
    return json.loads(path.read_text()).get("eos_token_id") if path.exists() else None


def _context(config: Any) -> int | None:
    limit = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if limit and rope.get("factor") and rope.get("original_max_position_embeddings"):
        limit = max(limit, int(rope["factor"] * rope["original_max_position_embeddings"]))
    return limit


def context_length(facts: ModelFacts, longest_prompt: int, max_tokens: int, run: EngineRun) -> int:
    """Context an engine must be opened with: prompt plus response, within the model's own.

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
            "Leave it out, or lower `sampling.max_tokens`."
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


def check_candidates(candidates: int, facts: ModelFacts) -> None:
    """Refuse more candidates than there are ids.

    Raises:
        ConfigError: naming both numbers.
    """
    if candidates > facts.vocab_size:
        raise ConfigError(
            f"candidates = {candidates}, but the vocabulary has {facts.vocab_size} ids; lower it"
        )


def sequence_seed(seed: int, seq_id: int) -> int:
    """Seed of one sequence: 63 bits of a hash of the run's seed and the sequence's id."""
    return int(hash64(seed, seq_id)[0] >> np.uint64(1))


def open_generator(
    directory: Path, *, dtype: str, run: EngineRun, max_model_len: int, seed: int = 0
) -> AbstractContextManager[Generator]:
    """Start an engine with the model in `directory`; leaving the context frees its memory.

    Args:
        directory: A Hugging Face model with its tokenizer.
        dtype: `float32` or `bfloat16`.
        run: Engine, batch and memory limits.
        max_model_len: Context, from `context_length`.
        seed: Of the engine itself; responses depend on the seeds of requests only.

    Raises:
        DataError: the directory holds no usable model.
        ConfigError: the engine asked for is not installed.
        EngineError: the engine does not start.
    """
    prepare_environment()
    installed = importlib.util.find_spec("vllm") is not None
    if run.engine == "vllm" and not installed:
        raise ConfigError(
            'run.engine = "vllm", but vLLM is not installed. Install the extra `cpu` or `cuda`, or '
            'use "transformers".'
        )
    if run.engine == "transformers" or not installed:
        from stages.engines.transformers_engine import open_transformers

        return open_transformers(directory, dtype=dtype, run=run, max_model_len=max_model_len)
    from stages.engines.vllm_engine import open_vllm

    return open_vllm(directory, dtype=dtype, run=run, max_model_len=max_model_len, seed=seed)
