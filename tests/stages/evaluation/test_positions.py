"""Values of held-out positions: written, read, and found again in another order."""

from pathlib import Path

import numpy as np
import pytest

from stages.evaluation.positions import (
    Collector,
    PositionValues,
    read_positions,
    write_positions,
)
from storage.errors import DataError
from storage.rows import offsets_of


def values(first: int, count: int) -> PositionValues:
    logq_T = -np.arange(first, first + count, dtype=np.float32)
    ids_TK = np.arange(first, first + count)[:, None] + np.arange(5)
    return PositionValues(logq_T, logq_T, ids_TK, np.zeros((count, 5), np.float32), logq_T * 1e6)


def test_sequences_are_found_in_any_order(tmp_path: Path) -> None:
    collected = Collector()
    collected.add(np.array([7, 3]), offsets_of([2, 1]), values(0, 3))
    collected.add(np.array([5]), offsets_of([2]), values(3, 2))
    found = collected.result()
    assert found is not None
    write_positions(tmp_path / "x.npz", found)
    back = read_positions(tmp_path / "x.npz")
    some = back.of(np.array([5, 7]))
    assert some is not None
    assert some.logq_T.tolist() == [-3.0, -4.0, 0.0, -1.0]
    assert some.ids_TK[0].tolist() == [3, 4, 5, 6, 7]
    assert some.reverse_kl_T is not None
    assert some.reverse_kl_T.tolist() == [-65504.0, -65504.0, 0.0, -65504.0]  # finite
    assert some.forward_kl_T is None
    assert back.of(np.array([5, 6])) is None
    assert back.of(np.array([8])) is None


def test_no_more_than_the_budget_is_collected() -> None:
    collected = Collector(tokens=3)
    for first in range(0, 10, 2):
        collected.add(np.array([first]), offsets_of([2]), values(first, 2))
    found = collected.result()
    assert found is not None
    assert found.seq_id_N.tolist() == [0, 2]
    assert Collector().result() is None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match=r"x\.npz: damaged.*run `evaluate` again"):
        read_positions(tmp_path / "x.npz")
