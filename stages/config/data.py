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
    """How an engine samples; docs/contract.md says what each option does to the objectives."""

    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus mass; below 1 the sampler lacks full support."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Keep only the k likeliest tokens; 0 is off. The sampler then lacks full support."""
    min_p: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Keep only tokens at least this probable, as a share of the likeliest one's probability; above
    0 the sampler lacks full support."""
    repetition_penalty: Annotated[float, Field(gt=0.0, le=2.0)] = 1.0
    """Divides positive logits, and multiplies negative ones, of tokens that the prompt or the
    response so far has; 1 is off."""
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    """Subtracted from the logits of tokens that the response so far has."""
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    """Subtracted from the logit of a token once for each time the response so far has it."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end a response, special tokens by their text too. The tokens up to the one that
    completes the string are kept; the verifier reads the text before the string."""
    max_tokens: Positive = 1024
    """Longest response, in tokens."""

    def unused(self) -> frozenset[str]:
        """Options of which the keys of older sets know nothing, where they have their defaults."""
        added = ("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "stop")
        fields = type(self).model_fields
        return frozenset(name for name in added if getattr(self, name) == fields[name].default)

    @property
    def full_support(self) -> bool:
        """Whether every token could have been drawn."""
        cuts = self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0
        return self.temperature > 0 and not cuts

    @property
    def penalised(self) -> bool:
        """Whether what was drawn from depends on the tokens before, beyond what the model says."""
        off = self.repetition_penalty == 1.0 and self.presence_penalty == 0.0
        return not (off and self.frequency_penalty == 0.0)

    @property
    def greedy(self) -> Self:
        """The same without randomness: penalties and ends stay as they are."""
        return self.model_copy(update={"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0})


class Verifier(Table):
    """Decides whether a response is right, given the reference answer."""

    kind: Literal["exact_match", "math_verify"] = "math_verify"
    """`exact_match` compares strings; `math_verify` compares parsed mathematics."""
    extract: str = ""
    """`exact_match`: a regular expression whose first group is the answer; empty takes it all."""
