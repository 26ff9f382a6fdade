"""Sets made for the benchmarks are whole sets, and weighed with all that belongs to a record."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.generator import SETS, Teacher, small_world
from benchmarks.packed import write_both
from benchmarks.records import counts_of, drawn
from benchmarks.sources import Synthetic
from stages.config.record_kinds import Counts, HeadTail
from storage.parquet.reader import column_bytes
from storage.schema import column_names
from storage.sets import position_bytes
from storage.shard import read_rows

BESIDE = column_names("records", {"kind": "sampled"}, 0, True)


@pytest.mark.parametrize("kind", ["counts", "head_tail"])
def test_both_layouts_hold_the_same_and_weigh_what_is_not_beside_the_record(
    tmp_path: Path, kind: str
) -> None:
    of = small_world()
    if kind == "counts":
        record = Counts(sampler="multinomial")
        data = counts_of(Teacher(SETS["r12"], 1, of), 2000)
    else:
        record = HeadTail(candidates=0)
        data = drawn(Synthetic("r12", of), 2000, record)
    paths = write_both(tmp_path, data, record, len(of.unigram_V))
    for one, other in zip(*(read_rows(path) for path in paths.values()), strict=True):
        assert one.columns.keys() == other.columns.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one.columns)
    for path in paths.values():
        own = sum(size for name, size in column_bytes(path).items() if name not in BESIDE)
        assert position_bytes(path.parent).record == pytest.approx(own / 2000)
    packed, opened = (position_bytes(paths[name].parent) for name in ("packed", "open"))
    assert packed.record < opened.record
