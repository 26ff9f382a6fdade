"""The report's page in a real Chromium: curves that can be read, colours, no request."""

from pathlib import Path

import pytest

from stages.reporting.charts import curves
from stages.reporting.diagrams import Point, by_group, calibration, intervals
from stages.reporting.html import document, section
from tests.browser.conftest import Open

pytestmark = pytest.mark.browser


@pytest.fixture
def file(tmp_path: Path) -> Path:
    runs = {"a <b>": [(10.0, 1.0), (20.0, 0.5)], "other": [(20.0, 0.25), (40.0, 0.125)]}
    body = section("Training", [curves("loss", runs)])
    body += [intervals("accuracy", {"a": {"sampled": Point(50.0, 5.0)}})]
    body += [by_group("by difficulty", ["hard"], {"a": [Point(50.0, 5.0)]})]
    bins = [{"count": 10.0, "confidence": at, "truth": at / 2} for at in (0.25, 0.75)]
    body += [calibration("a, calibration", bins, "hits")]
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


def test_marks_of_diagrams_are_read_with_the_pointer_and_with_the_keys(
    show: Open, file: Path
) -> None:
    page = show(file)
    reading = page.locator("#reading")
    diagram = page.locator('svg[aria-label="a, calibration"]')
    marks = diagram.locator("path[transform]")
    marks.nth(0).scroll_into_view_if_needed()
    box = marks.nth(0).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 4, box["y"] + box["height"] / 2)
    assert reading.inner_text() == "confidence 0.250, hits 0.125, 10 tokens"
    page.mouse.move(0, 0)
    assert not reading.is_visible()
    diagram.focus()
    page.keyboard.press("End")
    assert reading.inner_text().startswith("confidence 0.750")
    page.keyboard.press("ArrowLeft")
    assert reading.inner_text().startswith("confidence 0.250")
    page.keyboard.press("Tab")
    assert not reading.is_visible()
    for name in ("accuracy", "by difficulty"):
        page.locator(f'svg[aria-label="{name}"]').focus()
        page.keyboard.press("Home")
        assert "50 ± 10" in reading.inner_text()


def test_a_narrow_page_does_not_scroll_sideways_and_its_charts_stay_large_enough_to_read(
    show: Open, file: Path
) -> None:
    page = show(file, width=375)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    text = page.locator("svg text").first.bounding_box()
    assert text["height"] > 10
