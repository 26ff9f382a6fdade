"""The stream: the same batches for any number of ranks, any prefetch and any interruption."""

import gc
import itertools
import json
import threading
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.batch import Batch
from storage.codec import to_batch
from storage.errors import ConfigError, DataError
from storage.manifest import Manifest, read_manifest, write_manifest
from storage.rows import Rows
from storage.shard import PartWriter, read_rows
from storage.stream import Stream, read_split
from tests.storage.make import KINDS, meta_of, random_rows, write_set

META = meta_of("head_tail")
SIZES = {
    0: (70, "train"),
    1: (9, "holdout"),
    2: (33, "train"),
    3: (45, "train"),
    4: (40, "holdout"),
}
TRAIN = [*range(70), *range(79, 157)]
HOLDOUT = [*range(70, 79), *range(157, 197)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("set")
    write_set(path, META, SIZES)
    return path


def _take(stream: Stream, count: int) -> list[Batch]:
    return list(itertools.islice(stream, count))


def _bytes(batch: Batch) -> list[bytes | None]:
    values = [getattr(batch, name) for name in Batch.__dataclass_fields__]
    return [None if value is None else value.tobytes() for value in values]


def _ids(batches: list[Batch]) -> list[int]:
    return [int(seq_id) for batch in batches for seq_id in batch.seq_id]


@pytest.mark.parametrize("split", ["train", "holdout"])
def test_an_epoch_covers_the_split_once(directory: Path, split: str) -> None:
    expected = TRAIN if split == "train" else HOLDOUT
    with Stream(directory, seed=1, batch_size=len(expected), split=split) as stream:
        assert stream.sequences == len(expected)
        assert stream.steps_per_epoch == 1.0
        first, second = _take(stream, 2)
    assert sorted(first.seq_id) == sorted(second.seq_id) == expected
    assert first.seq_id.tolist() != second.seq_id.tolist()


def test_steps_run_over_epoch_borders(directory: Path) -> None:
    with Stream(directory, seed=1, batch_size=37) as stream:
        assert stream.steps_per_epoch == pytest.approx(148 / 37)
        ids = _ids(_take(stream, 10))
    assert len(ids) == 370
    counts = Counter(ids[:296])
    assert sorted(counts) == TRAIN
    assert set(counts.values()) == {2}


@settings(max_examples=25, deadline=None)
@given(
    batch_size=st.integers(1, 60),
    world_size=st.integers(1, 9),
    later=st.integers(1, 9),
    seed=st.integers(0, 2**64 - 1),
    stop=st.integers(0, 4),
)
def test_ranks_share_the_same_global_batches(
    directory: Path, batch_size: int, world_size: int, later: int, seed: int, stop: int
) -> None:
    """No sequence twice, none lost, in the order of one process; also after another world size.

    Shares of a step differ by one sequence at most, and whole records come along.
    """
    with Stream(directory, seed=seed, batch_size=batch_size) as alone:
        whole = _take(alone, 6)
    state, before = _shares(directory, seed, batch_size, world_size, None, stop)
    _, after = _shares(directory, seed, batch_size, later, state, 6 - stop)
    for pieces, batch in zip([*before, *after], whole, strict=True):
        sizes = {len(piece) for piece in pieces}
        assert max(sizes) - min(sizes) <= 1
        assert _bytes(Batch.concat(pieces)) == _bytes(batch)


def _shares(
    directory: Path,
    seed: int,
    batch_size: int,
    world_size: int,
    state: dict[str, object] | None,
    count: int,
) -> tuple[dict[str, object], list[list[Batch]]]:
    """State after `count` steps from `state` on, the same for all ranks; per step, their shares."""
    shares: list[list[Batch]] = []
    states: list[dict[str, object]] = []
    for rank in range(world_size):
        with Stream(
            directory, seed=seed, batch_size=batch_size, rank=rank, world_size=world_size
        ) as stream:
            if state is not None:
                stream.load_state_dict(state)
            shares.append(_take(stream, count))
            states.append(stream.state_dict())
    assert all(found == states[0] for found in states)
    return states[0], [list(pieces) for pieces in zip(*shares, strict=True)]


@pytest.mark.parametrize("stop", [0, 1, 5, 13])
def test_resuming_equals_not_stopping(directory: Path, stop: int) -> None:
    with Stream(directory, seed=5, batch_size=24, max_length=9) as stream:
        expected = [_bytes(batch) for batch in _take(stream, 16)]
    with Stream(directory, seed=5, batch_size=24, max_length=9, prefetch=5) as stream:
        _take(stream, stop)
        state = stream.state_dict()
    with Stream(directory, seed=5, batch_size=24, max_length=9, prefetch=1) as stream:
        stream.load_state_dict(state)
        assert stream.step == stop
        assert [_bytes(batch) for batch in _take(stream, 16 - stop)] == expected[stop:]


@pytest.mark.parametrize("kind", ["counts_copies", "head_tail_copies"])
def test_each_epoch_reads_the_next_draw(tmp_path: Path, kind: str) -> None:
    """Also in steps that run over an epoch border, and after resuming inside one."""
    meta = meta_of(kind)
    write_set(tmp_path, meta, [40, 13])
    (part, other) = read_manifest(tmp_path).parts
    rows = Rows.concat([*read_rows(tmp_path / part.file), *read_rows(tmp_path / other.file)])
    draws = [to_batch(rows, meta, draw) for draw in range(meta.copies)]
    with Stream(tmp_path, seed=4, batch_size=20) as stream:
        steps = _take(stream, 12)
        stream.load_state_dict({**stream.state_dict(), "step": 2})
        assert _bytes(next(stream)) == _bytes(steps[2])
    for number, seq_id in enumerate(_ids(steps)):
        found = steps[number // 20].select([number % 20])
        draw = number // 53 % meta.copies
        assert _bytes(found) == _bytes(draws[draw].select([seq_id])), f"sequence {number}"
    assert len({_bytes(draw)[-7] for draw in draws}) == meta.copies


def test_a_state_can_be_loaded_in_the_middle_and_by_other_ranks(directory: Path) -> None:
    with Stream(directory, seed=5, batch_size=24) as stream:
        whole = _take(stream, 4)
        stream.load_state_dict({**stream.state_dict(), "step": 1})
        assert _bytes(next(stream)) == _bytes(whole[1])
        state = stream.state_dict()
    with Stream(directory, seed=5, batch_size=24, rank=1, world_size=2) as stream:
        stream.load_state_dict(state)
        assert next(stream).seq_id.tolist() == whole[2].seq_id[12:].tolist()


def test_resuming_far_away_reads_no_more_than_starting(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storage.shard import PartFile

    reads: list[int] = []
    read = PartFile.read

    def counted(self: PartFile, group: int, columns: list[str] | None = None) -> object:
        reads.append(group)
        return read(self, group, columns)

    monkeypatch.setattr(PartFile, "read", counted)
    stream = Stream(directory, seed=5, batch_size=8, prefetch=1)
    stream.load_state_dict({**stream.state_dict(), "step": 10**12})
    assert len(next(stream)) == 8
    stream.close()
    assert len(reads) <= 6  # at most two batches were made, of at most three groups each


def test_a_state_of_something_else_is_refused(directory: Path, tmp_path: Path) -> None:
    other = write_set(tmp_path, META, {0: (70, "train"), 1: (9, "holdout")}, seed=8)
    with Stream(directory, seed=5, batch_size=24) as stream:
        state = stream.state_dict()
        mine = read_manifest(directory).digest
        with pytest.raises(DataError, match=f"manifest {other.digest}, this run has {mine}"):
            stream.load_state_dict({**state, "manifest": other.digest})
        for name, value in (
            ("seed", 6),
            ("batch_size", 12),
            ("split", "holdout"),
            ("keep", "correct"),
        ):
            with pytest.raises(DataError, match=f"the saved state has {name} {value}, this run"):
                stream.load_state_dict({**state, name: value})
        with pytest.raises(DataError, match="the saved state has manifest None"):
            stream.load_state_dict({})


def test_only_right_answers(directory: Path) -> None:
    with Stream(directory, seed=2, batch_size=10, keep="correct") as stream:
        right = stream.sequences
        assert 20 < right < 100
        batches = _take(stream, right)
    assert all((batch.outcome == 1).all() for batch in batches)
    assert set(Counter(_ids(batches)).values()) == {10}


def test_responses_are_cut(directory: Path) -> None:
    with Stream(directory, seed=2, batch_size=148, max_length=8) as stream:
        (cut,) = _take(stream, 1)
    with Stream(directory, seed=2, batch_size=148) as stream:
        (whole,) = _take(stream, 1)
    assert cut.lengths.tolist() == np.minimum(whole.lengths, 8).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_read_in_order(tmp_path: Path, kind: str) -> None:
    write_set(tmp_path, meta_of(kind), SIZES)
    batches = list(read_split(tmp_path, "holdout"))
    assert [len(batch) for batch in batches] == [9, 32, 8]
    assert _ids(batches) == HOLDOUT
    assert list(read_split(tmp_path, "none")) == []


def test_strays_in_the_directory_change_nothing(tmp_path: Path) -> None:
    write_set(tmp_path, META, [40])
    expected = list(read_split(tmp_path, "train"))
    for index, seed in ((0, 1), (1, 2)):
        with PartWriter(tmp_path, index, META) as late:
            late.write(random_rows(META, 64, seed=seed))
    found = list(read_split(tmp_path, "train"))
    assert [_bytes(batch) for batch in found] == [_bytes(batch) for batch in expected]


def test_damage_reaches_the_consumer_and_names_the_place(tmp_path: Path) -> None:
    manifest = write_set(tmp_path, META, [64])
    path = tmp_path / manifest.parts[0].file
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = data[len(data) // 2 :].replace(
        b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfc"
    )
    path.write_bytes(data)
    stream = Stream(tmp_path, seed=0, batch_size=64)
    for _ in range(2):  # asking again gives the same answer instead of waiting for ever
        with pytest.raises(DataError, match=rf"{path.name}, row group 1: damaged"):
            next(stream)
    assert stream.step == 0
    assert not [t for t in threading.enumerate() if t.name == "afterglow-prefetch"]


def test_a_part_exchanged_for_another_valid_one_is_refused(tmp_path: Path) -> None:
    manifest = write_set(tmp_path / "a", META, [40])
    other = write_set(tmp_path / "b", META, [40], seed=1)
    (tmp_path / "b" / other.parts[0].file).replace(tmp_path / "a" / manifest.parts[0].file)
    with pytest.raises(DataError, match="not the file the manifest lists"):
        next(read_split(tmp_path / "a", "train"))


def test_what_cannot_be_streamed(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sequences in split 'test'"):
        Stream(directory, seed=0, batch_size=4, split="test")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        Stream(directory, seed=0, batch_size=0)
    with pytest.raises(ConfigError, match="rank 2 is not one of 2"):
        Stream(directory, seed=0, batch_size=6, rank=2, world_size=2)
    with pytest.raises(ConfigError, match="prefetch is 0"):
        Stream(directory, seed=0, batch_size=6, prefetch=0)
    with pytest.raises(DataError, match="not a committed set"):
        Stream(tmp_path, seed=0, batch_size=6)
    model = Manifest(stage="sft", version=1, key="0", name="sft", kind="model", payload={})
    write_manifest(tmp_path, model)
    with pytest.raises(DataError, match="holds model, not sequences or records"):
        Stream(tmp_path, seed=0, batch_size=6)


def test_a_batch_larger_than_the_set(tmp_path: Path) -> None:
    write_set(tmp_path, META, [3])
    with Stream(tmp_path, seed=0, batch_size=8) as stream:
        assert set(Counter(_ids(_take(stream, 3))).values()) == {8}


def test_memory_does_not_grow_with_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What NumPy and Arrow hold at most while an epoch is read, at 10 and at 80 row groups.

    The footers of open parts, of which there are at most 256, are left out.
    """
    monkeypatch.setattr("storage.stream._OPEN_FILES", 4)
    peaks: list[int] = []
    for parts in (5, 40):
        write_set(tmp_path / str(parts), META, [64] * parts, longest=40)
        with Stream(tmp_path / str(parts), seed=0, batch_size=32, prefetch=2) as stream:
            gc.collect()
            tracemalloc.start()
            arrow = max(pa.total_allocated_bytes() for _ in itertools.islice(stream, 2 * parts))
            peaks.append(arrow + tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    # Eight times the data; how many batches wait when a peak is taken is up to the threads.
    assert peaks[1] < 2 * peaks[0]


@pytest.mark.parametrize(("files", "groups", "most"), [(3, 99, 3), (99, 5, 2), (1, 1, 1)])
def test_open_parts_are_limited_by_their_number_and_their_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, groups: int, most: int
) -> None:
    monkeypatch.setattr("storage.stream._OPEN_FILES", files)
    monkeypatch.setattr("storage.stream._OPEN_GROUPS", groups)
    write_set(tmp_path, META, [64] * 6)  # of two row groups each
    with Stream(tmp_path, seed=0, batch_size=32) as stream:
        assert set(Counter(_ids(_take(stream, 12))).values()) == {1}
        assert len(stream._groups._files) == most


def test_a_stream_that_is_dropped_stops_reading(directory: Path) -> None:
    stream = Stream(directory, seed=0, batch_size=8)
    next(stream)
    del stream
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name == "afterglow-prefetch"]


def test_state_is_plain_json(directory: Path) -> None:
    with Stream(directory, seed=2**40, batch_size=8) as stream:
        next(stream)
        state = stream.state_dict()
        assert json.loads(json.dumps(state)) == state
        assert state["step"] == 1


def test_the_digest_in_the_state_is_that_of_the_manifest(directory: Path) -> None:
    manifest = read_manifest(directory)
    with Stream(directory, seed=0, batch_size=8) as stream:
        assert stream.state_dict()["manifest"] == manifest.digest
        assert stream.meta == META
    assert replace(manifest, name="other").digest != manifest.digest
