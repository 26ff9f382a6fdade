"""Tables of `evaluate` and `report`."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import AliasChoices, Field

from stages.config.data import PromptSource, Sampling, Verifier
from stages.config.generation import EngineRun
from stages.config.stage import StageTable
from stages.table import KeyDefault, KeyName, Named, Positive, Table, at_default


class EvaluateRun(EngineRun):
    """Execution of `evaluate`: generation first, then a scoring pass."""

    tokens_per_batch: Positive = 16384
    """Tokens in one forward pass over held-out rollouts, padding included."""


class HeldOutText(Table):
    """Held-out text on which every model is evaluated, with the teacher run beside it."""

    data: Named = "corpus"
    """`corpus`, `sft-data` (answers of the teacher), `rollouts`, or the directory of a set; its
    held-out sequences are read."""
    sequences: Positive | None = None
    """Use at most this many sequences, in order; default all."""


class GradientCheck(Table):
    """Gradients from records against gradients of the teacher's whole distribution.

    Taken on held-out batches, for every student whose objective aims at the forward KL.
    """

    at: Named = ""
    """Student of this recipe at whose weights all gradients are taken; empty: each at its own."""
    batch_size: Positive = 64
    """Sequences per gradient; noise shrinks with it, bias does not."""
    batches: Positive = 4
    """Number of gradients to average over."""


class Evaluate(StageTable):
    """How every model is evaluated."""

    prompts: PromptSource | None = None
    """Prompts that the models answer; default: nothing is generated."""
    records: bool = True
    """Compare with the teacher on the held-out sequences of `teacher-logits`."""
    text: HeldOutText | None = None
    """Loss, calibration and acceptance on held-out text; default none."""
    gradient: GradientCheck | None = None
    """Angle and norm of gradients from records; default none."""
    record_bytes: Annotated[
        bool, KeyName("weight"), Field(validation_alias=AliasChoices("record_bytes", "weight"))
    ] = False
    """Also report the bytes per position of a student's records (formerly called `weight`)."""
    verifier: Verifier = Verifier()
    """Decides which answers are right, where prompts have reference answers."""
    n: Positive = 1
    """Sampled responses per prompt; pass@k is reported for k = 1, 2, 4, ... up to n."""
    sampling: Sampling = Sampling()
    """How the n responses are sampled; greedy answers have the same penalties, `stop` and
    `max_tokens`."""
    greedy: bool = True
    """Also answer every prompt greedily."""
    teacher: bool = True
    """Also evaluate the teacher."""
    run: EvaluateRun = EvaluateRun()
    """Execution; never part of a key."""


class Report(StageTable):
    """The closing table."""

    presence = "implied"

    baseline: Annotated[str | None, KeyDefault("sft")] = None
    """Row that gains are measured against. Default: where each student started in its first round.
    That is `sft` or, without `[sft]`, `reference`; a start of their own (`train.init`) is evaluated
    too, in a row `start`."""
    baselines: dict[str, str] = Field(default_factory=dict)
    """By student, another row in the place of `baseline`."""

    def measured_from(self, shared: str | None, own: Mapping[str, str]) -> Self:
        """The table with what it leaves open filled in: the rows that students started from.

        Args:
            shared: That of the student of `[train]`; None for the default.
            own: Those of students that started elsewhere, by student.
        """
        if self.baseline is not None:
            return self
        return self.model_copy(update={"baseline": shared, "baselines": {**own, **self.baselines}})

    def unused(self) -> frozenset[str]:
        """Rows of single students, where there are none."""
        return at_default(self, "baselines")
