"""How sets are split into parts, and that sets which were begun otherwise are finished."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import corpus
from stages.config.corpus import FORMER_PART, Corpus
from stages.job import Job, ShardSpec
from stages.parts import split_evenly, split_parts
from storage.errors import DataError
from storage.manifest import read_manifest
from storage.sets import verify_set
from storage.stream import Stream
from tests.world import make_job, run

COUNT = 96 * 32
"""Sequences of some 40 tokens."""


def corpus_job(store: Path, **fields: Any) -> Job[Any]:
    table: dict[str, Any] = {
        "task": "addition",
        "count": COUNT,
        "tokenizer": {"kind": "characters"},
        **fields,
    }
    return make_job(store, "corpus", Corpus.model_validate(table))


def make_parts(job: Job[Any], specs: Iterable[ShardSpec]) -> None:
    with corpus.open_engine(job) as engine:
        for spec in specs:
            corpus.run_shard(job, spec, engine)


def former_split() -> list[ShardSpec]:
    """What version 0.1.0 made of the corpus: a part of each split."""
    held_out = round(0.02 * COUNT)
    return split_parts(COUNT - held_out, COUNT, FORMER_PART)


@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(0, 10**10))
def test_parts_are_even_and_hold_every_sequence_once(
    trained: int, held_out: int, tokens: int
) -> None:
    parts = split_evenly(trained, trained + held_out, tokens)
    assert [spec.index for spec in parts] == list(range(len(parts)))
    covered = [spec.first + i for spec in parts for i in range(spec.count)]
    assert covered == list(range(trained + held_out))
    for split, total in (("train", trained), ("holdout", held_out)):
        sizes = [spec.count for spec in parts if spec.split == split]
        assert sum(sizes) == total
        assert all(size > 0 for size in sizes)
        groups = [-(-size // 32) for size in sizes]
        assert max(groups, default=0) - min(groups, default=0) <= 1
        assert all(
            spec.first % 32 == (trained if split == "holdout" else 0) % 32
            for spec in parts
            if spec.split == split
        )


def sizes(trained: int, held_out: int, tokens_each: int) -> set[int]:
    total = trained + held_out
    return {spec.count for spec in split_evenly(trained, total, total * tokens_each)}


def test_parts_have_the_size_that_the_format_recommends() -> None:
    """Of 256 parts, but for sets that are small or huge."""
    assert len(split_evenly(16660, 17000, 17000 * 1124)) == 267
    assert sizes(16660, 340, 1124) == {32, 52, 64}
    assert sizes(600, 0, 50) == {600}
    assert max(sizes(10**7, 0, 1100)) * 1100 <= 2_100_000
    assert min(sizes(2048, 0, 350)) * 350 >= 20_000


def test_a_set_that_was_begun_with_other_parts_is_finished_with_them(tmp_path: Path) -> None:
    job = corpus_job(tmp_path)
    assert len(corpus.plan(job)) == 5
    make_parts(job, [former_split()[1]])
    assert corpus.plan(job) == former_split()
    manifest = run(job)
    assert [part.sequences for part in manifest.parts] == [COUNT - 61, 61]
    assert corpus.plan(job) == former_split()  # committed
    assert verify_set(job.directory) == []


def test_a_damaged_part_decides_nothing(tmp_path: Path) -> None:
    job = corpus_job(tmp_path)
    planned = corpus.plan(job)
    make_parts(job, [former_split()[0]])
    (part,) = job.directory.glob("part-*.parquet")
    part.write_bytes(part.read_bytes()[:1000])
    assert corpus.plan(job) == planned


def test_the_split_does_not_change_the_order_in_which_a_set_is_read(tmp_path: Path) -> None:
    """Sets of one key are interchangeable: the same sequences in the same row groups."""
    one, other = corpus_job(tmp_path / "one"), corpus_job(tmp_path / "other")
    make_parts(other, former_split())
    for job in (one, other):
        run(job)
    assert one.key == other.key
    assert len(read_manifest(one.directory).parts) == 5
    assert len(read_manifest(other.directory).parts) == 2
    for split in ("train", "holdout"):
        orders = []
        for job in (one, other):
            with Stream(job.directory, seed=3, batch_size=50, split=split) as stream:
                orders.append(np.concatenate([next(stream).seq_id for _ in range(5)]).tolist())
        assert orders[0] == orders[1]


def test_parts_of_two_splits_make_no_set(tmp_path: Path) -> None:
    job = corpus_job(tmp_path)
    even = corpus.plan(job)
    make_parts(job, [even[0], former_split()[1], *even[2:]])
    with pytest.raises(DataError, match="two versions of Afterglow split this set differently"):
        run(job)
