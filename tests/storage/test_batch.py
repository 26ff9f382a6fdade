"""`Batch`: selection, cutting and packing lose and invent nothing."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.batch import Batch
from storage.codec import stored, to_batch
from storage.rows import Rows
from tests.storage.make import KINDS, meta_of, random_rows, sequence

META = meta_of("head_tail")
ROWS = stored(random_rows(META, 12))
BATCH = to_batch(ROWS, META)
FIELDS = tuple(Batch.__dataclass_fields__)


def _equal(a: Batch, b: Batch) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in FIELDS]
    return all(
        (x is None and y is None)
        or (x is not None and y is not None and x.dtype == y.dtype and x.tobytes() == y.tobytes())
        for x, y in pairs
    )


@pytest.mark.parametrize("kind", KINDS)
@given(indices=st.lists(st.integers(0, 5)))
@settings(deadline=None)
def test_selecting_commutes_with_decoding(kind: str, indices: list[int]) -> None:
    meta = meta_of(kind)
    rows = stored(random_rows(meta, 6))
    assert _equal(to_batch(rows, meta).select(indices), to_batch(rows.take(indices), meta))


@pytest.mark.parametrize("kind", KINDS)
@given(cuts=st.lists(st.integers(0, 6), max_size=3))
@settings(deadline=None)
def test_joining_commutes_with_decoding(kind: str, cuts: list[int]) -> None:
    meta = meta_of(kind)
    rows = stored(random_rows(meta, 6))
    edges = [0, *sorted(cuts), 6]
    pieces = [to_batch(rows.slice(low, high), meta) for low, high in pairwise(edges)]
    assert _equal(Batch.concat(pieces), to_batch(rows, meta))


@given(st.integers(1, 200))
def test_microbatches_cover_each_sequence_once_within_the_budget(budget: int) -> None:
    batches = BATCH.microbatches(budget)
    seen = np.concatenate([batch.seq_id for batch in batches])
    assert sorted(seen) == sorted(BATCH.seq_id)
    assert sum(batch.tokens for batch in batches) == BATCH.tokens
    for batch in batches:
        assert len(batch) == 1 or len(batch) * batch.lengths.max() <= budget
    lengths = [length for batch in batches for length in batch.lengths]
    assert lengths == sorted(lengths, reverse=True)


@given(st.integers(1, 20))
def test_truncating_keeps_whole_positions_from_the_start(longest: int) -> None:
    cut = BATCH.truncate(longest)
    assert len(cut) == len(BATCH)
    for i in range(len(BATCH)):
        before, after = BATCH.select([i]), cut.select([i])
        kept = after.tokens
        assert kept == max(0, min(before.tokens, longest - len(before.prompt)))
        assert after.prompt.tolist() == before.prompt.tolist()
        assert after.tok.tolist() == before.tok[:kept].tolist()
        assert after.ids.tolist() == before.ids[: before.entry_off[kept]].tolist()
        assert after.rest.tolist() == before.rest[:kept].tolist()


def test_truncating_to_enough_is_free() -> None:
    assert BATCH.truncate(int(BATCH.lengths.max())) is BATCH


def test_sequences_without_positions_are_left_out_of_microbatches() -> None:
    rng = np.random.default_rng(0)
    shapes = [(9, 2), (3, 4), (12, 1)]
    rows = Rows.from_sequences(sequence(rng, META, i, *shape) for i, shape in enumerate(shapes))
    cut = to_batch(stored(rows), META).truncate(8)
    assert np.diff(cut.tok_off).tolist() == [0, 4, 0]
    assert [batch.seq_id.tolist() for batch in cut.microbatches(8)] == [[1]]
