"""Tables that several stages share: models, prompts, sampling, verifiers."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.table import BY_CONTENT, Named, Positive, Table


class ModelRef(Table):
    """A Hugging Face causal language model."""

    path: Named
    """A directory, a Hub id (`Qwen/Qwen3-8B`), or `pretrain:<name>` for one made by `pretrain`."""
    revision: Named = "main"
    """Hub revision; resolved to a commit before anything is hashed."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Numeric type of the weights and activations in every forward pass."""

    @property
    def pretrained_here(self) -> str | None:
        """Name of the `[pretrain.<name>]` table this refers to, or None."""
        return self.path.removeprefix("pretrain:") if self.path.startswith("pretrain:") else None


class PromptSource(Table):
    """Where prompts come from: a file or directory, or a built-in task."""

    path: Annotated[str | None, BY_CONTENT] = None
    """`.jsonl`, `.jsonl.zst`, `.parquet`, or a directory written by `datasets.save_to_disk`."""
    task: str | None = None
    """Built-in task that generates prompts with answers (`addition`)."""
    field: str = "prompt"
    """Column that holds the prompt: a string, or a list of chat messages with role and content."""
    answer_field: str = "answer"
    """Column that holds the reference answer; may be absent."""
    first: Annotated[int, Field(ge=0)] = 0
    """Index of the first prompt used."""
    limit: Positive | None = None
    """Number of prompts read from `first` on; required for a task, default all for a file."""

    @property
    def where(self) -> str:
        """The file or task, for messages."""
        return self.path or f"task {self.task}"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.task is None):
            raise ValueError("give exactly one of `path` (your file) and `task` (a built-in task)")
        if self.task is not None and self.limit is None:
            raise ValueError("a task generates prompts without end: set `limit`")
        return self


class Sampling(Table):
    """How an engine samples. Full support (top_p = 1, top_k = 0) keeps reverse KL unbiased."""

    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus mass; below 1 the sampler lacks full support."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Keep only the k likeliest tokens; 0 is off."""
    max_tokens: Positive = 1024
    """Longest response, in tokens."""

    @property
    def full_support(self) -> bool:
        """Whether every token could have been drawn."""
        return self.temperature > 0 and self.top_p == 1.0 and self.top_k == 0


class Verifier(Table):
    """Decides whether a response is right, given the reference answer."""

    kind: Literal["exact_match", "math_verify"] = "math_verify"
    """`exact_match` compares strings; `math_verify` compares parsed mathematics."""
    extract: str = ""
    """`exact_match`: a regular expression whose first group is the answer; empty takes it all."""
