"""How far the demo's starts lie apart: accuracy of the student after SFT, over seeds.

    python -m benchmarks.starts [--seeds 5] [--set KEY=VALUE ...] [--into docs/lab.md]

Each seed has its own initialisation of the student, answers of the teacher and order of the data.
All of it is made twice: with the widest instructions of the processor, and held to AVX2, which adds
the same numbers in another order. A start that hangs on luck shows it in both.
"""

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.__main__ import memory, processor
from benchmarks.harness import Table, markdown
from benchmarks.teachers import make
from pipeline.planning.document import replace_block, surroundings

log = logging.getLogger("benchmarks")

INSTRUCTIONS: Mapping[str, Mapping[str, str]] = {
    "widest": {},
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
}
"""Variables that hold torch, oneDNN, MKL and OpenBLAS to instructions."""

_ONLY_ACCURACY = ("evaluate.records=false", "evaluate.greedy=false", "evaluate.teacher=false")


def main() -> None:
    """Make the starts that are not in the store, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.starts", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--into", type=Path, help="a page whose generated block is replaced")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    if options.into is not None:
        surroundings(options.into)  # an error now, not after the work
    began = time.monotonic()
    found = {name: starts(name, options.seeds, options.set, options.store) for name in INSTRUCTIONS}
    text = page(found, time.monotonic() - began, options.into)
    sys.stdout.write(text)
    if options.into is not None:
        replace_block(options.into, text)


def starts(instructions: str, seeds: int, overrides: Sequence[str], store: Path) -> list[float]:
    """Accuracy at temperature 1 of the student after SFT, in percent, for each seed.

    The instructions are no part of a key, so each kind has a store of its own beside `store`.
    """
    own = store.with_name(f"{store.name}-starts-{instructions.lower()}")
    found: list[float] = []
    for seed in range(seeds):
        fields = (f"seed={seed}", f"pretrain.base.seed={seed}", *_ONLY_ACCURACY, *overrides)
        sets = make(
            own,
            ["evaluate.sft"],
            "--recipe",
            "demo",
            *(word for field in fields for word in ("--set", field)),
            environment=INSTRUCTIONS[instructions],
        )
        figures = json.loads((sets["evaluate.sft"] / "evaluation.json").read_text())
        found.append(100 * figures["metrics"]["accuracy"])
        log.info("%s, seed %d: %.1f %%", instructions, seed, found[-1])
    return found


def page(found: Mapping[str, list[float]], seconds: float, into: Path | None) -> str:
    """The table, and where it was measured.

    Args:
        found: Accuracy of each seed, by instructions.
        seconds: What it took; starts that were in the store took none.
        into: The page, named in the command.
    """
    seeds = len(next(iter(found.values())))
    header = ("instructions", *(f"seed {seed}" for seed in range(seeds)), "mean", "sd")
    rows = [
        (
            name,
            *(f"{value:.1f}" for value in values),
            f"{statistics.fmean(values):.1f}",
            f"{statistics.stdev(values):.1f}" if seeds > 1 else "",
        )
        for name, values in found.items()
    ]
    command = f"python -m benchmarks.starts --seeds {seeds}" + (f" --into {into}" if into else "")
    return (
        f"`{command}`: {seconds / 60:.0f} min on {processor()}, {memory()}, "
        f"{time.strftime('%Y-%m-%d', time.gmtime())}.\n\n{markdown(Table('', header, rows))}"
    )


if __name__ == "__main__":
    main()
