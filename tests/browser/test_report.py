"""The report's page in a real Chromium: curves that can be read, colours, no request."""

from pathlib import Path

import pytest

from stages.reporting.charts import curves
from stages.reporting.diagrams import Point, by_group, intervals
from stages.reporting.html import document, section
from tests.browser.conftest import Open

pytestmark = pytest.mark.browser


@pytest.fixture
def file(tmp_path: Path) -> Path:
    runs = {"a <b>": [(10.0, 1.0), (20.0, 0.5)], "other": [(20.0, 0.25), (40.0, 0.125)]}
    body = section("Training", [curves("loss", runs)])
    body += [intervals("accuracy", {"a": {"sampled": Point(50.0, 5.0)}})]
    body += [by_group("by difficulty", ["hard"], {"a": [Point(50.0, 5.0)]})]
    path = tmp_path / "report.html"
    path.write_text(document("Report", body))
    return path


def test_curves_are_read_with_the_pointer_and_with_the_keys(show: Open, file: Path) -> None:
    page = show(file)
    chart = page.locator("svg[data-curves]")
    box = chart.bounding_box()
    reading = page.locator("#reading")
    assert not reading.is_visible()
    page.mouse.move(box["x"] + 60, box["y"] + 100)  # at the left end
    assert reading.inner_text().split() == ["step", "10", "a", "<b>", "1.000", "other", "-"]
    page.mouse.move(0, 0)
    assert not reading.is_visible()
    chart.focus()
    page.keyboard.press("End")
    assert reading.inner_text().split()[:2] == ["step", "40"]
    page.keyboard.press("ArrowLeft")
    assert reading.inner_text().split() == ["step", "20", "a", "<b>", "0.5000", "other", "0.2500"]
    page.keyboard.press("Escape")
    assert not reading.is_visible()


def test_colours_follow_the_system_until_the_button_says_otherwise(show: Open, file: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = show(file, "light"), show(file, "dark")
    white, black = light.evaluate(paper), dark.evaluate(paper)
    assert white != black
    button = dark.get_by_role("button")
    button.click()
    assert dark.evaluate(paper) == white
    button.press("Enter")
    assert dark.evaluate(paper) == black
    assert button.inner_text() == "colours: dark"
