"""Table of `corpus`, and of the tokenizer it may make."""

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import model_validator

from stages.config.data import PromptSource
from stages.config.stage import Expected, StageTable
from stages.table import BY_CONTENT, Fraction, KeyDefault, Positive, Table

FORMER_PART = 65536
"""Sequences in a part in version 0.1.0 by default; keys hold this number where none is given."""
GGUF = ".gguf"
"""Suffix of the files that hold a model and its tokenizer."""


class Tokenizer(Table):
    """A tokenizer made from the corpus, or one that is there."""

    kind: Literal["characters", "byte_bpe"] = "byte_bpe"
    """`characters`: one token per character seen; `byte_bpe`: byte-level BPE."""
    vocab_size: Positive = 4096
    """`byte_bpe`: number of tokens, special ones included."""
    path: Annotated[str | None, BY_CONTENT] = None
    """Use this tokenizer instead of training one: that of a directory, or of a GGUF file;
    `{package}/file.gguf` is a file of an installed Python package."""


class Corpus(StageTable):
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
    """Text is split into sequences of this many tokens."""
    seed: int = 0
    """Seed of the task and of the order of sequences."""
    holdout: Fraction = 0.02
    """Share of sequences held out for evaluation."""
    sequences_per_part: Annotated[Positive | None, KeyDefault(FORMER_PART)] = None
    """Sequences in one file of the set, and of the sets that score it. Default: as in `rollouts`,
    256 files of 32,768 to 2 million tokens."""
    tokenizer: Tokenizer = Tokenizer()
    """The tokenizer that turns text into token ids; models made from scratch take it over."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.text) == bool(self.task):
            raise ValueError("give exactly one of `text` (files) and `task` (a built-in task)")
        return self

    def expected(
        self, count: Callable[[PromptSource], int | None], read: Expected | None
    ) -> Expected | None:
        """Known for a task only."""
        tokens = self.count * self.sequence_length
        return Expected(tokens, logp=False, entries=12.0) if self.task else None
