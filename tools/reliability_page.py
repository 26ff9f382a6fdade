"""Write the figures of `docs/reliability.md` from `docs/reliability.json`.

    python tools/reliability_page.py [FILE...]

FILE holds what `tests.faults.recovery` and `tests.faults.soak` print, one JSON object a line; it is
merged into the figures first. `make test-faults` and `make soak` call this.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pipeline.planning.document import replace_block

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, FIGURES = DOCS / "reliability.md", DOCS / "reliability.json"

_SOAK = {
    "resident_mib": "resident MiB",
    "descriptors": "file descriptors",
    "children": "child processes",
}
"""Figures of the soak that the page calls otherwise."""


def merge(figures: dict[str, Any], line: dict[str, Any]) -> None:
    """Merge one result into the figures."""
    if "first" in line:
        figures["soak"] = line
    else:
        figures.setdefault("recovery", {}).update(line)


def text(figures: dict[str, Any]) -> str:
    """The generated part of the page."""
    blocks = [_recovery(figures.get("recovery", {}))]
    if "fuzz" in figures:
        blocks.append(_fuzz(figures["fuzz"]))
    if "soak" in figures:
        blocks.append(_soak(figures["soak"]))
    return "\n\n".join(blocks)


def _recovery(found: dict[str, dict[str, dict[str, int]]]) -> str:
    rows = [
        f"| {stage} | {disturbance} | {row['disturbed']} | {row['recovered']} | {row['lost']} "
        f"| {row.get('parts kept', '')} | {row.get('parts made again', '')} |"
        for stage, by_kind in found.items()
        for disturbance, row in by_kind.items()
    ]
    head = (
        "| stage | disturbance | times disturbed | final sets equal | not equal "
        "| finished parts kept | of these made again |\n|---|---|---|---|---|---|---|"
    )
    return "\n".join([head, *rows])


def _fuzz(found: dict[str, Any]) -> str:
    return (
        f"Fuzzing, {found['minutes']:g} minutes: of {found['parts tried']:,} corrupted parts, "
        f"{found['parts refused']:,} gave an error that names the file and the others read as "
        f"written; of {found['manifests tried']:,} corrupted manifests, "
        f"{found['manifests refused']:,} gave an error and the others read as written."
    )


def _soak(found: dict[str, Any]) -> str:
    rows = [
        f"| {_SOAK.get(name, name.replace('_', ' '))} | {found['first'][name]} "
        f"| {found['last'][name]} |"
        for name in found["first"]
        if name != "rounds"
    ]
    head = (
        f"| soak of {found['minutes']:g} minutes | after round {found['first']['rounds']} "
        f"| after round {found['last']['rounds']} |\n|---|---|---|"
    )
    return "\n".join([head, *rows])


def main(files: list[str]) -> None:
    """See the module."""
    figures: dict[str, Any] = json.loads(FIGURES.read_text())
    for file in files:
        for line in Path(file).read_text().splitlines():
            merge(figures, json.loads(line))
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    replace_block(PAGE, text(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
