"""The base of the config tables of stages: what planning asks of them.

`pipeline.planning` knows stages from `pipeline.graph` alone. Whatever else it needs in order to
plan a set, the table of the stage answers through these methods; the defaults suit most stages.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

from stages.config.candidates import Candidates
from stages.config.data import PromptSource
from stages.table import NOT_IN_KEY, Fraction, Table


class Expected(NamedTuple):
    """What is known of a set of sequences before it exists."""

    tokens: int
    """Upper bound."""
    logp: bool = True
    """Whether each token comes with the log-probability it was sampled with."""
    candidates: Candidates = 0
    """Ids of the policy's likeliest tokens kept per position."""
    entries: float = 3.0
    """Ids that a record of the teacher keeps at tau = 0.023 (or of 50 draws). They grow with its
    entropy: about 12 on web text (published curve of arXiv 2503.16870), about 3 on the rollouts of
    a fine-tuned model, where most positions are nearly certain."""
    record: Table | None = None
    """What a set of records keeps of the teacher."""


class SkipsBad(Table):
    """Options of stages that sequences pass one by one.

    Neither is in a key: a set that was made without skipping has no bad sequence to skip.
    """

    on_bad_sequence: Annotated[Literal["stop", "skip"], NOT_IN_KEY] = "stop"
    """What to do with a sequence that cannot be used (log-probabilities that are not finite, an id
    outside the vocabulary, more tokens than the context): `skip` leaves it out and counts it."""
    max_bad_share: Annotated[Fraction, NOT_IN_KEY] = 0.01
    """Largest share of the sequences of the set that may be skipped."""

    def bad_allowed(self, total: int) -> int:
        """How many of `total` sequences may be skipped."""
        return int(self.max_bad_share * total) if self.on_bad_sequence == "skip" else 0


class StageTable(Table):
    """The config table of a stage; in a recipe it has the name of the stage."""

    presence: ClassVar[Literal["optional", "implied", "required", "by name"]] = "optional"
    """`optional`: without the table the stage does not run. `implied`: without it, the stage runs
    with the defaults if it has something to read. `by name`: the recipe has any number of tables,
    `[stage.name]`, one for each set."""

    def variants(self) -> Mapping[str, "StageTable"]:
        """The tables of the sets to make, by name; the main set is called ""."""
        return {"": self}

    def sources(self) -> Mapping[str, str | None]:
        """Inputs that the table chooses, by role; all others are those of `pipeline.graph`.

        A stage, `stage:name` for one of its named sets, or the directory of a set; for a model
        `pretrain:name`, a directory or a Hub id; None for an input that is not read.
        """
        return {}

    def prompt_source(self) -> PromptSource | None:
        """The prompts that the stage reads; their content enters the key."""
        return getattr(self, "prompts", None)

    def with_prompts(self, prompts: PromptSource) -> Self:
        """The table with other prompts in the place of `prompt_source`."""
        return self.model_copy(update={"prompts": prompts})

    def completed(self, origin: "StageTable | None") -> Self:
        """The table with what follows from its sequences filled in.

        Args:
            origin: Table of the stage that generated the sequences; None for a set from elsewhere.

        Raises:
            ValueError: the two do not fit.
        """
        return self

    def of_round(self, number: int) -> Self:
        """The table of a later round (2, 3, ...), from that of the first."""
        return self

    def adapted(self, name: str, read: "StageTable") -> "StageTable":
        """Table `read` of an earlier set called `name`, changed as this stage needs it."""
        return read

    def expected(
        self, count: Callable[[PromptSource], int | None], read: Expected | None
    ) -> Expected | None:
        """What `plan` can say of the set; None where it holds no sequences, or not known.

        Args:
            count: Counts prompts; None where the file is not on this machine.
            read: What is expected of the sequences or records that the stage reads.
        """
        return None
