"""The page of a report: whole by itself, well-formed, and about every set it descends from."""

import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.config.evaluation import Report
from stages.data.prompts import PromptReport
from stages.job import Input, Job
from stages.reporting import charts
from stages.reporting.page import ancestors, page
from storage.manifest import (
    FILE_NAME,
    SetIdentity,
    build_manifest,
    read_manifest,
    write_manifest,
)
from storage.store import Store
from tests.world import make_job

SETS = {
    "corpus": ("corpus", {}),
    "sft": ("sft", {"sequences": "corpus"}),
    "train.<b>": ("train", {"init": "sft", "data": "corpus"}),
    "evaluate.<b>": ("evaluate", {"model": "train.<b>", "data": "corpus"}),
}
"""By name: stage, and what is read by role. One name would be markup if it were not escaped."""
LINES = [
    {"step": 10, "loss": 2.0, "grad_norm": 1.0, "drift": 0.125, "drift_teacher": 0.875},
    {"step": 20, "loss": 0.5, "grad_norm": None},
]


def key(name: str) -> str:
    return f"{list(SETS).index(name) + 1:064x}"[::-1]


@pytest.fixture
def job(tmp_path: Path) -> Job[Report]:
    """A report over one evaluation, with all that it descends from in the store."""
    store = Store(tmp_path)
    for name, (stage, reads) in SETS.items():
        directory = tmp_path / store.path(stage, key(name)).name
        directory.mkdir()
        inputs = {role: {"key": key(source)} for role, source in reads.items()}
        meta = {"outcomes": {"right": 1234, "cut": 5}, "skipped": 7} if name == "corpus" else {}
        kind = "sequences" if stage == "corpus" else "metrics"
        identity = SetIdentity(stage, 1, key(name), name, kind, {"inputs": inputs}, meta=meta)
        manifest = build_manifest(directory, identity)
        write_manifest(directory, manifest)
        (directory / "provenance.json").write_text(
            json.dumps({"cost": {"seconds": 1.5, "sequences": 0, "tokens": 1234, "bytes": 5923}})
        )
        if stage == "train":
            text = "".join(json.dumps(line) + "\n" for line in LINES)
            (directory / "metrics.jsonl").write_text(text)
    evaluation = Input(str(store.path("evaluate", key("evaluate.<b>"))), key("evaluate.<b>"))
    return make_job(tmp_path, "report", Report(), {"<b>": evaluation})


class Reader(HTMLParser):
    """Collects text and checks that what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser, as the others are."""
        if tag != "meta":
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opened and closed at once."""

    def handle_endtag(self, tag: str) -> None:
        """Nothing is closed that was not opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """What a person sees."""
        self.text.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_holds_everything_and_needs_nothing(job: Job[Report]) -> None:
    rows = [{"model": "<b>", "accuracy": 0.875, "accuracy_se": 0.01, "greedy": 0.9}]
    text = page(job, rows, ["a & b"], {"<b>": "unbiased: because"})
    reader = read(text)
    shown = "\n".join(reader.text)
    for word in ("87.5 ± 1.0", "90.0", "a & b", ": unbiased: because", "1,234"):
        assert word in shown
    for name in SETS:
        assert f"{name} ({key(name)[:12]})" in shown
    assert shown.count("<b>") >= 5  # every time as text
    assert reader.links == []
    assert "default-src 'none'" in text  # the browser is told to load nothing
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "6.0" in shown  # seconds of four sets together
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(svg)
    assert text.count("<svg") == 4  # accuracy, loss, drift, gradient
    drift = html.unescape(re.findall('data-curves="(.*?)"', text)[1])
    assert [(one["name"], one["points"]) for one in json.loads(drift)["series"]] == [
        ("<b>", [[10.0, 0.125]]),
        ("the teacher", [[10.0, 0.875]]),
    ]


def test_bytes_are_also_given_for_a_token_of_data(job: Job[Report]) -> None:
    reader = Reader()
    reader.feed(page(job, [{"model": "<b>"}], [], {}))
    text = " ".join(" ".join(reader.text).split())
    assert f"corpus ({key('corpus')[:12]}) 1.5 1,234 5,923 4.8 sft" in text


def test_outcomes_and_skipped_sequences_are_counted(job: Job[Report]) -> None:
    reader = Reader()
    reader.feed(page(job, [{"model": "<b>"}], [], {}))
    text = " ".join(reader.text)
    assert "set sequences right cut skipped corpus 0 1,234 5 7" in " ".join(text.split())


def test_every_set_comes_once_and_after_what_it_reads(job: Job[Report]) -> None:
    names = [one.manifest.name for one in ancestors(job)]
    assert sorted(names) == sorted(SETS)
    for name, (_, reads) in SETS.items():
        assert all(names.index(source) < names.index(name) for source in reads.values())


def test_what_is_not_in_the_store_is_left_out(job: Job[Report]) -> None:
    for path in job.store.root.glob("corpus-*/manifest.json"):
        path.unlink()
    assert "corpus" not in [one.manifest.name for one in ancestors(job)]
    read(page(job, [{"model": "x"}], [], {}))


def test_rows_that_were_dropped_are_counted(job: Job[Report]) -> None:
    """Models that were evaluated on the same rows share a line; what occurs nowhere has none."""
    old = {"rows": 9, "kept": 8, "duplicates": 1, "empty": 0}  # as sets of earlier versions say it
    new = PromptReport(5000, 4990, over_long=3, without_answer=7, answers=4990).to_json()
    for name, report in (("corpus", old), ("evaluate.<b>", new)):
        directory = Path(str(job.store.path(SETS[name][0], key(name))))
        manifest = read_manifest(directory)
        (directory / FILE_NAME).unlink()
        write_manifest(directory, replace(manifest, meta={"prompts": report}))
    shown = read(page(job, [{"model": "x"}], [], {})).text
    assert "dropped: over-long" in shown
    assert "dropped: empty" not in shown
    start = shown.index("rows read")
    assert shown[shown.index("corpus", start) :][:5] == ["corpus", "9", "8", "1", "evaluate"]
    assert shown[shown.index("evaluate", start) :][1:6] == ["5,000", "4,990", "4,990", "0", "3"]


finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(
    st.dictionaries(st.text("ab<&'\"", max_size=3), st.lists(st.tuples(finite, finite), max_size=5))
)
def test_curves_of_anything_stay_inside_the_picture(values: dict) -> None:
    drawn = charts.curves("t", values)
    if not any(values.values()):
        assert drawn == ""
        return
    (picture,) = ElementTree.fromstring(drawn)
    lines = picture.findall("polyline")
    assert len(lines) == sum(bool(points) for points in values.values())
    top = float(picture.attrib["height"])
    for line in lines:
        for place in line.attrib["points"].split():
            assert 0 <= float(place.split(",")[1]) <= top


@given(st.floats(-1e5, 1e5), st.floats(1e-3, 1e5))
def test_ticks_are_few_round_and_inside(low: float, span: float) -> None:
    ticks = charts.Axis(low, low + span, 0, 1).ticks()
    assert 1 <= len(ticks) <= 11
    assert all(low - span / 100 <= tick <= low + span * 1.01 for tick in ticks)
