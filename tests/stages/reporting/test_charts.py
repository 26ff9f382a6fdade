"""The charts of the report: what a person sees of few and of many runs."""

import re

from stages.reporting.charts import curves


def test_a_run_with_one_line_of_metrics_is_seen() -> None:
    drawn = curves("loss", {"one": [(40.0, 0.5)], "other": [(20.0, 0.7), (40.0, 0.4)]})
    (dot,) = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)
    (line,) = re.findall(r'points="([^" ]+) ([^" ]+)"', drawn)
    assert dot[0] == line[1].split(",")[0]  # both end at step 40
    assert curves("loss", {"one": []}) == ""


def test_many_students_have_colours_and_places_of_their_own() -> None:
    runs = {f"student {i}": [(0.0, 1.0), (1.0, float(i))] for i in range(40)}
    drawn = curves("loss", runs)
    strokes = re.findall(r'fill="none" stroke="([^"]+)"', drawn)
    assert len(set(strokes)) == len(strokes) == 40
    (height,) = re.findall(r'viewBox="0 0 \d+ (\d+)"', drawn)
    names = [float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="start"', drawn)]
    assert max(names) < float(height)
