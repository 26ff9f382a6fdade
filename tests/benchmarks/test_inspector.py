"""The set that is repeated, and the row of a page."""

from pathlib import Path

import numpy as np

from benchmarks.inspector import HEADER, PAGE, Figures, done, page, repeat
from storage.manifest import read_manifest
from storage.rows import Rows
from storage.sets import verify_set
from tests.storage.make import meta_of, random_rows, rows_of, write_parts


def test_a_repeated_set_has_the_same_sequences_under_further_numbers(tmp_path: Path) -> None:
    meta = meta_of("head_tail", vocab_size=50)
    parts = [(random_rows(meta, 5), "train"), (random_rows(meta, 2, first=5), "holdout")]
    write_parts(tmp_path / "one", meta, parts)
    repeat(tmp_path / "one", tmp_path / "many", 20)
    assert verify_set(tmp_path / "many") == []
    manifest = read_manifest(tmp_path / "many")
    assert (manifest.totals.sequences, manifest.key) == (21, read_manifest(tmp_path / "one").key)
    one, many = (rows_of(tmp_path / name) for name in ("one", "many"))
    assert len(np.unique(many["seq_id"])) == 21
    third: Rows = many.slice(14, 21)
    assert all(np.array_equal(third[name], one[name]) for name in one.columns if name != "seq_id")
    assert len(rows_of(tmp_path / "many", "holdout")) == 6


def test_the_page_has_a_row_for_each_set() -> None:
    sizes = (100_000, 3_300_000, 41.4, 1.5e9, 7_500_000)
    row = Figures("demo", "repeated", *sizes, 0.08, 1.24, 80, 20, 18, 9e7, "a machine")
    assert len(row.cells()) == len(HEADER)
    text = page([row])
    assert (
        "| demo, repeated | 100,000 | 3,300,000 | 41 s, 1.5 GB | 7.5 MB | 0.08 s | 1.24 s |" in text
    )
    assert text.startswith("`python -m benchmarks.inspector demo`, on a machine.")


def test_the_page_shows_the_figures_that_are_kept_beside_it() -> None:
    assert page(done()) in PAGE.read_text()
