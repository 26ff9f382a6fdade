"""Rules of the format that readers rely on; writers check them before anything is written."""

import math

import numpy as np
from numpy.typing import NDArray

from storage.errors import DataError
from storage.kinds import KINDS
from storage.manifest import Json, SetMeta
from storage.rows import Rows, find_row, offsets_of, values_per_position
from storage.schema import COLUMNS, FINISH, OUTCOME, Level, column_names

Mask = NDArray[np.bool_]

_MOST_RANKED = 1 << 24
"""Vocabulary of a packed set, whose reader holds tables of that length."""
_SLACK = 1e-3
"""Tolerance for rounding: a log-probability may exceed 0, an entropy fall below it, by this."""
_LENGTHS: dict[str, Level] = {"ids": "entry", "hlp": "head", "tlp": "tail"}
"""Columns whose lengths `nu` and `nh` decide; `cnt` shares those of `ids`."""


def check_meta(meta: SetMeta) -> None:
    """Refuse parameters no part can be written with.

    Raises:
        DataError: naming the parameter.
    """
    if meta.vocab_size < 1:
        raise DataError(f"vocab_size is {meta.vocab_size}; it must be positive")
    if (meta.kind == "records") != (meta.record is not None):
        raise DataError("record parameters are given exactly when the set holds records")
    if meta.record is not None:
        _check_record(meta.record)
    if meta.layout not in ("open", "packed"):
        raise DataError(f"layout {meta.layout!r} is unknown; known: open, packed")
    packed = meta.layout == "packed"
    if packed and "nu" not in column_names(meta.kind, meta.record, 0, reference=False):
        what = meta.record_kind.name if meta.record_kind else meta.kind
        raise DataError(f"layout is packed, but {what} have no entries to be packed")
    if packed != (meta.ranks is not None):
        raise DataError(
            "ranks are given exactly when the layout is packed (storage.packed.frequencies)"
        )
    if packed and meta.vocab_size > _MOST_RANKED:
        raise DataError(f"vocab_size is {meta.vocab_size}; a packed set has at most {_MOST_RANKED}")


def _check_record(record: Json) -> None:
    kind = KINDS.get(name := str(record["kind"]))
    if kind is None:
        raise DataError(f"record kind {name!r} is unknown; known: {', '.join(KINDS)}")
    for parameter, (least, most) in kind.limits.items():
        value = int(record.get(parameter, 1 if parameter == "copies" else least - 1))
        if not least <= value <= most:
            raise DataError(
                f"a set of {name} needs record parameter `{parameter}`, from {least} to {most}"
            )
    floor = float(record.get("tail_floor", 0.0))
    if kind.tail and not (0.0 <= floor < 1.0 and not (floor and record.get("logp"))):
        raise DataError(
            f"tail_floor is {floor}; it is a mass below 1, and 0 where log p of drawn ids is kept"
        )
    other = record.get("loss_temperature")
    if other is not None and not 0.0 < float(other) < math.inf:
        raise DataError(f"loss_temperature is {other}; a temperature is positive")


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
        score = name == "lp" and bool(meta.record_params.get("correction"))
        if name in ("ref_lp", "lp", "hlp", "tlp") and not score:
            _refuse(rows, name, values > _SLACK, "a log-probability is at most 0")
        elif name == "ent":
            _refuse(rows, name, values < -_SLACK, "an entropy is at least 0")
    _refuse(rows, "finish", ~np.isin(rows["finish"], list(FINISH.values())), f"codes: {FINISH}")
    _refuse(rows, "outcome", ~np.isin(rows["outcome"], list(OUTCOME.values())), f"codes: {OUTCOME}")
    if "nc" in rows:
        odd = (rows["nc"] == 0) | (rows["nc"] > meta.candidates)
        _refuse(rows, "nc", odd, f"a position has 1 to {meta.candidates} candidates")
        kept_T = values_per_position("candidate", rows.columns, rows.tokens)
        expected = np.diff(offsets_of(kept_T)[rows.offsets["position"]])
        _refuse_lengths(rows, "cand", rows.lengths("candidate"), expected)
    elif "cand" in rows:
        expected = rows.lengths("position") * meta.candidates
        _refuse_lengths(rows, "cand", rows.lengths("candidate"), expected)
    if "lz" in rows:
        # sum p**power is at least 1 for a power below 1 and at most 1 for one above 1
        record = meta.record_params
        power = float(record.get("temperature", 1.0)) / float(record["loss_temperature"])
        wrong = rows["lz"] * np.sign(power - 1.0) > _SLACK
        wrong |= (power == 1.0) & (rows["lz"] != 0.0)
        _refuse(rows, "lz", wrong, f"cannot be log sum p(v)**{power:g}")
    if "nu" in rows:
        _check_entries(rows, meta)


