"""The sets behind docs/draft.md: drafts of benchmarks/draft.toml, on two kinds of prompts.

On *real* ones, the domain's own, SFT and every student of the recipe. On *synthetic* ones, which
the target wrote, SFT and the main student once more, in as many steps; these learn from no prompt
of the domain, and are evaluated where the others are.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.draft_prompts import Written, write_prompts
from benchmarks.teachers import make
from pipeline import ledger
from pipeline.planning.config import Recipe, load_recipe
from pipeline.planning.nodes import build
from stages.reporting.table import Row, read_evaluation, read_rows
from storage.files.place import place

log = logging.getLogger("benchmarks")

RECIPE = Path(__file__).with_name("draft.toml")
UNTRAINED, SFT, LIVE = "pruned, untrained", "sft", "live"


def synthetic(name: str) -> str:
    """The row of a model that learnt from prompts of the target."""
    return f"{name}, synthetic"


@dataclass(frozen=True)
class Sets:
    """What is compared."""

    recipe: Recipe
    target: Path
    drafts: Mapping[str, Path]
    """Models by row."""
    main: str
    """Row of the student that the others differ from in one thing."""
    rows: Sequence[Row]
    """Figures from records and from text."""
    written: Written
    """The prompts of the target."""
    seconds: Mapping[str, float]
    """What each set took, by the node that made it; those of the synthetic chain have a prefix."""


def make_sets(store: Path, overrides: Sequence[str], environment: Mapping[str, str]) -> Sets:
    """Make what is missing.

    Args:
        store: Where sets are, or will be.
        overrides: Settings of the recipe, as after `--set`.
        environment: As for `benchmarks.teachers.make`.
    """
    recipe = load_recipe(None, [RECIPE], list(overrides))
    given = ["--config", str(RECIPE), *_flags(overrides)]
    names = [node.name for node in build(recipe)]
    real = make(store, names, *given, environment=environment)
    students = {
        name.removeprefix("train."): real[name] for name in names if name.startswith("train.")
    }
    main = recipe.train.objective.name

    assert recipe.sft_data is not None, "the recipe has it"
    assert recipe.rollouts is not None, "the recipe has it"
    wanted = (recipe.sft_data.prompts.limit or 0) + (recipe.rollouts.prompts.limit or 0)
    written = write_prompts(store, wanted, *given, environment=environment)
    settings = other_prompts(recipe, written.file, real["sft-data"])
    targets = ["sft-data", "sft", "rollouts", "teacher-logits", f"train.{main}"]
    evaluations = {name: f"evaluate.{name}" for name in (SFT, main)}
    made = make(
        store, [*targets, *evaluations.values()], *given, *_flags(settings), environment=environment
    )
    rows = list(read_rows(real["report"]))
    for name, node in evaluations.items():
        metrics = read_evaluation(made[node])["metrics"]
        assert isinstance(metrics, dict), "checked when it is read"
        rows.append({"model": synthetic(name), **metrics})
    every = {**real, **{synthetic(name): one for name, one in made.items()}}
    every["prompts"] = written.directory
    return Sets(
        recipe=recipe,
        target=real["derive.teacher"],
        drafts={
            UNTRAINED: real["derive.student"],
            SFT: real["sft"],
            **students,
            synthetic(SFT): made["sft"],
            synthetic(main): made[f"train.{main}"],
        },
        main=main,
        rows=rows,
        written=written,
        seconds={
            name: float(ledger.cost(place(directory)).get("seconds", 0))
            for name, directory in every.items()
        },
    )


def other_prompts(recipe: Recipe, file: Path, answers: Path) -> list[str]:
    """Settings with which the recipe learns from as many prompts of a file.

    Args:
        recipe: Says how many answers the target and the draft give.
        file: The prompts.
        answers: The target's answers to the domain's prompts, for evaluation.
    """
    assert recipe.sft_data is not None, "the recipe has it"
    assert recipe.rollouts is not None, "the recipe has it"
    first, second = recipe.sft_data.prompts.limit, recipe.rollouts.prompts.limit
    return [
        f'sft-data.prompts={{path="{file}", limit={first}}}',
        f'rollouts.prompts={{path="{file}", first={first}, limit={second}}}',
        f'evaluate.text.data="{answers}"',
        "evaluate.records=false",  # the held-out rollouts of this chain answer other prompts
    ]


def _flags(overrides: Sequence[str]) -> list[str]:
    return [part for one in overrides for part in ("--set", one)]
