"""The chain as data: stages, edges and resources.

Standard library only: schedulers parse this module many times a minute, so importing it must cost
nothing. What a *recipe* makes of it (variants, keys, directories) is in
`pipeline.planning.nodes` and `pipeline.planning.plan`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage; `name` is also the make target, the config table and the directory prefix."""

    name: str
    needs: tuple[str, ...]
    """Stages whose sets this one may read."""
    sharded: bool
    """True: plan / run_shard / commit. False: one resumable `run`."""
    gpu: bool
    """Whether a GPU is used where there is one."""
    version: int
    """Bumped by hand when the meaning of the output changes; part of every key."""
    summary: str

    @property
    def module(self) -> str:
        """Importable name of the module that implements the stage."""
        return "stages." + self.name.replace("-", "_")


STAGES: tuple[Stage, ...] = (
    Stage("corpus", (), True, False, 1, "tokenise text files or a built-in task into sequences"),
    Stage("pretrain", ("corpus",), False, True, 1, "train a small model from scratch on a corpus"),
    Stage("sft-data", ("pretrain",), True, True, 1, "the teacher answers the SFT prompts"),
    Stage("sft", ("pretrain", "sft-data"), False, True, 1, "fine-tune the student: pi_ref"),
    Stage("rollouts", ("sft",), True, True, 1, "pi_ref answers the OPD prompts"),
    Stage(
        "teacher-logits",
        ("corpus", "pretrain", "sft-data", "rollouts"),
        True,
        True,
        2,
        "the same teacher scores every position once",
    ),
    Stage(
        "residualize",
        ("teacher-logits",),
        True,
        False,
        1,
        "take what recurs out of the scores of another teacher",
    ),
    Stage(
        "train",
        ("pretrain", "sft-data", "sft", "rollouts", "teacher-logits", "residualize"),
        False,
        True,
        1,
        "train students from the records, no teacher in sight",
    ),
    Stage(
        "evaluate",
        ("corpus", "pretrain", "sft", "teacher-logits", "train"),
        False,
        True,
        1,
        "accuracy, length, KL to the teacher and calibration of every model",
    ),
    Stage("report", ("evaluate",), False, False, 2, "one table over all of the above"),
)

BY_NAME: dict[str, Stage] = {stage.name: stage for stage in STAGES}


def downstream(name: str) -> set[str]:
    """Names of the stages that read a stage's sets, directly or through others."""
    found = {name}
    for stage in STAGES:  # each comes after what it needs
        if found.intersection(stage.needs):
            found.add(stage.name)
    return found - {name}