def _check_columns(rows: Rows, meta: SetMeta) -> None:
    expected = column_names(
        meta.kind, meta.record, meta.candidates, "ref_lp" in rows, varying="nc" in rows
    )
    missing = [name for name in expected if name not in rows]
    extra = [name for name in rows.columns if name not in expected]
    if missing or extra:
        what = f"column {missing[0]!r} is missing" if missing else f"column {extra[0]!r} is extra"
        kind = meta.record_kind.name if meta.record_kind else "plain"
        raise DataError(
            f"{what}: a {kind} set of {meta.kind} with {meta.candidates} candidates has the "
            f"columns {', '.join(expected)}"
        )


def _check_entries(rows: Rows, meta: SetMeta) -> None:
    """Entries of counts, head_tail and top_k: lengths first, since all else relies on them."""
    from storage.kernels import first_repeated  # Numba: only who writes records pays its import

    copies, kind = meta.copies, meta.record_kind
    assert kind is not None, "plain sequences have no entries"
    _refuse_lengths(rows, "nu", rows.lengths("draw"), copies * rows.lengths("position"))
    _refuse(rows, "nu", rows["nu"] == 0, "every draw has at least one entry")
    if kind.head:
        for draw in range(copies):
            short = rows["nh"] > rows["nu"][draw::copies]
            _refuse(rows, "nh", short, "a draw has no fewer entries than the head")
    for name, level in _LENGTHS.items():
        if name in rows:
            values_T = values_per_position(level, rows.columns, rows.tokens)
            expected_N = np.diff(offsets_of(values_T)[rows.offsets["position"]])
            _refuse_lengths(rows, name, rows.lengths(level), expected_N)
    nh = rows.columns.get("nh", np.zeros(rows.tokens, np.uint8))
    repeated = np.arange(len(rows["ids"])) == first_repeated(copies, rows["nu"], nh, rows["ids"])
    _refuse(rows, "ids", repeated, "the same id stands earlier in the same draw")
    if kind.counts:
        draws = int(meta.record_params["draws"])
        _refuse(rows, "cnt", rows["cnt"] == 0, "a stored id was drawn at least once")
        sums = np.diff(offsets_of(rows["cnt"])[offsets_of(rows["nu"])])
        _refuse(rows, "nu", sums != draws, f"the counts of every draw must sum to draws = {draws}")
    if kind.head:
        rest = rows["rest"]
        _refuse(rows, "rest", (rest < 0) | (rest > 1), "a mass lies in [0, 1]")
    if kind.top:
        k = min(int(meta.record_params["k"]), meta.vocab_size)
        for name in ("nu", "nh"):
            _refuse(rows, name, rows[name] != k, f"a {kind.name} record has k = {k} ids everywhere")
        rises = np.diff(rows["hlp"].reshape(-1, k), axis=1, prepend=np.inf) > 0
        _refuse(rows, "hlp", rises.reshape(-1), f"ids of a {kind.name} record are by descending p")


def _refuse(rows: Rows, name: str, wrong: Mask, why: str) -> None:
    """Raise for the first value of column `name` marked in `wrong`."""
    if not wrong.any():
        return
    flat = int(np.argmax(wrong))
    level = COLUMNS[name].level
    row = flat if level == "row" else find_row(rows.offsets[level], flat)
    place = "" if level == "row" else f"[{flat - int(rows.offsets[level][row])}]"
    value = rows[name][flat].item()
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
