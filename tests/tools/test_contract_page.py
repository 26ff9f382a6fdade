"""The documented contract is the one in the code."""

from pathlib import Path

import pytest

from stages.objectives.contract import COLUMNS, all_rows
from tools import contract_page


def test_the_committed_page_is_what_the_code_says() -> None:
    assert contract_page.PAGE.read_text() == contract_page.page(), (
        "run `python tools/contract_page.py` and commit docs/contract.md"
    )


def test_every_cell_is_on_the_page() -> None:
    lines = contract_page.page().partition("## Every kind of record")[2].splitlines()
    for row, cells in all_rows().items():
        first = next(line for line in lines if line.startswith(f"| `{row}`"))
        shown = [cell.strip().split(" [")[0] for cell in first.strip("|").split("|")[1:]]
        assert shown == [cells[kind].level.replace("_", " ") for kind in COLUMNS]


def test_check_notices_another_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract_page, "PAGE", tmp_path / "docs" / "contract.md")
    assert contract_page.main(["--check"]) == 1
    assert contract_page.main([]) == 0
    assert contract_page.main(["--check"]) == 0
    contract_page.PAGE.write_text(contract_page.page().replace("biased", "exact"))
    assert contract_page.main(["--check"]) == 1
