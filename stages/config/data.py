"""Tables that several stages share: models, prompts, sampling, verifiers, text."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.table import BY_CONTENT, Fraction, Named, Positive, Table


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


class Tokenizer(Table):
    """A tokenizer made from the corpus, or one taken from a directory."""

    kind: Literal["characters", "byte_bpe"] = "byte_bpe"
    """`characters`: one token per character seen; `byte_bpe`: byte-level BPE."""
    vocab_size: Positive = 4096
    """`byte_bpe`: number of tokens, special ones included."""
    path: Annotated[str | None, BY_CONTENT] = None
    """Take this tokenizer instead of making one."""


class Corpus(Table):
    """Text to pre-train on or to score: tokenised once into sequences."""

    text: Annotated[tuple[str, ...], BY_CONTENT] = ()
    """Files, directories or glob patterns of UTF-8 text; directories are searched for `suffix`.
    A leading `{stdlib}` stands for the directory of the running Python's standard library."""
    suffix: str = ".txt"
    """File suffix looked for in directories."""
    task: str | None = None
    """Built-in task instead of text (`addition`)."""
    count: Positive = 20000
    """Sequences taken from the task."""
    sequence_length: Positive = 256
    """Text is cut into sequences of this many tokens."""
    seed: int = 0
    """Seed of the task and of the order of sequences."""
    holdout: Fraction = 0.02
    """Share of sequences kept out of training, for evaluation."""
    sequences_per_part: Positive = 65536
    tokenizer: Tokenizer = Tokenizer()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.text) == bool(self.task):
            raise ValueError("give exactly one of `text` (files) and `task` (a built-in task)")
        return self
