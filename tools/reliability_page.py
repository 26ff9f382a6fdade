"""Write the figures of `docs/reliability.md` from `docs/reliability.json`.

    python tools/reliability_page.py [FILE...]

The files are what `tests.faults.recovery` and `tests.faults.soak` print, one JSON object a line;
they are taken into the figures first. `make test-faults` and `make soak` call this.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pipeline.planning.document import replace_block

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, FIGURES = DOCS / "reliability.md", DOCS / "reliability.json"


def merge(figures: dict[str, Any], line: dict[str, Any]) -> None:
    """Take one result into the figures."""
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
        "| stage | disturbance | times disturbed | sets compared at the end, equal | not equal "
        "| finished parts found again | of these made again |\n|---|---|---|---|---|---|---|"
    )
    return "\n".join([head, *rows])


def _fuzz(found: dict[str, Any]) -> str:
    return (
        f"Fuzz, {found['minutes']:g} minutes: {found['parts tried']:,} spoilt parts, of which "
        f"{found['parts refused']:,} were refused by name and the others read as they were "
        f"written; {found['manifests tried']:,} spoilt manifests, of which "
        f"{found['manifests refused']:,} were refused and the others read as they were written."
    )


def _soak(found: dict[str, Any]) -> str:
    names = [name for name in found["first"] if name != "rounds"]
    rows = [
        f"| {name.replace('_', ' ')} | {found['first'][name]} | {found['last'][name]} |"
        for name in names
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
