"""What a writer refuses: every rule a reader relies on is enforced before the bytes are written."""

import numpy as np
from numpy.typing import NDArray

from storage.errors import DataError
from storage.manifest import SetMeta
from storage.rows import Rows, find_row, offsets_of
from storage.schema import COLUMNS, FINISH, OUTCOME, RECORD_KINDS, Array, column_names

Mask = NDArray[np.bool_]

_SLACK = 1e-3
"""What rounding may have added to a log-probability of 0 or taken from an entropy of 0."""


def check_meta(meta: SetMeta) -> None:
    """Refuse parameters no part can be written with.

    Raises:
        DataError: naming the parameter.
    """
    if meta.vocab_size < 1:
        raise DataError(f"vocab_size is {meta.vocab_size}; it must be positive")
    if (meta.kind == "records") != (meta.record is not None):
        raise DataError("record parameters are given exactly when the set holds records")
    if meta.record is not None and meta.record_kind not in RECORD_KINDS:
        raise DataError(
            f"record kind {meta.record_kind!r} is unknown; known: {', '.join(RECORD_KINDS)}"
        )
    if meta.record_kind == "counts" and not 1 <= int(meta.record_params.get("draws", 0)) <= 255:
        raise DataError("a set of counts needs record parameter `draws`, from 1 to 255")


def check_rows(rows: Rows, meta: SetMeta) -> None:
    """Refuse rows that would be wrong or unreadable.

    Raises:
        DataError: naming the sequence (`seq_id`), the column and the value.
    """
    _check_columns(rows, meta)
    for name, values in rows.columns.items():
        column = COLUMNS[name]
        if column.vocabulary:
            _refuse(rows, name, values >= meta.vocab_size, f"vocab_size is {meta.vocab_size}")
        elif column.dtype.kind == "f":
            _refuse(rows, name, ~np.isfinite(values), "only finite numbers are stored")
        if name in ("ref_lp", "lp", "hlp"):
            _refuse(rows, name, values > _SLACK, "a log-probability is at most 0")
        elif name == "ent":
            _refuse(rows, name, values < -_SLACK, "an entropy is at least 0")
    _refuse(rows, "finish", ~np.isin(rows["finish"], list(FINISH.values())), f"codes: {FINISH}")
    _refuse(rows, "outcome", ~np.isin(rows["outcome"], list(OUTCOME.values())), f"codes: {OUTCOME}")
    if "cand" in rows:
        expected = rows.lengths("position") * meta.candidates
        _refuse_lengths(rows, "cand", rows.lengths("candidate"), expected)
    if meta.record_kind in ("counts", "head_tail"):
        _refuse(rows, "nu", rows["nu"] == 0, "every position has at least one entry")
        _refuse_lengths(rows, "ids", rows.lengths("entry"), _per_sequence(rows, "nu"))
    if meta.record_kind == "counts":
        _check_counts(rows, int(meta.record_params["draws"]))
    if meta.record_kind == "head_tail":
        _check_head_tail(rows)


def _check_columns(rows: Rows, meta: SetMeta) -> None:
    expected = column_names(meta.kind, meta.record_kind, meta.candidates, "ref_lp" in rows)
    missing = [name for name in expected if name not in rows]
    extra = [name for name in rows.columns if name not in expected]
    if missing or extra:
        what = f"column {missing[0]!r} is missing" if missing else f"column {extra[0]!r} is extra"
        raise DataError(
            f"{what}: a {meta.record_kind or 'plain'} set of {meta.kind} with "
            f"{meta.candidates} candidates has the columns {', '.join(expected)}"
        )


def _check_counts(rows: Rows, draws: int) -> None:
    _refuse(rows, "cnt", rows["cnt"] == 0, "a stored id was drawn at least once")
    running = offsets_of(rows["cnt"])[offsets_of(rows["nu"])]
    sums = np.diff(running)
    _refuse(rows, "nu", sums != draws, f"the counts of every position must sum to draws = {draws}")


def _check_head_tail(rows: Rows) -> None:
    _refuse(rows, "nh", rows["nh"] > rows["nu"], "a position has no more head entries than entries")
    _refuse_lengths(rows, "hlp", rows.lengths("head"), _per_sequence(rows, "nh"))
    rest = rows["rest"]
    _refuse(rows, "rest", (rest < 0) | (rest > 1), "a mass lies in [0, 1]")


def _per_sequence(rows: Rows, name: str) -> NDArray[np.int64]:
    return np.diff(offsets_of(rows[name])[rows.offsets["position"]])


def _refuse(rows: Rows, name: str, wrong: Mask, why: str) -> None:
    """Raise for the first value of column `name` marked in `wrong`."""
    if not wrong.any():
        return
    flat = int(np.argmax(wrong))
    level = COLUMNS[name].level
    row = flat if level == "row" else find_row(rows.offsets[level], flat)
    place = "" if level == "row" else f"[{flat - int(rows.offsets[level][row])}]"
    value = _shown(rows[name], flat)
    raise DataError(
        f"seq_id {rows['seq_id'][row]}, column {name!r}{place} = {value}: {why} "
        f"({int(wrong.sum())} such values among {len(rows)} sequences)"
    )


def _refuse_lengths(
    rows: Rows, name: str, found: NDArray[np.int64], expected: NDArray[np.int64]
) -> None:
    wrong = found != expected
    if not wrong.any():
        return
    row = int(np.argmax(wrong))
    raise DataError(
        f"seq_id {rows['seq_id'][row]}, column {name!r}: {found[row]} values where the lengths of "
        f"the other columns ask for {expected[row]}"
    )


def _shown(values: Array, index: int) -> str:
    return str(values[index].item())
