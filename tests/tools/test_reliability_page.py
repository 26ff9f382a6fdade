"""The figures on the page are those of the file."""

import json

from pipeline.planning.document import BEGIN, END
from tools import reliability_page as page


def test_the_page_shows_the_figures() -> None:
    figures = json.loads(page.FIGURES.read_text())
    assert f"{BEGIN}\n{page.text(figures)}\n{END}" in page.PAGE.read_text()


def test_results_are_merged() -> None:
    row = {"disturbed": 3, "recovered": 2, "lost": 0}
    round_ = {"rounds": 3, "resident_mib": 500}
    figures: dict[str, object] = {}
    page.merge(figures, {"corpus": {"full disk": row}})
    page.merge(figures, {"minutes": 30.0, "first": round_, "last": round_, "grown": {}})
    found = page.text(figures)
    assert "| corpus | full disk | 3 | 2 | 0 |  |  |" in found
    assert "| soak of 30 minutes | after round 3 | after round 3 |" in found
    assert "| resident MiB | 500 | 500 |" in found
