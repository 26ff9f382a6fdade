"""tau of a set of records that asks for a mean number of entries: found once, the same for all.

It is found by whoever opens the teacher first and written next to the parts, once: of two runners
that race, the second takes what the first has written. Parts carry it in their footers.
"""

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from stages.config import Record
from stages.scoring.calibrate import Calibration
from storage.errors import DataError, RetryError
from storage.files.place import Place
from storage.files.write import create_once
from storage.rows import Rows
from storage.schema import COLUMNS

log = logging.getLogger(__name__)

FILE = "calibration.json"

POSITIONS = 16_384
"""Positions in a sample, and a little more: sequences are taken whole up to `LONGEST`."""
SEQUENCES = 16
"""Least number of sequences in a sample."""
LONGEST = 4_096


def sample(groups: Iterable[Rows]) -> Rows:
    """The first sequences of a set, cut to `LONGEST` positions.

    Sets are shuffled when they are made, so the first sequences are a random sample.
    """
    taken: list[dict[str, Any]] = []
    positions = 0
    for rows in groups:
        for index in range(len(rows)):
            taken.append(_cut(rows.sequence(index)))
            positions += len(taken[-1]["tok"])
            if positions >= POSITIONS and len(taken) >= SEQUENCES:
                return Rows.from_sequences(taken)
    return Rows.from_sequences(taken)


def _cut(sequence: dict[str, Any]) -> dict[str, Any]:
    """Its first positions, with what a position holds."""
    tokens = len(sequence["tok"])
    kept = min(tokens, LONGEST)
    return {
        name: values[: len(values) // max(tokens, 1) * kept]
        if COLUMNS[name].level in ("position", "candidate")
        else values
        for name, values in sequence.items()
    }


def calibrated(
    directory: Place, key: str, record: Record, find: Callable[[], Calibration]
) -> Record:
    """The record with its tau; `find` is called where no runner has found it yet.

    Args:
        directory: Where the parts are.
        key: Of the set.
        record: As configured; one that asks for no number of entries is returned as it is.
        find: Finds tau; its errors pass through.

    Raises:
        RetryError: the disk refused.
        DataError: as `stored`.
    """
    wanted = record.wanted_entries
    if wanted is None:
        return record
    path = directory / FILE
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        found = {"key": key, "entries": wanted, **asdict(find())}
        if create_once(path, (json.dumps(found, indent=1) + "\n").encode()):
            log.info(
                "tau = %g keeps %.2f entries per position, %g are asked for (%s positions)",
                found["tau"],
                found["mean"],
                wanted,
                f"{found['positions']:,}",
            )
    return stored(directory, key, record)


def stored(directory: Place, key: str, record: Record) -> Record:
    """The record with the tau that was found for this set.

    Raises:
        RetryError: none was, so the parts cannot be complete either.
        DataError: the file is damaged, or of another set.
    """
    wanted = record.wanted_entries
    if wanted is None:
        return record
    path = directory / FILE
    try:
        found = json.loads(path.read_bytes())
        same = (found["key"], found["entries"]) == (key, wanted)
        tau = float(Record(tau=found["tau"]).tau or 0)
    except FileNotFoundError as error:
        raise RetryError(f"{path}: missing; run the stage again to calibrate tau") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: damaged ({error}). Remove the directory {directory} and run the stage again."
        ) from error
    if not same:
        raise DataError(
            f"{path}: tau of another set or another number of entries than {wanted:g}. "
            f"Remove the directory {directory} and run the stage again."
        )
    return record.calibrated(tau)
