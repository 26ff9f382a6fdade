"""The configuration tables of every stage: frozen, closed (`extra="forbid"`), documented in place.

Each table has two kinds of fields. Plain fields decide what the output *means* and enter the key of
the set; fields of the nested `run` table only say how the work is executed and never do. No field
is called plain `temperature` at top level: `sampling.temperature`, `record.temperature` and
`objective.temperature` are three different things.
"""

from collections.abc import Mapping
from string import Formatter
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator


class ByContent:
    """Marks a field that names something outside the recipe (a file, a model, a set).

    The name never enters a key; what it names does, as a digest or as the key of a set.
    """


BY_CONTENT = ByContent()
Named = Annotated[str, BY_CONTENT]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Table(BaseModel):
    """Base of all tables: immutable, unknown keys refused, attribute docstrings are the help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True
    )

    def unused(self) -> frozenset[str]:
        """Fields without effect, given the others; they never enter a key."""
        return frozenset()


# ---------------------------------------------------------------------------------------------
# Models, prompts, sampling, records: the parts several stages share


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


class Record(Table):
    """What is kept of the teacher's distribution at each position."""

    kind: Literal["sampled", "counts", "head_tail", "top_k"] = "head_tail"
    """`sampled`: log p of the realised token only; `counts`: ids and counts of `draws` draws;
    `head_tail`: every id with p >= tau exactly plus a systematic sample of the rest; `top_k`: the
    `k` likeliest ids exactly and nothing of the rest but its mass (biased, for comparison)."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """The teacher's logits are divided by this before anything is recorded."""
    tau: Annotated[float, Field(ge=1 / 128, lt=1.0)] | None = 0.023
    """`head_tail`: probability from which an id is stored exactly; also bounds tail weights."""
    entries: Annotated[float, Field(ge=1.0)] | None = None
    """`head_tail`, instead of `tau`: the mean number of ids a position shall keep. tau is found on
    a sample of the positions to be scored, once, and then holds for all of them."""
    candidates: Annotated[int, Field(ge=0, le=64)] = 4
    """`head_tail`: how many of pi_ref's own top ids are forced into the head; 0 is off."""
    draws: Annotated[int, Field(ge=1, le=255)] = 50
    """`counts`: number of draws N."""
    sampler: Literal["systematic", "multinomial"] = "systematic"
    """`counts`: `multinomial` is RS-KD as published; `systematic` has a third of its variance."""
    k: Annotated[int, Field(ge=1, le=200)] = 50
    """`top_k`: number of ids."""
    copies: Annotated[int, Field(ge=1, le=16)] = 1
    """`counts`, `head_tail`: independent draws kept per position; epoch e of a reader takes draw
    e modulo `copies`, so that several epochs do not see one frozen draw."""
    logp: bool = False
    """`counts`, `head_tail`: keep log p of the drawn ids too, which divergences other than the
    forward KL need."""
    loss_temperature: Annotated[float, Field(gt=0.0)] | None = None
    """A second temperature at which objectives may read the record; its normaliser is kept."""

    @model_validator(mode="before")
    @classmethod
    def _tau_or_entries(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("entries") is not None:
            if values.get("tau") is not None:
                raise ValueError(
                    "`tau` and `entries` exclude each other: give `tau`, or the mean number of "
                    "`entries` from which it is calibrated"
                )
            return {**values, "tau": None}
        return values

    @model_validator(mode="after")
    def _some_tau(self) -> Self:
        if self.kind == "head_tail" and self.tau is None and self.entries is None:
            raise ValueError("`head_tail` needs `tau`, or `entries` from which it is calibrated")
        return self

    def calibrated(self, tau: float) -> Self:
        """The record as it is drawn and stored: `tau` filled in, `entries` left to tell why."""
        return self.model_copy(update={"tau": tau})

    @classmethod
    def stored(cls, table: Mapping[str, object]) -> Self:
        """The record of a set from the `record` object of its manifest or footer.

        A calibrated tau is kept there beside the `entries` that asked for it, and counts alone.
        """
        dropped = "entries" if table.get("tau") is not None else ""
        return cls.model_validate({name: v for name, v in table.items() if name != dropped})

    def unused(self) -> frozenset[str]:
        """Parameters of other kinds."""
        own = {
            "counts": {"draws", "sampler", "copies", "logp"},
            "head_tail": {"tau", "entries", "candidates", "copies", "logp"},
            "top_k": {"k"},
        }
        return frozenset(set[str]().union(*own.values()) - own.get(self.kind, set()))


# ---------------------------------------------------------------------------------------------
# Execution options: never part of a key


class GenerateRun(Table):
    """Execution of a generating stage."""

    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """`auto` takes vLLM where it is installed."""
    max_sequences: Positive = 256
    """Sequences decoded at the same time."""
    max_model_len: Positive | None = None
    """Context length given to the engine; default prompt plus response."""
    memory_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.85
    """Share of GPU memory the engine may take."""
    kv_cache_mib: Positive = 256
    """Size of the key-value cache on a CPU, in MiB."""
    tensor_parallel: Positive = 1
    """GPUs that hold one model together."""


class ScoreRun(Table):
    """Execution of teacher scoring."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """vLLM for teachers that transformers runs slowly or one GPU does not hold; the two agree
    within the tolerances of docs/scoring-engines.md."""
    tokens_per_batch: Positive = 8192
    """Tokens in one teacher forward pass, padding included."""
    rows_per_chunk: Positive = 256
    """Positions whose logits exist at the same time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`transformers`: where it runs; vLLM runs where it was built for."""
    memory_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.85
    """`vllm`: share of GPU memory the engine may take."""
    kv_cache_mib: Positive = 256
    """`vllm`: size of the key-value cache on a CPU, in MiB."""
    tensor_parallel: Positive = 1
    """`vllm`: GPUs that hold the teacher together."""


class TrainRun(Table):
    """Execution of a training stage."""

    tokens_per_microbatch: Positive = 16384
    """Tokens in one forward and backward pass, padding included; gradients are accumulated."""
    rows_per_chunk: Positive = 1024
    """Positions whose logits exist at the same time in the fused head and loss."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more compute."""
    checkpoint_every: Positive = 200
    """Optimiser steps between resumable checkpoints."""
    log_every: Positive = 10
    """Optimiser steps between lines in the log and in metrics.jsonl."""
    prefetch: Positive = 3
    """Batches the reader keeps ready."""
    softmax: Literal["torch", "triton"] = "torch"
    """Kernels of the fused head and loss; `triton` needs a GPU and has not been timed on one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


# ---------------------------------------------------------------------------------------------
# The stages, in order


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


class Training(Table):
    """Optimisation settings common to `pretrain`, `sft` and `train`."""

    steps: Positive | None = None
    """Optimiser steps; give this or `epochs`."""
    epochs: Annotated[float, Field(gt=0.0)] | None = None
    """Passes over the data; give this or `steps`."""
    batch_size: Positive = 64
    """Sequences per optimiser step, over all devices and micro-batches."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-5
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the decay after warm-up, from `learning_rate` to `final_ratio` of it."""
    warmup: Fraction = 0.0
    """Share of the steps spent warming up."""
    final_ratio: Fraction = 0.0
    """Learning rate at the last step, as a share of `learning_rate`."""
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    grad_clip: Annotated[float, Field(gt=0.0)] = 1.0
    """Largest global gradient norm."""
    max_length: Positive | None = None
    """Sequences are cut to this many tokens, prompt included; default no cut."""
    run: TrainRun = TrainRun()

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of `steps` and `epochs`")
        return self


class Architecture(Table):
    """Shape of a model made from scratch (Qwen3 blocks)."""

    hidden_size: Positive = 256
    layers: Positive = 4
    heads: Positive = 4
    kv_heads: Positive | None = None
    """Default: as many as `heads`."""
    intermediate_size: Positive | None = None
    """Width of the MLP; default three times `hidden_size`."""
    tie_embeddings: bool = True
    init_std: Annotated[float, Field(gt=0.0)] = 0.02
    """Standard deviation of the initial weights. The usual 0.02 suits wide models; those of a few
    hundred units learn faster from about 1 / sqrt(hidden_size)."""
    max_positions: Positive = 2048


class Pretrain(Training):
    """A small model trained from scratch on the corpus."""

    architecture: Architecture = Architecture()
    init_only: bool = False
    """Stop at the random initialisation: a base model that knows nothing."""
    seed: int = 0
    """Seed of initialisation and data order; independent of the recipe's seed."""
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="before")
    @classmethod
    def _no_steps_needed(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("init_only"):
            return {"steps": 1, **values}
        return values


class Generate(Table):
    """Settings common to `sft-data` and `rollouts`."""

    prompts: PromptSource
    n: Positive = 1
    """Responses per prompt."""
    sampling: Sampling = Sampling()
    verifier: Verifier = Verifier()
    """Used where prompts have answers; wrong responses are kept and marked."""
    sequences_per_part: Positive = 16384
    run: GenerateRun = GenerateRun()


class SftData(Generate):
    """The teacher answers the SFT prompts."""


class Sft(Training):
    """The student is fine-tuned on the teacher's answers; the result is pi_ref."""

    keep: Literal["all", "correct"] = "all"
    """Which answers to train on."""


class Rollouts(Generate):
    """pi_ref answers the OPD prompts."""

    candidates: Annotated[int, Field(ge=0, le=64)] = 4
    """How many of pi_ref's own likeliest ids are kept per position."""
    holdout: Fraction = 0.02
    """Share of the prompts whose rollouts are kept out of training, for evaluation."""


class TeacherPrompt(Table):
    """What the teacher reads in place of the student's prompt; the responses stay what they are."""

    template: str = "{prompt}"
    """Text with fields in braces: `{prompt}` and any column of the prompt's row, such as a
    reference solution the student does not see. Of a prompt that is a list of chat messages it
    becomes the last message of the user. Braces themselves are doubled."""
    prompts: PromptSource | None = None
    """Where the rows come from; default the prompts of `rollouts` or `sft-data`, if `source` names
    one of these."""

    @field_validator("template")
    @classmethod
    def _has_fields(cls, value: str) -> str:
        fields = template_fields(value)
        odd = [name for name in fields if not name.isidentifier()]
        if odd or not fields:
            found = f"has the field `{{{odd[0]}}}`" if odd else "has no fields"
            raise ValueError(
                f"the template {found}; fields are written {{name}}, with the name of a column, "
                "and braces themselves doubled"
            )
        return value


class TeacherLogits(Table):
    """The teacher scores every position of a set of sequences."""

    source: Named = "rollouts"
    """`rollouts`, `sft-data`, `corpus`, or the directory of a set made elsewhere."""
    limit: Positive | None = None
    """Training sequences that are scored, from the first on; default all. What the source holds
    out is scored in any case."""
    record: Record = Record()
    layout: Literal["open", "packed"] = "open"
    """`packed` stores the same records in about three quarters of the bytes; other programs can
    then read everything but the records (storage/FORMAT.md)."""
    teacher_prompt: TeacherPrompt | None = None
    """Default: the teacher reads the prompts as the student read them, token by token."""
    consistency: Literal["refuse", "warn"] = "refuse"
    """What to do when the sequences descend from another teacher. A set that `[residualize]` reads
    may be scored by another one in any case."""
    run: ScoreRun = ScoreRun()

    def unused(self) -> frozenset[str]:
        """A check decides whether there is a set, not what is in it; some have nothing to pack."""
        return frozenset({"consistency", *(["layout"] if self.record.kind == "sampled" else [])})


class RecordSets(TeacherLogits):
    """The record set, and others made beside it for comparison."""

    compare: dict[str, dict[str, object]] = Field(default_factory=dict)
    """Further sets by name: each table overrides fields of this one. A student reads one of them
    by `data = "teacher-logits:<name>"`."""

    @field_validator("compare")
    @classmethod
    def _plain_names(cls, value: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
        return plain_names(value)

    def sets(self) -> dict[str, TeacherLogits]:
        """All sets by name; the main one, which is called "", comes first.

        Raises:
            ValueError: a comparison table has an unknown field or an impossible value.
        """
        own = self.model_dump(exclude={"compare"})
        tables = {name: merge(own, table) for name, table in self.compare.items()}
        return {name: TeacherLogits.model_validate(t) for name, t in {"": own, **tables}.items()}


class Residualize(Table):
    """Cross-teacher correction of a record set (arXiv 2607.28449); absent: no such set is made.

    A student reads it by `data = "residualize"`.
    """

    source: Named = "teacher-logits"
    """`teacher-logits`, `teacher-logits:<name>`, or the directory of a set of records."""
    folds: Annotated[int, Field(ge=2, le=64)] = 5
    """Prompts are split into so many folds; each is corrected by what the others show."""
    token_share: Fraction = 0.5
    """Weight of the mean by token id; the rest is that of the mean by position and surprisal."""
    pseudo_count: Annotated[float, Field(ge=0.0)] = 20.0
    """Tokens' worth of the overall mean mixed into every mean."""
    position_bins: Positive = 16
    """Positions are binned by powers of two, the last bin taking all that follow."""
    surprisal_bins: Positive = 8
    """pi_ref's surprisals are binned by quantiles."""


class Drift(Table):
    """Limits on how far the student may leave pi_ref, the policy that wrote the data."""

    warn_chi2: Annotated[float, Field(gt=0.0)] = 1.0
    """Token-level chi-square E[w^2] - 1 of w = pi / pi_ref above which a warning is logged."""
    stop_chi2: Annotated[float, Field(gt=0.0)] | None = None
    """The same, above which training stops with the model as it is."""


def _none_by_name(value: object) -> object:
    """TOML cannot write "no value"; `"none"` stands for it where that is not the default."""
    return None if value == "none" else value


Bound = Annotated[float | None, Field(gt=0.0), BeforeValidator(_none_by_name)]
"""A positive limit, or None (in a recipe: `"none"`) for no limit."""
Between = Annotated[float, Field(gt=0.0, lt=1.0)]
Weight = Annotated[float, Field(ge=0.0)]


class Loss(Table):
    """An objective and its options; which options take effect depends on the name."""

    name: Literal[
        "reverse_kl",
        "forward_kl",
        "jsd",
        "skew_forward_kl",
        "skew_reverse_kl",
        "tvd",
        "ghost_kl",
        "taid",
        "lightning",
        "policy_gradient",
        "cross_entropy",
        "mixture",
    ] = "reverse_kl"
    form: Literal["corrected", "bucketed", "residual_only"] = "corrected"
    """`reverse_kl`: bucket plus importance-corrected residual (unbiased), or one of them alone."""
    max_weight: Bound = None
    """`reverse_kl`: cap on the importance weight; brings bias, how often it binds is logged."""
    truncation: Bound = 2.0
    """`policy_gradient`: the same; `"none"` for the full correction."""
    clip: Bound = 10.0
    """`lightning`: bound on |log pi_T - log pi|, as published (arXiv 2604.13010)."""
    beta: Between = 0.5
    """`jsd`: share of the teacher in the mixture (arXiv 2306.13649); towards 0 the forward KL,
    towards 1 the reverse KL."""
    alpha: Between = 0.1
    """`skew_forward_kl`, `skew_reverse_kl`: share of the distribution that the other one is
    mixed with (arXiv 2402.03898)."""
    start: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.4
    """`taid`: weight of the teacher in the target at the first step; 1 at the last
    (arXiv 2501.16937)."""

    def unused(self) -> frozenset[str]:
        """Options of other objectives."""
        used = {
            "reverse_kl": {"form", "max_weight"},
            "policy_gradient": {"truncation"},
            "lightning": {"clip"},
            "jsd": {"beta"},
            "skew_forward_kl": {"alpha"},
            "skew_reverse_kl": {"alpha"},
            "taid": {"start"},
        }
        return frozenset(set[str]().union(*used.values()) - used.get(self.name, set()))


class Term(Loss):
    """One term of a mixture; all terms share the temperature."""

    weight: Weight | tuple[tuple[Fraction, Weight], ...] = 1.0
    """A number, or points `[progress, weight]` over training progress from 0 to 1, with straight
    lines between them; of two points at the same progress, the second holds from there on."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.name == "mixture":
            raise ValueError("a term of a mixture cannot be a mixture: list its terms beside it")
        if isinstance(self.weight, tuple):
            steps = [progress for progress, _ in self.weight]
            if not steps or steps != sorted(steps):
                raise ValueError("`weight`: list the points [progress, weight] by rising progress")
        return self


class Objective(Loss):
    """What is minimised; which records serve it is the legality contract of `stages.objectives`."""

    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Divides the student's logits. Other than the record's temperature it needs a record that
    keeps the normaliser of this one (`record.loss_temperature`), or log p to estimate it from."""
    terms: tuple[Term, ...] = ()
    """`mixture`: the objectives whose weighted sum is minimised."""

    @model_validator(mode="after")
    def _terms_of_a_mixture(self) -> Self:
        if self.name == "mixture" and not self.terms:
            raise ValueError('`name = "mixture"` needs `terms`: [[train.objective.terms]] tables')
        return self

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The terms of a mixture, or the objective itself."""
        return self.terms if self.name == "mixture" else (self,)

    def unused(self) -> frozenset[str]:
        """Options of other objectives."""
        return super().unused() | (set[str]() if self.name == "mixture" else {"terms"})


class Student(Training):
    """One student: where it starts, what it reads, what it minimises."""

    init: Named = "sft"
    """`sft` (pi_ref), `scratch`, a directory or Hub id, or `pretrain:<name>`."""
    data: Named = "teacher-logits"
    """`teacher-logits`, `teacher-logits:<name>` for one made by a comparison table,
    `residualize`, `sft-data`, `live` (teacher in the loop), or the directory of a set."""
    live: Literal["record", "full"] = "record"
    """`data = "live"`: whether the objective reads a record of the teacher, drawn like those of
    the set, or its `full` distribution (`forward_kl` only): what records are estimates of."""
    objective: Objective = Objective()
    drift: Drift = Drift()
    consistency: Literal["refuse", "warn"] = "refuse"
    """What to do when pi_ref and the records descend from different teachers."""
    architecture: Architecture | None = None
    """Shape of the model when `init = "scratch"`."""

    @model_validator(mode="after")
    def _full_objective(self) -> Self:
        if self.reads_all and self.objective.name != "forward_kl":
            raise ValueError(
                f'`live = "full"` serves the objective forward_kl, not {self.objective.name}'
            )
        return self

    @property
    def reads_all(self) -> bool:
        """Whether the teacher's whole distribution is read, and no record."""
        return self.data == "live" and self.live == "full"

    def unused(self) -> frozenset[str]:
        """How a live teacher is read, where there is none."""
        return frozenset(() if self.data == "live" else {"live"})


class Train(Student):
    """The student, and others trained beside it for comparison."""

    compare: dict[str, dict[str, object]] = Field(default_factory=dict)
    """Further students by name: each table overrides fields of this one."""

    @field_validator("compare")
    @classmethod
    def _plain_names(cls, value: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
        return plain_names(value)

    def students(self) -> dict[str, Student]:
        """All students by name; the main one is called after its objective.

        Raises:
            ValueError: a comparison table has an unknown field or an impossible value.
        """
        own = self.model_dump(exclude={"compare"})
        main = Student.model_validate(own)
        out: dict[str, Student] = {}
        for name, table in self.compare.items():
            out[name] = Student.model_validate(merge(own, table))
        out[main.objective.name] = main
        return out


class EvaluateRun(GenerateRun):
    """Execution of `evaluate`: generation first, then a scoring pass."""

    tokens_per_batch: Positive = 16384
    """Tokens in one forward pass over held-out rollouts, padding included."""


class HeldOutText(Table):
    """Sequences that every model is judged on as plain text, with the teacher beside it."""

    data: Named = "corpus"
    """`corpus`, or the directory of a set; what it holds out is read."""
    sequences: Positive | None = None
    """At most so many sequences, from the first on; default all."""


class GradientCheck(Table):
    """Gradients from records against gradients of the teacher's whole distribution.

    Taken on held-out batches, for every student whose objective aims at the forward KL.
    """

    at: Named = ""
    """Student of this recipe at whose weights all gradients are taken; empty: each at its own."""
    batch_size: Positive = 64
    """Sequences per gradient; noise shrinks with it, bias does not."""
    batches: Positive = 4
    """Gradients the figures are means over."""


class Evaluate(Table):
    """How every model is judged."""

    prompts: PromptSource | None = None
    """Questions the models answer; without them nothing is generated."""
    records: bool = True
    """Compare with the teacher on what `teacher-logits` holds out."""
    text: HeldOutText | None = None
    """Loss, calibration and acceptance on held-out text; default none."""
    gradient: GradientCheck | None = None
    """Angle and norm of the gradients that records give; default none."""
    weight: bool = False
    """Also report the bytes that a position of a student's records takes."""
    verifier: Verifier = Verifier()
    n: Positive = 1
    """Sampled responses per prompt; pass@k is reported for k = 1, 2, 4, ... up to n."""
    sampling: Sampling = Sampling()
    greedy: bool = True
    """Also answer every prompt greedily."""
    teacher: bool = True
    """Also evaluate the teacher: the ceiling of the table."""
    run: EvaluateRun = EvaluateRun()


class Report(Table):
    """The closing table."""

    baseline: str = "sft"
    """Row the gains are measured against."""


def plain_names(tables: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """`tables`, whose names become part of a node's name.

    Raises:
        ValueError: a name has characters other than letters, digits, - and _.
    """
    for name in tables:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"`{name}`: use letters, digits, - and _ only")
    return tables


def template_fields(template: str) -> tuple[str, ...]:
    """Names of the fields of a template, in order; whatever else stands in braces with them.

    Raises:
        ValueError: a brace without its partner.
    """
    parsed = Formatter().parse(template)
    return tuple(
        name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
        for _, name, form, conversion in parsed
        if name is not None
    )


_EXCLUSIVE = (("steps", "epochs"), ("epochs", "steps"), ("tau", "entries"), ("entries", "tau"))
_SOURCES = (("path", "task"), ("task", "path"), ("text", "task"), ("task", "text"))


def merge(base: dict[str, object], over: dict[str, object]) -> dict[str, object]:
    """`base` with `over` laid on top, table by table; neither argument is changed.

    Of fields that exclude each other, naming one takes the other back; and a table that names
    another source (a file instead of a task) replaces the one below, whose other fields spoke of
    the old source.
    """
    if any(new in over and old not in over and base.get(old) for new, old in _SOURCES):
        return dict(over)
    out = dict(base)
    for name, value in over.items():
        below = out.get(name)
        if isinstance(value, dict) and isinstance(below, dict):
            out[name] = merge(below, value)
        else:
            out[name] = value
    for named, other in _EXCLUSIVE:
        if named in over and other not in over:
            out.pop(other, None)
    return out
