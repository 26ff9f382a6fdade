"""Tables of the stages that generate: `sft-data` and `rollouts`."""

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import Field

from stages.config.candidates import Candidates
from stages.config.data import PromptSource, Sampling, Verifier
from stages.config.execution import Workers
from stages.config.stage import Expected, SkipsBad, StageTable
from stages.table import Fraction, KeyDefault, Positive, Table, at_default

FORMER_PART = 16384
"""Sequences in a part in version 0.1.0 by default; keys hold this number where none is given."""


class EngineRun(Table):
    """How an engine generates."""

    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """`auto` uses vLLM if it is installed and can run the model."""
    max_sequences: Positive = 256
    """Sequences decoded at the same time."""
    max_model_len: Positive | None = None
    """Context length of the engine; default: longest prompt plus longest response."""
    memory_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.85
    """Share of GPU memory the engine may use."""
    kv_cache_mib: Positive = 256
    """Size of the key-value cache on a CPU, in MiB."""
    tensor_parallel: Positive = 1
    """GPUs that one model is spread over."""


class GenerateRun(EngineRun, Workers):
    """Execution of a generating stage."""


class Generate(StageTable, SkipsBad):
    """Settings common to `sft-data` and `rollouts`."""

    prompts: PromptSource
    """What is answered."""
    n: Positive = 1
    """Responses per prompt."""
    sampling: Sampling = Sampling()
    """How responses are sampled."""
    verifier: Verifier = Verifier()
    """Used where prompts have answers; wrong responses are kept and marked."""
    sequences_per_part: Annotated[Positive | None, KeyDefault(FORMER_PART)] = None
    """Sequences in one file of the set; files are made in parallel, and a killed run loses those it
    had begun. Default: 256 files of equal size, fewer where they would have under 32,768 tokens and
    more where they would have over 2 million. It never depends on the number of workers."""
    run: GenerateRun = GenerateRun()
    """Execution; never part of a key."""

    def expected(
        self, count: Callable[[PromptSource], int | None], read: Expected | None
    ) -> Expected | None:
        """As if every response ran to `max_tokens`."""
        prompts = count(self.prompts)
        if prompts is None:
            return None
        kept: Candidates = getattr(self, "candidates", 0)
        return Expected(prompts * self.n * self.sampling.max_tokens, candidates=kept)


class SftData(Generate):
    """The teacher answers the SFT prompts."""

    holdout: Fraction = 0.0
    """Share of the prompts whose answers are held out: no student learns from them, and
    `evaluate.text` may read them."""

    def unused(self) -> frozenset[str]:
        """`holdout`, where nothing is held out."""
        return at_default(self, "holdout")


class Rollouts(Generate):
    """pi_ref answers the OPD prompts."""

    candidates: Candidates = 4
    """How many of pi_ref's own likeliest ids are kept per position: a number up to 64, or
    `{ mass = 0.95, at_most = 64 }` for as many as cover that share of pi_ref's mass."""
    holdout: Fraction = 0.02
    """Share of the prompts whose rollouts are held out for evaluation."""

    def of_round(self, number: int) -> Self:
        """Rollouts to the next prompts; only the first round holds prompts out."""
        prompts = self.prompts
        if prompts.limit is not None:
            start = prompts.first + prompts.limit * (number - 1)
            prompts = prompts.model_copy(update={"first": start})
        return self.model_copy(update={"prompts": prompts, "holdout": 0.0})
