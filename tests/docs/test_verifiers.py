"""docs/verifiers.md: every case of its tables is judged as the page says."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.config.data import Verifier
from stages.data.verifiers import Check, exact_match, open_verifier
from storage.schema import OUTCOME

PAGE = Path(__file__).parents[2] / "docs" / "verifiers.md"
NAMES = {code: name for name, code in OUTCOME.items()}


def cases(column: int) -> list[list[str]]:
    """Cells of the tables about responses whose header has `reference` in that column."""
    rows = [
        [cell.strip().removeprefix("`").removesuffix("`") for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ")
    ]
    found: list[list[str]] = []
    inside = False
    for row in rows:
        if row[0] in ("response", "outcome"):
            inside = row[column : column + 1] == ["reference"]
        elif inside:
            found.append(row)
    return found


@pytest.fixture(scope="module")
def math() -> Iterator[Check]:
    with open_verifier(Verifier(kind="math_verify")) as check:
        yield check


@pytest.mark.parametrize("row", cases(2), ids=lambda row: row[0])
def test_math_verify(row: list[str], math: Check) -> None:
    text, ended, reference, expected, _ = row
    (outcome,) = math([text], [reference or None], [ended == "limit"])
    assert NAMES[outcome] == expected


@pytest.mark.parametrize("row", cases(3), ids=lambda row: row[0])
def test_exact_match(row: list[str]) -> None:
    text, ended, extract, reference, expected = row
    (outcome,) = exact_match(extract)([text], [reference], [ended == "limit"])
    assert NAMES[outcome] == expected


def test_the_tables_are_found() -> None:
    assert len(cases(2)) > 20
    assert len(cases(3)) > 8
    assert {row[3] for row in cases(2)} == set(OUTCOME)
