"""`afterglow seeds`: the same recipe over several seeds, and one table of means over them."""

import json
import logging
import sys
from pathlib import Path

from pipeline import ledger
from pipeline.execution import runner
from pipeline.execution.chain import Chain
from pipeline.planning.config import Recipe
from pipeline.planning.document import replace_block, surroundings
from pipeline.planning.nodes import build, select
from pipeline.planning.plan import Planned, resolve
from stages.reporting.table import Row, format_table, legend, read_rows, summarise
from storage.files.place import Place
from storage.store import Store

log = logging.getLogger(__name__)


def run_seeds(
    recipe: Recipe, seeds: int, store: Store, arguments: list[str], into: Path | None = None
) -> dict[str, object]:
    """Run the report of each seed, then print mean and standard deviation over seeds.

    The seeds are consecutive, from the recipe's own on. Models made by `pretrain` have a seed of
    their own, so all runs share them.

    Args:
        recipe: The recipe of the first seed.
        seeds: Number of seeds.
        store: Where the sets live; the summary is written next to them.
        arguments: Command-line arguments that select `recipe` in another process.
        into: A Markdown file whose generated part the table becomes.

    Returns:
        The reports' directories and the summary, for the last line on stdout.

    Raises:
        StageFailed: a stage did.
        DataError: `into` has no generated part.
    """
    if into is not None:
        surroundings(into)  # refused before the work, not after it
    reports: list[Place] = []
    sets: dict[Place, Planned] = {}
    for seed in range(recipe.seed, recipe.seed + seeds):
        log.info("%s: seed %d", recipe.name, seed)
        seeded = recipe.model_copy(update={"seed": seed})
        planned = _plan(seeded, store)
        chain = Chain(seeded, [*arguments, "--set", f"seed={seed}"])
        chain.run(runner.missing(planned, store))
        sets |= {one.directory(store): one for one in planned}
        reports.append(planned[-1].directory(store))
    summary = summarise([read_rows(report) for report in reports])
    about = legend(summary, recipe.report.baseline)
    lines = [_headline(seeds), "", format_table(summary), "", *about, ""]
    sys.stdout.write("\n".join(lines))
    (store.root / f"{recipe.name}-seeds.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in summary)
    )
    if into is not None:
        replace_block(into, _markdown(summary, about, seeds, list(sets)))
    return {"verb": "seeds", "reports": [str(report) for report in reports], "rows": summary}


def _plan(recipe: Recipe, store: Store) -> list[Planned]:
    """All that the report needs, the report last."""
    return resolve(select(build(recipe), ["report"]), store, ready=True)


def _headline(seeds: int) -> str:
    return f"{seeds} seeds, mean +- standard deviation" if seeds > 1 else "one seed"


def _markdown(summary: list[Row], about: list[str], seeds: int, sets: list[Place]) -> str:
    """Table, legend, and what it took to make."""
    bullets = "\n".join(f"- {line}" for line in about)
    seconds = sum(float(ledger.cost(directory).get("seconds", 0.0)) for directory in sets)
    machines = sorted({ledger.machine(directory) for directory in sets})
    made = (
        f"{_headline(seeds)}; {len(sets)} sets in {seconds / 60:.0f} min on {'; '.join(machines)}"
    )
    return "\n\n".join([format_table(summary, "markdown"), bullets, f"{made}."])
