"""What an objective is: its options, what it is on each record, and the loss itself, in one class.

A subclass of `Objective` in a file of its own is all that a new objective takes, and a line in
`catalogue` that imports the file. Fields are the options of its table in a recipe and the class is
found by its `name`. `guarantee_on` is its row of the legality contract, `__call__` its loss.

A configuration is checked before torch is loaded, so the files of objectives import torch for its
types only; what they do with tensors are methods of `Tensor` and of `tensors.TorchRecords`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol, Self

from pydantic import Field, PrivateAttr

from stages.table import Choice
from storage.kinds import Kind

if TYPE_CHECKING:
    from torch import Tensor

    from stages.objectives.tensors import TorchRecords

# ---------------------------------------------------------------------------------------------
# The contract

Level = Literal["exact", "unbiased", "lower_bound", "biased", "refused"]

WEAKEST_LAST: tuple[Level, ...] = ("exact", "unbiased", "lower_bound", "biased", "refused")


@dataclass(frozen=True)
class Guarantee:
    """What an objective is on given records, and why."""

    level: Level
    reason: str
    note: str = ""
    """What a first pass over the data does not yet show; empty where there is nothing to say."""

    def to_json(self) -> dict[str, str]:
        """A JSON-ready dictionary; `note` only where there is one."""
        stated = {"level": self.level, "reason": self.reason}
        return stated | ({"note": self.note} if self.note else {})


OUTSIDE_IS_ONE = Guarantee("lower_bound", "everything outside the stored head counts as one symbol")
NO_HEAD = Guarantee(
    "refused", "no id is stored exactly, so all of the vocabulary is one symbol and nothing trains"
)
ONE_TOKEN = Guarantee(
    "refused", "one token drawn by another policy says nothing of the teacher's distribution"
)


@dataclass(frozen=True)
class Kept:
    """What records of a kind keep of the teacher, beside log p of the realised token."""

    kind: str
    """The kind in the manifest."""
    head: bool = False
    """Ids chosen without chance, each with its log p."""
    drawn: bool = False
    """Ids drawn from the teacher, with weights whose expectation is its probability."""
    logp: bool = False
    """Log p of the drawn ids too."""

    @property
    def label(self) -> str:
        """The column of the contract: the kind, with `+logp` where that is kept of drawn ids."""
        return f"{self.kind}+logp" if self.logp else self.kind

    @classmethod
    def by(cls, kind: Kind, logp: bool = False) -> Kept:
        """Records of `kind`, with log p of the drawn ids where there are any and `logp` says so."""
        return cls(kind.name, kind.head, kind.drawn, kind.drawn and logp)


# ---------------------------------------------------------------------------------------------
# The function


@dataclass(frozen=True)
class Terms:
    """What an objective makes of some positions."""

    loss_T: Tensor
    """Loss per position: its *value* is what is logged, its gradient is what is trained on."""
    stats: Mapping[str, Tensor]
    """Detached [T] tensors, for the log."""


class ObjectiveFunction(Protocol):
    """A pure function of the student's log-probabilities at stored ids."""

    @property
    def temperature(self) -> float:
        """What the student's logits were divided by before the log-softmax."""
        ...

    def at(self, progress: float) -> ObjectiveFunction:
        """The objective at a share of training between 0 (first step) and 1 (last step)."""
        ...

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms from log q at the entries' ids [E] and at the realised tokens [T]."""
        ...


# ---------------------------------------------------------------------------------------------
# Options, contract and function

Between = Annotated[float, Field(gt=0.0, lt=1.0)]


class Objective(Choice):
    """What is minimised. Reading a table as an `Objective` gives the class with that `name`."""

    name: str
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Divides the student's logits. Other than the record's temperature it needs a record that
    keeps the normaliser of this one (`record.loss_temperature`), or log p to estimate it from."""

    unnamed = "reverse_kl"
    reads_teacher: ClassVar[bool] = True
    """Whether the records must hold a teacher, and pi_ref must have stayed near."""
    reads_draws: ClassVar[Literal["never", "with_logp", "always"]] = "never"
    """Whether the ids drawn for the record are read: only where their log p is kept, or always."""
    aims_at_forward_kl: ClassVar[bool] = False
    """Whether evaluation may compare its gradient with that of the full forward KL."""
    _progress: float = PrivateAttr(0.0)

    @property
    def losses(self) -> tuple[Objective, ...]:
        """The terms of a mixture, or the objective itself."""
        return (self,)

    # What it is on which records

    @property
    def label(self) -> str:
        """Its row of the contract."""
        return self.name

    @classmethod
    def variants(cls) -> tuple[Objective, ...]:
        """One for each row of the contract."""
        return (cls.model_validate({}),)

    @property
    def weighs_token(self) -> bool:
        """Whether its expectation is over the realised token, weighted by q / b."""
        return False

    @property
    def follows_progress(self) -> bool:
        """Whether it changes over training, so that `at` makes a difference."""
        return False

    @property
    def reads_outcome(self) -> bool:
        """Whether it is a term of a mixture that reads sequences of one outcome only."""
        return False

    @property
    def cap(self) -> float | None:
        """Largest q / b that it uses; None: no limit."""
        return None

    def guarantee_on(self, kept: Kept) -> Guarantee:
        """What the objective is on records of rollouts with full support, at their temperature."""
        raise NotImplementedError

    # The loss

    def at(self, progress: float) -> Self:
        """The objective at a share of training between 0 (first step) and 1 (last step)."""
        moved = self.model_copy()
        moved._progress = progress
        return moved

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms from log q at the entries' ids [E] and at the realised tokens [T]."""
        raise NotImplementedError

    def required(self, values_T: Tensor | None, column: str) -> Tensor:
        """`values_T`, which the contract has already checked to be there.

        Raises:
            ValueError: the records lack it, because the caller did not ask the contract.
        """
        if values_T is None:
            raise ValueError(
                f"{self.name} needs the column `{column}`, which these records do not have; "
                "check the configuration with `stages.objectives.contract.guarantee` first"
            )
        return values_T
