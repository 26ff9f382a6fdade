"""Diagrams: intervals where they belong, nothing outside the picture, markup stays text."""

import re
from xml.etree import ElementTree

from stages.reporting.charts import COLOURS
from stages.reporting.diagrams import Point, by_group, calibration, intervals


def test_an_interval_is_two_standard_errors_to_each_side() -> None:
    drawn = intervals(
        "accuracy", {"a": {"sampled": Point(50.0, 5.0)}, "b": {"sampled": Point(100)}}
    )
    (root,) = ElementTree.fromstring(drawn)
    marks = [
        float(one.attrib["transform"].partition("(")[2].split()[0]) for one in root.findall("path")
    ]
    low, high = (
        (float(line.attrib["x1"]), float(line.attrib["x2"]))
        for line in root.findall("line")
        if line.attrib.get("stroke-width")
    )
    scale = (marks[1] - marks[0]) / 50.0
    assert abs(marks[0] - 10 * scale - low[0]) < 0.2
    assert abs(marks[0] + 10 * scale - low[1]) < 0.2
    assert high[0] == high[1]  # no error is known
    assert intervals("accuracy", {}) == ""


def test_names_of_models_are_text() -> None:
    evil = '</text><script>"&'
    for drawn in (
        intervals(evil, {evil: {evil: Point(1.0, 0.1, evil)}}),
        by_group(evil, [evil], {evil: [Point(1.0, 0.1, evil)]}),
        calibration(evil, [{"count": 3, "confidence": 0.5, "truth": 0.4}], evil),
    ):
        assert "<script" not in drawn
        ElementTree.fromstring(drawn)


def test_an_empty_group_has_no_mark() -> None:
    drawn = by_group("t", ["hard", "easy"], {"a": [None, Point(50.0)], "b": [None, Point(60.0)]})
    shown = re.findall(r"<title>(.*?)</title>", drawn)
    assert shown == ["a, easy: 50", "b, easy: 60"]
    assert by_group("t", ["hard"], {"a": [None]}) == ""


def test_every_colour_can_be_seen_on_a_light_and_on_a_dark_page() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for paper in ("#ffffff", "#14171b"):
        for colour in COLOURS:
            low, high = sorted((luminance(colour), luminance(paper)))
            assert (high + 0.05) / (low + 0.05) >= 3, (colour, paper)  # WCAG 2.2, 1.4.11


def test_a_bin_of_few_tokens_has_a_hollow_mark() -> None:
    bins = [{"count": count, "confidence": 0.5, "truth": 0.2} for count in (5.0, 995.0)]
    (root,) = ElementTree.fromstring(calibration("model", bins, "hits"))
    few, many = (one for one in root.findall("path") if "transform" in one.attrib)
    assert (few.attrib["fill"], few.attrib["stroke"]) == ("none", many.attrib["fill"])
