"""What a writer refuses, and that the message names sequence, column and value."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from storage.check import check_meta, check_rows
from storage.codec import stored
from storage.errors import DataError
from storage.manifest import SetMeta
from storage.rows import Rows
from storage.shard import PartWriter, read_rows, verify_part
from tests.storage.make import KINDS, meta_of, random_rows, same_rows, sequence

Spoil = Callable[[Rows], None]


def _set(column: str, index: int, value: float) -> Spoil:
    def spoil(rows: Rows) -> None:
        rows[column][index] = value

    return spoil


def _drop(column: str) -> Spoil:
    def spoil(rows: Rows) -> None:
        del rows.columns[column]

    return spoil


@pytest.mark.parametrize("kind", KINDS)
def test_valid_rows_pass(kind: str) -> None:
    check_meta(meta_of(kind))
    check_rows(random_rows(meta_of(kind), 50), meta_of(kind))


@pytest.mark.parametrize(
    ("kind", "spoil", "column"),
    [
        ("sequences", _set("tok", -1, 1000), r"'tok'\[\d+\] = 1000: vocab_size is 1000"),
        ("sequences", _set("prompt", -1, 2**32 - 1), r"'prompt'\[\d+\] = 4294967295: vocab_size"),
        ("sequences", _set("cand", -1, 1000), r"'cand'\[\d+\] = 1000: vocab_size is 1000"),
        ("counts", _set("ids", -1, 1000), r"'ids'\[\d+\] = 1000: vocab_size is 1000"),
        ("sequences", _set("ref_lp", -1, np.nan), r"'ref_lp'\[\d+\] = nan: only finite"),
        ("sampled", _set("lp", -1, -np.inf), r"'lp'\[\d+\] = -inf: only finite"),
        ("sampled", _set("lp", -1, 0.5), r"'lp'\[\d+\] = 0.5: a log-probability is at most 0"),
        ("sampled", _set("ent", -1, np.inf), r"'ent'\[\d+\] = inf: only finite"),
        ("sampled", _set("ent", -1, -1.0), r"'ent'\[\d+\] = -1.0: an entropy is at least 0"),
        ("head_tail", _set("hlp", -1, np.nan), r"'hlp'\[\d+\] = nan: only finite"),
        ("head_tail", _set("rest", -1, 1.5), r"'rest'\[\d+\] = 1.5: a mass lies in \[0, 1\]"),
        ("head_tail", _set("rest", -1, -0.5), r"'rest'\[\d+\] = -0.5: a mass lies in \[0, 1\]"),
        ("head_tail", _set("nu", -1, 0), r"'nu'\[\d+\] = 0: every draw has at least one"),
        ("head_tail", _set("nu", -1, 255), r"'ids': \d+ values where .* ask for \d+"),
        ("head_tail", _set("nh", -1, 255), r"'nh'\[\d+\] = 255: a draw has no fewer entries"),
        ("counts", _set("cnt", -1, 0), r"'cnt'\[\d+\] = 0: a stored id was drawn at least once"),
        ("counts", _set("cnt", -1, 200), r"'nu'\[\d+\] = \d+: the counts .* sum to draws = 8"),
        ("counts_copies", _set("cnt", -1, 200), r"'nu'\[\d+\] = \d+: .* every draw must sum to"),
        (
            "counts_copies",
            _set("tlp", -1, 0.5),
            r"'tlp'\[\d+\] = 0.5: a log-probability is at most",
        ),
        ("head_tail_copies", _set("tlp", -1, np.nan), r"'tlp'\[\d+\] = nan: only finite"),
        ("head_tail_copies", _set("lz", -1, -0.5), r"'lz'\[\d+\] = -0.5: cannot be log sum p"),
        ("head_tail_copies", _set("lz", -1, np.inf), r"'lz'\[\d+\] = inf: only finite"),
        ("head_tail_copies", _set("nu", -1, 255), r"'ids': \d+ values where .* ask for \d+"),
        ("head_tail_copies", _set("nh", -1, 255), r"'nh'\[\d+\] = 255: a draw has no fewer"),
        ("top_k", _set("nu", -1, 4), r"'nh'\[\d+\] = 5: a draw has no fewer entries"),
        ("top_k", _set("nu", -1, 6), r"'ids': 25 values where .* ask for 26"),
        ("top_k", _set("hlp", -1, 0.0), r"'hlp'\[24\] = 0.0: ids of a top_k .* by descending p"),
        ("sequences", _set("finish", -1, 7), "'finish' = 7: codes"),
        ("sequences", _set("outcome", -1, 7), "'outcome' = 7: codes"),
    ],
)
def test_a_wrong_value_is_refused_by_name(kind: str, spoil: Spoil, column: str) -> None:
    meta = replace(meta_of(kind), vocab_size=1000)
    rng = np.random.default_rng(0)
    rows = Rows.from_sequences(sequence(rng, meta, seq_id) for seq_id in (40, 41, 42))
    spoil(rows)
    with pytest.raises(DataError, match=f"seq_id 42, column {column}"):
        check_rows(rows, meta)


@pytest.mark.parametrize(
    ("kind", "spoil", "message"),
    [
        ("head_tail", _drop("hlp"), "column 'hlp' is missing: a head_tail set of records"),
        ("sequences", _drop("cand"), "column 'cand' is missing: a plain set of sequences"),
    ],
)
def test_missing_columns_are_refused(kind: str, spoil: Spoil, message: str) -> None:
    rows = random_rows(meta_of(kind), 2)
    spoil(rows)
    with pytest.raises(DataError, match=message):
        check_rows(rows, meta_of(kind))


def test_superfluous_columns_are_refused() -> None:
    with pytest.raises(DataError, match="column 'cand' is extra"):
        check_rows(random_rows(meta_of("sequences"), 2), meta_of("sequences", candidates=0))


def test_a_wrong_number_of_candidates_is_refused() -> None:
    rows = random_rows(meta_of("sequences", candidates=2), 2)
    with pytest.raises(DataError, match=r"seq_id 0, column 'cand': \d+ values where"):
        check_rows(rows, meta_of("sequences", candidates=3))


def varying_candidates(meta: SetMeta, count: int) -> Rows:
    """Sequences whose positions have 1 to `meta.candidates` candidates."""
    rng = np.random.default_rng(5)
    out: list[dict[str, Any]] = []
    for seq_id in range(count):
        one = sequence(rng, meta, seq_id)
        nc = rng.integers(1, meta.candidates + 1, len(one["tok"]))
        out.append(one | {"nc": nc, "cand": rng.integers(0, meta.vocab_size, nc.sum())})
    return Rows.from_sequences(out)


def test_positions_may_differ_in_their_number_of_candidates(tmp_path: Path) -> None:
    meta = meta_of("sequences", candidates=9)
    rows = varying_candidates(meta, 40)
    with PartWriter(tmp_path, 0, meta) as writer:
        writer.write(rows.slice(0, 25))
        writer.write(rows.slice(25, 40))
    path = tmp_path / writer.part.file
    assert same_rows(Rows.concat(list(read_rows(path))), stored(rows))
    assert verify_part(tmp_path, writer.part) == []
    assert pq.read_table(path)["nc"].to_pylist()[0] == rows.sequence(0)["nc"].tolist()
    with PartWriter(tmp_path, 1, meta) as writer:
        writer.write(rows.slice(0, 25))
        with pytest.raises(DataError, match="'nc' is in some of the rows only"):
            writer.write(random_rows(meta, 2))


@pytest.mark.parametrize("value", [0, 10])
def test_a_wrong_number_of_candidates_of_a_position_is_refused(value: int) -> None:
    meta = meta_of("sequences", candidates=9)
    rows = varying_candidates(meta, 3)
    rows["nc"][-1] = value
    wrong = rf"seq_id 2, column 'nc'\[\d+\] = {value}: a position has 1 to 9 candidates"
    with pytest.raises(DataError, match=wrong):
        check_rows(rows, meta)


def test_candidates_that_do_not_add_up_are_refused() -> None:
    meta = meta_of("sequences", candidates=9)
    rows = varying_candidates(meta, 3)
    short = rows.columns | {"cand": rows["cand"][:-1]}
    levels = {level: rows.offsets[level] for level in ("prompt", "position")}
    with pytest.raises(DataError, match=r"'nc': \d+ values for \d+ positions, which add up to"):
        Rows.from_columns(short, levels)
    second = int(rows.offsets["position"][1])
    rows["nc"][second], rows["nc"][second - 1] = rows["nc"][second - 1], rows["nc"][second]
    with pytest.raises(DataError, match=r"seq_id 0, column 'cand': \d+ values where"):
        check_rows(rows, meta)  # as many in all, but one sequence has the other's


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "ids" in random_rows(meta_of(kind), 1)])
def test_an_id_stored_twice_in_a_draw_is_refused(kind: str) -> None:
    meta = meta_of(kind)
    rows = random_rows(meta, 40)
    nh = rows["nh"] if "nh" in rows else np.zeros(rows.tokens, np.uint8)
    nu = rows["nu"].reshape(-1, meta.copies)
    position = int(np.flatnonzero((nu > 1).any(axis=1))[-1])
    draw = int(np.argmax(nu[position]))
    tails = (nu - nh[:, None]).sum(axis=1) + nh
    entry = int(tails[:position].sum())  # of the first entry of the position
    last = entry + int(nh[position]) + int((nu[position] - nh[position])[: draw + 1].sum()) - 1
    first = entry if nh[position] else last - int(nu[position, draw]) + 1
    assert first < last
    rows["ids"][last] = rows["ids"][first]
    with pytest.raises(DataError, match=r"column 'ids'.*the same id stands earlier in the same"):
        check_rows(rows, meta)


def test_different_draws_may_hold_the_same_ids() -> None:
    meta = meta_of("counts_copies")
    one = {"seq_id": 0, "prompt_id": 0, "sample": 0, "finish": 0, "outcome": 0, "prompt": []}
    record = {"nu": [2, 2, 1], "ids": [7, 9, 7, 9, 7], "cnt": [6, 2, 5, 3, 8], "tlp": [-1.0] * 5}
    one |= {"tok": [7], "lp": [-1.0], "ent": [1.0], **record}
    check_rows(Rows.from_sequences([one]), meta)


@pytest.mark.parametrize(("other", "wrong"), [(0.5, 0.1), (2.0, -0.1), (1.0, 0.1)])
def test_the_sign_of_the_normaliser(other: float, wrong: float) -> None:
    meta = meta_of("sampled", loss_temperature=other)
    rows = random_rows(meta, 3)
    rows["lz"][:] = 0.0 if other == 1.0 else -wrong
    check_rows(rows, meta)
    rows["lz"][-1] = wrong
    with pytest.raises(DataError, match=r"column 'lz'.*cannot be log sum"):
        check_rows(rows, meta)


def test_a_vocabulary_smaller_than_k() -> None:
    meta = meta_of("top_k", vocab_size=3)
    rows = random_rows(meta, 3)
    assert (rows["nu"] == 3).all()
    check_rows(rows, meta)


def test_only_corrected_scores_may_be_above_zero() -> None:
    meta = meta_of("sampled")
    rows = random_rows(meta, 3)
    above = Rows(rows.columns | {"lp": rows["lp"] + 50}, rows.offsets)
    with pytest.raises(DataError, match="a log-probability is at most 0"):
        check_rows(above, meta)
    record = {**(meta.record or {}), "correction": {"folds": 5}}
    check_rows(above, replace(meta, record=record))


def test_the_last_id_of_the_vocabulary_is_allowed() -> None:
    meta = meta_of("sequences", vocab_size=1000)
    rows = random_rows(meta, 2)
    rows["tok"][0] = 999
    check_rows(rows, meta)


def test_the_writer_checks_and_says_which_part(tmp_path: Path) -> None:
    meta = meta_of("sampled")
    rows = random_rows(meta, 2)
    rows["lp"][0] = np.nan
    with (
        pytest.raises(DataError, match="part 3: seq_id 0, column 'lp'"),
        PartWriter(tmp_path, 3, meta) as writer,
    ):
        writer.write(rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"record": None}, "record parameters"),
        ({"kind": "sequences"}, "record parameters"),
        ({"record": {"kind": "topk"}}, "record kind 'topk' is unknown"),
        ({"record": {"kind": "counts", "draws": 256}}, "`draws`, from 1 to 255"),
        ({"record": {"kind": "counts"}}, "`draws`, from 1 to 255"),
        ({"record": {"kind": "top_k"}}, "`k`, from 1 to 200"),
        ({"record": {"kind": "top_k", "k": 201}}, "`k`, from 1 to 200"),
        ({"record": {"kind": "head_tail", "copies": 17}}, "`copies`, from 1 to 16"),
        ({"record": {"kind": "counts", "draws": 5, "copies": 0}}, "`copies`, from 1 to 16"),
        ({"record": {"kind": "sampled", "loss_temperature": 0.0}}, "loss_temperature is 0.0"),
        ({"record": {"kind": "head_tail", "tail_floor": 1.0}}, "tail_floor is 1.0"),
        ({"record": {"kind": "head_tail", "tail_floor": 0.1, "logp": True}}, "tail_floor is 0.1"),
    ],
)
def test_wrong_parameters_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_meta(replace(meta_of("counts"), **change))
