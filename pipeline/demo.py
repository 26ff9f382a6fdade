"""`afterglow demo`: the same recipe over several seeds, and one table of means over them."""

import json
import logging
import sys

from pipeline import runner
from pipeline.config import Recipe
from pipeline.plan import Planned, build, resolve, select
from stages.evaluation.table import Row
from stages.report import format_table, legend, read_rows, summarise
from storage.store import Store

log = logging.getLogger(__name__)


def run_seeds(recipe: Recipe, seeds: int, store: Store, arguments: list[str]) -> dict[str, object]:
    """Run the report of each seed, then print mean and standard deviation over seeds.

    The seeds are consecutive, from the recipe's own on. Models made by `pretrain` have a seed of
    their own, so all runs share the same teacher and base.

    Args:
        recipe: The recipe of the first seed.
        seeds: Number of seeds.
        store: Where the sets live; the summary is written next to them.
        arguments: Command-line arguments that select `recipe` in another process.

    Returns:
        The reports' directories and the summary, for the last line on stdout.
    """
    reports: list[str] = []
    rows: list[list[Row]] = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        log.info("demo: seed %d", seed)
        planned = _plan(recipe.model_copy(update={"seed": seed}), store)
        runner.run_chain(runner.missing(planned, store), [*arguments, "--set", f"seed={seed}"])
        directory = planned[-1].directory(store)
        reports.append(str(directory))
        rows.append(read_rows(directory))
    summary = summarise(rows)
    text = f"{format_table(summary)}\n\n{legend(summary, recipe.report.baseline)}\n"
    sys.stdout.write(f"{seeds} seeds, mean +- standard deviation\n\n{text}")
    (store.root / f"{recipe.name}-seeds.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in summary)
    )
    return {"verb": "demo", "reports": reports, "rows": summary}


def _plan(recipe: Recipe, store: Store) -> list[Planned]:
    """All that the report needs, the report last."""
    return resolve(select(build(recipe), ["report"]), store, ready=True)
