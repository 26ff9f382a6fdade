"""`afterglow seeds`: the same recipe over several seeds, and one table of means over them."""

import json
import logging
import sys
from pathlib import Path

from pipeline import ledger
from pipeline.execution import runner
from pipeline.execution.chain import Chain
from pipeline.planning.config import Recipe
from pipeline.planning.document import block_for, replace_block, surroundings
from pipeline.planning.nodes import build, select
from pipeline.planning.plan import Planned, resolve
from pipeline.preflight.finding import log_notes, refuse
from pipeline.preflight.gate import preflight
from stages.config.evaluation import Report
from stages.reporting.table import find_baseline, format_table, legend, read_rows, summarise
from storage.files.place import Place
from storage.store import Store

log = logging.getLogger(__name__)


def run_seeds(
    recipe: Recipe, seeds: int, store: Store, arguments: list[str], into: Path | None = None
) -> dict[str, object]:
    """Run the report of each seed, then print mean and standard deviation over seeds.

    The seeds are consecutive, starting with the recipe's own. Models made by `pretrain` have a
    seed of their own, so all runs share them.

    Args:
        recipe: The recipe of the first seed.
        seeds: Number of seeds.
        store: Where the sets live; the summary is written next to them.
        arguments: Command-line arguments that select `recipe` in another process.
        into: A Markdown file whose generated block, that of the recipe's name if it has one, is
            replaced by the table.

    Returns:
        The reports' directories and the summary, for the last line on stdout.

    Raises:
        StageFailed: a stage failed.
        DataError: `into` has no generated block.
    """
    block = "" if into is None else block_for(into, recipe.name)
    if into is not None:
        surroundings(into, block)  # an error now, not after the work
    planned: list[Planned] = []
    reports: list[Place] = []
    sets: set[Place] = set()
    for seed in range(recipe.seed, recipe.seed + seeds):
        log.info("%s: seed %d", recipe.name, seed)
        seeded = recipe.model_copy(update={"seed": seed})
        planned = resolve(select(build(seeded), ["report"]), store, ready=True)
        todo = runner.needed(planned[-1:], planned, store)
        findings = refuse(preflight(todo, store, beside=planned, ready=True))
        if seed == recipe.seed:
            log_notes(findings)
        Chain(seeded, [*arguments, "--set", f"seed={seed}"]).run(todo)
        sets |= {one.directory(store) for one in planned}
        reports.append(planned[-1].directory(store))
    rows = summarise([read_rows(report) for report in reports])
    headline = f"{seeds} seeds, mean +- standard deviation" if seeds > 1 else "one seed"
    table = planned[-1].node.config
    assert isinstance(table, Report), "the report is the last node"
    about = legend(rows, find_baseline(rows, table.baseline), table.baselines)
    sys.stdout.write("\n".join([headline, "", format_table(rows), "", *about, ""]))
    (store.root / f"{recipe.name}-seeds.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    if into is not None:
        bullets = "\n".join(f"- {line}" for line in about)
        minutes = sum(float(ledger.cost(made).get("seconds", 0.0)) for made in sets) / 60
        machines = "; ".join(sorted({ledger.machine(made) for made in sets}))
        cost = f"{headline}; {len(sets)} sets in {minutes:.0f} min on {machines}."
        text = f"{format_table(rows, 'markdown')}\n\n{bullets}\n\n{cost}"
        replace_block(into, text, block)
    return {"verb": "seeds", "reports": [str(report) for report in reports], "rows": rows}
