"""Tables of the stages that train: `pretrain`, `sft` and `train`."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

import stages.weights.catalogue  # noqa: F401  (makes all weights known)
from stages.config.merge import merge
from stages.config.objectives import Drift
from stages.config.stage import StageTable
from stages.objectives.objective import Objective
from stages.objectives.reverse_kl import ReverseKL
from stages.table import BY_CONTENT, Fraction, Named, Positive, Table
from stages.weights.base import Weight


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
    """Batches that the reader prepares ahead."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where training runs; `auto` takes a GPU where there is one."""
    processes: Positive = 1
    """Processes that FSDP2 shards the training over, one per GPU; no effect under torchrun."""


class Training(StageTable):
    """Optimisation settings common to `pretrain`, `sft` and `train`."""

    steps: Positive | None = None
    """Optimiser steps; give this or `epochs`."""
    epochs: Annotated[float, Field(gt=0.0)] | None = None
    """Passes over the data; give this or `steps`."""
    batch_size: Positive = 64
    """Sequences per optimiser step, over all devices and micro-batches."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-5
    """Peak learning rate of AdamW, reached after warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the decay after warm-up, from `learning_rate` to `final_ratio` of it."""
    warmup: Fraction = 0.0
    """Share of the steps used for warm-up; of the steps of all rounds, where there are several."""
    final_ratio: Fraction = 0.0
    """Learning rate at the last step (of the last round), as a share of `learning_rate`."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates of the first and second moment."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Decoupled weight decay of AdamW; matrices only, no biases or norms."""
    grad_clip: Annotated[float, Field(gt=0.0)] = 1.0
    """Largest global gradient norm."""
    max_length: Positive | None = None
    """Sequences are truncated to this many tokens, prompt included; default no truncation."""
    run: TrainRun = TrainRun()
    """Execution; never part of a key."""

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of `steps` and `epochs`")
        return self


class Architecture(Table):
    """Shape of a model made from scratch (Qwen3 blocks)."""

    hidden_size: Positive = 256
    """Width of the residual stream; `hidden_size` / `heads` must be an even whole number."""
    layers: Positive = 4
    """Number of transformer blocks."""
    heads: Positive = 4
    """Attention heads per block."""
    kv_heads: Positive | None = None
    """Key-value heads (grouped-query attention), a divisor of `heads`; default as many."""
    intermediate_size: Positive | None = None
    """Width of the MLP; default three times `hidden_size`."""
    tie_embeddings: bool = True
    """Whether the head shares its weights with the token embeddings."""
    init_std: Annotated[float, Field(gt=0.0)] = 0.02
    """Standard deviation of the initial weights. The usual 0.02 suits wide models; those with
    a hidden size of a few hundred learn faster from about 1 / sqrt(hidden_size)."""
    max_positions: Positive = 2048
    """Longest sequence, in tokens."""


class Pretrain(Training):
    """A small model trained from scratch on the corpus."""

    presence = "by name"

    architecture: Architecture = Architecture()
    """Shape of the model."""
    init_only: bool = False
    """Stop at the random initialisation."""
    seed: int = 0
    """Seed of initialisation and data order; independent of the recipe's seed."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Numeric type of the weights as saved; training itself keeps them in float32."""

    @model_validator(mode="before")
    @classmethod
    def _no_steps_needed(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("init_only"):
            return {"steps": 1, **values}
        return values


class Sft(Training):
    """The student is fine-tuned on the teacher's answers; the result is pi_ref."""

    keep: Literal["all", "correct"] = "all"
    """Which answers to train on."""


class Student(Training):
    """One student: where it starts, what it reads, what it minimises."""

    init: Named = "sft"
    """`sft` (pi_ref), `scratch`, a directory or Hub id, `pretrain:<name>` or `derive:<name>`."""
    data: Annotated[str | None, BY_CONTENT] = None
    """`teacher-logits` (the default), `teacher-logits:<name>` for the set of a comparison table,
    `residualize`, `sft-data`, `live` (teacher in the loop), or the directory of a set."""
    live: Literal["record", "full"] = "record"
    """`data = "live"`: whether the objective reads a record, drawn like those of the set, or the
    teacher's `full` distribution (`forward_kl` only), which records estimate."""
    objective: SerializeAsAny[Objective] = ReverseKL()
    """What is minimised."""
    weights: tuple[SerializeAsAny[Weight], ...] = ()
    """How much each position counts in the loss; several multiply. Positions of weight 0 cost no
    logits, and are left out of the drift that is measured."""
    normalise: Literal["weights", "count"] = "weights"
    """With `weights`: divide the weighted sum of the losses of a step by the sum of the weights,
    or by the number of positions."""
    rounds: Positive = 1
    """Rounds of rollouts, scoring and training (docs/rounds.md). From the second on, the student of
    the round before writes rollouts to the next prompts and trains on. A round takes `steps` (or
    `epochs`), or ends early at `drift.stop`. Tables of `compare` have one round unless they
    set `rounds`. It enters the key where a student depends on the number of rounds."""
    round_start: Literal["continue", "restart"] = "continue"
    """How a later round starts: `continue` with the optimiser's state, and on one schedule of the
    learning rate (and of the objective) over all rounds; or `restart` both in every round."""
    drift: Drift = Drift()
    """Limits on how far the student may leave pi_ref."""
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

    @model_validator(mode="after")
    def _rounds_of_records(self) -> Self:
        if self.rounds > 1 and self.data == "live":
            raise ValueError(
                f"`rounds = {self.rounds}` makes new records for every round, so `data` must be a "
                'set of records that the recipe makes, not "live"'
            )
        return self

    def completed(self, origin: StageTable | None) -> Self:
        """Nothing follows from the data, but a model from scratch needs a shape."""
        if self.init == "scratch" and self.architecture is None:
            raise ValueError('init = "scratch" needs [train.architecture]')
        return self

    def sources(self) -> Mapping[str, str | None]:
        """The start and the data; with the teacher in the loop, the records it imitates."""
        chosen: dict[str, str | None] = {}
        if self.init != "sft":
            chosen["init"] = None if self.init == "scratch" else self.init
        if self.data == "live":
            chosen["data"] = None
        else:
            chosen |= {"records": None, "teacher": None}
            if self.data:
                chosen["data"] = self.data
        return chosen

    @property
    def reads_all(self) -> bool:
        """Whether the teacher's whole distribution is read, and no record."""
        return self.data == "live" and self.live == "full"

    @property
    def rounds_are_one(self) -> bool:
        """Whether there are several rounds, and all of them are one training."""
        return self.rounds > 1 and self.round_start == "continue"

    @property
    def follows_progress(self) -> bool:
        """Whether a step depends on how many are to come: by learning rate or objective."""
        level = self.schedule == "constant" and self.warmup == 0.0
        return not level or self.objective.follows_progress

    def hands_on(self, number: int) -> bool:
        """Whether the student of a round is kept together with the state of its optimiser.

        A next round needs it. After the last one a further round can be asked for later, unless
        the training was to end there.
        """
        return self.rounds_are_one and (number < self.rounds or not self.follows_progress)

    def unused(self) -> frozenset[str]:
        """What has no effect: of rounds, weights and a live teacher, where there are none."""
        names: list[str] = [] if self.data == "live" else ["live"]
        names += [] if self.weights else ["weights", "normalise"]
        names += [] if self.rounds_are_one else ["round_start"]
        names += [] if self.rounds_are_one and self.follows_progress else ["rounds"]
        return frozenset(names)


class Train(Student):
    """The student, and others trained beside it for comparison."""

    presence = "required"

    compare: dict[str, dict[str, object]] = Field(default_factory=dict)
    """Further students by name: each table overrides fields of this one."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if self.objective.name in self.compare:
            raise ValueError(
                f"[train] and [train.compare.{self.objective.name}] have the same name, since the "
                "student of [train] is called after its objective; rename the other"
            )
        return self

    def variants(self) -> dict[str, Student]:
        """All students by name; the main one is called after its objective.

        Raises:
            ValueError: a comparison table has an unknown field or an impossible value.
        """
        own = self.model_dump(exclude={"compare"})
        main = Student.model_validate(own)
        own["rounds"] = 1
        out: dict[str, Student] = {}
        for name, table in self.compare.items():
            out[name] = Student.model_validate(merge(own, table))
        out[main.objective.name] = main
        return out
