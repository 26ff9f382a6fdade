"""What a writer refuses, and that the message names sequence, column and value."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage.check import check_meta, check_rows
from storage.errors import DataError
from storage.rows import Rows
from storage.shard import PartWriter
from tests.storage.make import KINDS, meta_of, random_rows, sequence

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
        ("head_tail", _set("nu", -1, 0), r"'nu'\[\d+\] = 0: every position has at least one"),
        ("head_tail", _set("nu", -1, 255), r"'ids': \d+ values where .* ask for \d+"),
        ("head_tail", _set("nh", -1, 255), r"'nh'\[\d+\] = 255: a position has no more head"),
        ("counts", _set("cnt", -1, 0), r"'cnt'\[\d+\] = 0: a stored id was drawn at least once"),
        ("counts", _set("cnt", -1, 200), r"'nu'\[\d+\] = \d+: the counts .* sum to draws = 8"),
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
        ({"record": {"kind": "top_k"}}, "record kind 'top_k' is unknown"),
        ({"record": {"kind": "counts", "draws": 256}}, "`draws`, from 1 to 255"),
        ({"record": {"kind": "counts"}}, "`draws`, from 1 to 255"),
    ],
)
def test_wrong_parameters_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_meta(replace(meta_of("counts"), **change))
