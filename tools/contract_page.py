"""Write `docs/contract.md` from the legality contract in `stages.objectives`.

    python tools/contract_page.py            write the page
    python tools/contract_page.py --check    exit 1 if the page in the repository is another one

A test makes the same comparison, so the page cannot drift from the code.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from stages.config import Objective, Record
from stages.objectives.contract import guarantee
from stages.objectives.legality import KINDS, NO_TEACHER, TABLE, Guarantee
from stages.objectives.rules import RULES
from storage.errors import ConfigError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "contract.md"

INTRODUCTION = """\
# Which objective may be trained from which records

An objective trained from records that cannot carry it does not fail; it converges to something
else. Afterglow therefore holds `[train.objective]` against the manifest of the data before a model
is loaded, prints what the combination is, and stores that with the student. This page is written
by `python tools/contract_page.py` from the table the check itself uses. Every cell that claims
something has its proof in `tests/stages/objectives/test_proofs.py`: a sum over all outcomes on a
small vocabulary, of value and gradient, against the loss over the full vocabulary.

| level | meaning |
|---|---|
| exact | the objective as defined, no estimate involved |
| unbiased | its expected gradient, over the draws of record and token, is that of the full loss |
| lower bound | exact gradient of something that is never above the full loss |
| biased | neither; trainable, but not what its name says |
| refused | cannot be computed, or would train towards something else |

`+logp` marks records that keep log p of the drawn ids too (`record.logp = true`); `sequences` are
sets without a teacher. All statements are about the contexts in the data, those that pi_ref
visited, and about a first pass over them; they hold up to the rounding of what is stored (log p of
ids is float16).
"""

TEMPERATURES = """\
Divergences between the tempered distributions, teacher and student both at `objective.temperature`.
"""

PASSES = """\
A stored draw is frozen noise. `unbiased` speaks of the expectation over draws; a second pass over
the same draw adds no new one. With `record.copies = m`, pass e reads draw e mod m, and the
statement holds for the first m passes. Objectives that weigh the realised token read the same token
in every pass. The guarantee of a run says so in its note when it reads the data more often.
"""

Cells = Mapping[str, Mapping[str, Guarantee]]


def page() -> str:
    """The whole document."""
    return "\n".join(
        [
            INTRODUCTION,
            "## At the temperature of the record\n",
            _table(TABLE, _numbered(TABLE)),
            "## Reasons\n",
            _reasons(_numbered(TABLE)),
            "## Rules\n",
            _rules(),
            "## At another temperature\n",
            TEMPERATURES,
            "At `record.loss_temperature`, whose normaliser the record keeps:\n",
            _table(_cells(loss_temperature=2.0)),
            "At any other:\n",
            _table(_cells(loss_temperature=None)),
            "## More than one pass\n",
            PASSES,
        ]
    )


def _cells(loss_temperature: float | None) -> Cells:
    """What the contract says at temperature 2 of records made at 1, all else at its best."""

    def cell(row: str, kind: str) -> Guarantee:
        name, _, form = row.partition("/")
        table: dict[str, object] = {"name": name, "temperature": 2.0, "truncation": None}
        objective = Objective.model_validate(table | ({"form": form} if form else {}))
        meta: dict[str, object] = {"sampling": {"temperature": 1.0}, "full_support": True}
        if kind != NO_TEACHER:
            base, _, logp = kind.partition("+")
            fields = {"kind": base, "logp": bool(logp), "loss_temperature": loss_temperature}
            meta["record"] = Record.model_validate(fields).model_dump()
        try:
            return guarantee(objective, meta)
        except ConfigError as refusal:
            return Guarantee("refused", str(refusal))

    return {row: {kind: cell(row, kind) for kind in KINDS} for row in TABLE}


def _numbered(cells: Cells) -> dict[Guarantee, int]:
    """Distinct statements in order of appearance, from 1."""
    found = dict.fromkeys(cell for row in cells.values() for cell in row.values())
    return {cell: index + 1 for index, cell in enumerate(found)}


def _table(cells: Cells, numbers: Mapping[Guarantee, int] | None = None) -> str:
    """Markdown; with `numbers`, each cell refers to its reason."""

    def shown(cell: Guarantee) -> str:
        level = cell.level.replace("_", " ")
        return f"{level} [{numbers[cell]}]" if numbers else level

    rows = (
        _line([f"`{row}`", *(shown(own[kind]) for kind in KINDS)]) for row, own in cells.items()
    )
    header = _line(["objective", *(f"`{kind}`" for kind in KINDS)])
    return header + "|---" * (len(KINDS) + 1) + "|\n" + "".join(rows)


def _line(columns: list[str]) -> str:
    return f"| {' | '.join(columns)} |\n"


def _reasons(numbers: Mapping[Guarantee, int]) -> str:
    return _listed([f"{cell.level.replace('_', ' ')}: {cell.reason}." for cell in numbers])


def _rules() -> str:
    mixed = "A mixture is what its weakest term is; all terms share the temperature."
    return _listed([*(rule.sentence for rule in RULES), mixed])


def _listed(items: list[str]) -> str:
    return "".join(f"{index + 1}. {item}\n" for index, item in enumerate(items))


def main(arguments: list[str]) -> int:
    """Write or check the page; returns the exit code."""
    if arguments == ["--check"]:
        return 0 if PAGE.exists() and PAGE.read_text() == page() else 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
