"""The chain as data: stages, what each reads, resources.

Standard library only: schedulers parse this module many times a minute, so importing it must cost
nothing. Everything else follows from `STAGES`: make targets, the tasks of Airflow and Dagster, the
tables of a recipe, and the nodes that `pipeline.planning.nodes` makes of a recipe. A new stage is
one entry here, a module in `stages/` and a table in `stages/config/`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

MODELS: dict[str, tuple[str, ...]] = {
    "teacher": ("pretrain", "derive"),
    "student": ("pretrain", "derive"),
    "policy": ("pretrain", "derive", "sft"),
}
"""Models a stage may read, and the stages that may make them. `teacher` and `student` are tables of
the recipe. The policy writes the rollouts: in the first round it is pi_ref, in later rounds the
student of the round before."""


@dataclass(frozen=True)
class Stage:
    """One stage."""

    name: str
    """Also the make target, the config table and the prefix of directories."""
    summary: str
    table: str
    """Class of the config table: `file.Class` in `stages.config`."""
    reads: Mapping[str, tuple[str, ...]]
    """Inputs by role: the stages (or the model, see `MODELS`) that may serve. The first is read
    unless the table names another."""
    refines: str = ""
    """The stage whose sets this one passes on changed, one for each. Where a recipe has this table,
    later stages read the changed set wherever they would read that stage by default."""
    sharded: bool = False
    """True: plan / run_shard / commit. False: one resumable `run`."""
    gpu: bool = False
    """Whether a GPU is used where there is one."""
    version: int = 1
    """Bumped by hand when the meaning of the output changes; part of every key."""

    @property
    def module(self) -> str:
        """Importable name of the module that implements the stage."""
        return "stages." + self.field

    @property
    def field(self) -> str:
        """The name as a Python identifier."""
        return self.name.replace("-", "_")

    def sources(self, role: str) -> set[str]:
        """The stages whose sets may serve as this input."""
        found: set[str] = set()
        for source in self.reads[role]:
            found.update(MODELS.get(source, (source,)))
        for stage in STAGES:
            if stage.name == self.name:
                break
            if stage.refines in found:
                found.add(stage.name)
        return found

    @property
    def needs(self) -> tuple[str, ...]:
        """All other stages whose sets this one may read, in order."""
        found = set[str]().union(*(self.sources(role) for role in self.reads)) - {self.name}
        return tuple(stage.name for stage in STAGES if stage.name in found)


# The Makefile reads this table too: name and summary open each entry, on lines of their own.
STAGES: tuple[Stage, ...] = (
    Stage(
        "corpus",
        "tokenise text files or a built-in task into sequences",
        table="corpus.Corpus",
        reads={},
        sharded=True,
    ),
    Stage(
        "pretrain",
        "train small models from scratch on the corpus (the demo's teacher and base)",
        table="training.Pretrain",
        reads={"corpus": ("corpus",)},
        gpu=True,
    ),
    Stage(
        "derive",
        "take models from GGUF files, or make one of some layers of another",
        table="derive.Derive",
        reads={"model": ("teacher",)},
    ),
    Stage(
        "sft-data",
        "the teacher answers the SFT prompts",
        table="generation.SftData",
        reads={"teacher": ("teacher",)},
        sharded=True,
        gpu=True,
    ),
    Stage(
        "sft",
        "fine-tune the student on these answers: pi_ref, the reference policy",
        table="training.Sft",
        reads={"base": ("student",), "sequences": ("sft-data",)},
        gpu=True,
    ),
    Stage(
        "rollouts",
        "pi_ref answers the OPD prompts",
        table="generation.Rollouts",
        reads={"model": ("policy",)},
        sharded=True,
        gpu=True,
    ),
    Stage(
        "teacher-logits",
        "the same teacher scores every position once",
        table="records.RecordSets",
        reads={"teacher": ("teacher",), "sequences": ("rollouts", "sft-data", "corpus")},
        sharded=True,
        gpu=True,
        version=2,
    ),
    Stage(
        "residualize",
        "correct the records of a teacher that pi_ref did not learn from",
        table="records.Residualize",
        reads={"records": ("teacher-logits",)},
        sharded=True,
    ),
    Stage(
        "train",
        "train students on the records, without a teacher",
        table="training.Train",
        reads={
            "init": ("policy",),
            "data": ("teacher-logits", "residualize", "sft-data", "rollouts", "corpus"),
            "records": ("teacher-logits",),
            "teacher": ("teacher",),
        },
        gpu=True,
    ),
    Stage(
        "evaluate",
        "accuracy, length, KL to the teacher and calibration of every model",
        table="evaluation.Evaluate",
        reads={
            "model": ("teacher", "policy", "train"),
            "records": ("teacher-logits",),
            "text": ("corpus", "sft-data", "rollouts"),
            "teacher": ("teacher",),
            "at": ("train",),
            "data": ("teacher-logits",),
        },
        gpu=True,
    ),
    Stage(
        "report",
        "one table over all of the above",
        table="evaluation.Report",
        reads={"evaluations": ("evaluate",)},
        version=2,
    ),
)

BY_NAME: dict[str, Stage] = {stage.name: stage for stage in STAGES}


def downstream(name: str) -> set[str]:
    """Names of the stages that read a stage's sets, directly or through others."""
    found = {name}
    for stage in STAGES:  # each comes after what it needs
        if found.intersection(stage.needs):
            found.add(stage.name)
    return found - {name}
