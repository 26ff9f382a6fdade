"""Tables that several stages share: models, prompts, sampling, verifiers."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.config.template import Template
from stages.table import BY_CONTENT, Named, Positive, Table, at_default


class ModelRef(Table):
    """A Hugging Face causal language model."""

    path: Named
    """A directory, a Hub id (`Qwen/Qwen3-8B`), or `pretrain:<name>` or `derive:<name>` for a model
    that the recipe makes."""
    revision: Named = "main"
    """Hub revision; resolved to a commit before anything is hashed."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Numeric type of the weights and activations in every forward pass."""

    @property
    def made_here(self) -> tuple[str, str] | None:
        """Stage and name of the table of the recipe that makes the model, or None."""
        stage, colon, name = self.path.partition(":")
        return (stage, name) if colon and stage in ("pretrain", "derive") else None


class PromptSource(Table):
    """Where prompts come from: files, a data set of the Hub, or a built-in task.

    docs/prompts.md describes formats, messages and what is dropped.
    """

    path: Annotated[str | None, BY_CONTENT] = None
    """`.jsonl`, `.json`, `.csv`, `.tsv` (also with `.gz` or `.zst`), `.parquet`, a directory of
    such files or one written by `datasets.save_to_disk`, or a data set's Hub id (`owner/name`)."""
    task: str | None = None
    """Built-in task that generates prompts with answers (`addition`)."""
    config: str | None = None
    """Configuration of a data set of the Hub; default the only one."""
    split: str | None = None
    """Split of a data set of the Hub or of a directory that holds several; default the only one."""
    revision: Named = "main"
    """Revision of a data set of the Hub; resolved to a commit before anything is hashed."""
    field: str = "prompt"
    """Column that holds the prompt: a string, or a list of chat messages (OpenAI's role and content
    or ShareGPT's from and value). Here and below, `a.b` is the field b inside of column a."""
    answer_field: str = "answer"
    """Column that holds the reference answer; may be absent under its default name only."""
    answer_pattern: str | None = None
    """Regular expression that takes the answer out of a worked solution, such as `#### (.+)`: the
    first group of its last match."""
    no_answer: Literal["keep", "drop", "refuse"] = "keep"
    """What to do with a row without an answer: null, NaN, or no match of `answer_pattern`."""
    max_prompt_tokens: Positive | None = None
    """Longest prompt, in tokens; default: the context of the model, less one token."""
    over_long: Literal["drop", "refuse"] = "refuse"
    """What to do with a prompt longer than `max_prompt_tokens`."""
    control_tokens: Literal["keep", "drop", "refuse"] = "keep"
    """What to do with a prompt whose own text spells a control token such as `<|im_end|>`, which
    the tokenizer turns into the token itself."""
    first: Annotated[int, Field(ge=0)] = 0
    """Index of the first prompt used."""
    limit: Positive | None = None
    """Number of prompts read from `first` on; required for a task, default all for a file."""
    template: Template = Template()
    """How messages become a prompt; see `[template]`."""

    def unused(self) -> frozenset[str]:
        """Fields of which the keys of older sets know nothing, where they have their defaults."""
        unused = at_default(
            self, "config", "split", "answer_pattern", "no_answer", "max_prompt_tokens",
            "over_long", "control_tokens",
        )  # fmt: skip
        by_value = set(Template.model_fields) - {"file"}
        return unused | {"template"} if by_value <= self.template.unused() else unused

    @property
    def where(self) -> str:
        """The file, data set or task, for messages."""
        return self.path or f"task {self.task}"

    @field_validator("answer_pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression ({error})") from error
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.task is None):
            raise ValueError("give exactly one of `path` (your file) and `task` (a built-in task)")
        if self.task is not None and self.limit is None:
            raise ValueError("a task generates prompts without end: set `limit`")
        if self.over_long == "drop" and self.max_prompt_tokens is None:
            raise ValueError('over_long = "drop" needs `max_prompt_tokens`')
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
        return at_default(
            self, "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "stop"
        )

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
