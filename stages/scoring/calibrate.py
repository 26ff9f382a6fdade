"""tau of a `head_tail` set that asks for a mean number of entries: found once, the same for all.

The teacher runs once over a sample of positions. A record at the least tau there is holds every id
whose probability could put it into the head at any other tau, so how many entries a position would
keep at that tau follows from it by the rules of `sampler_kernels.head_tail_rows`; the bisection
costs nothing.

The first worker that opens the teacher writes tau beside the parts; later workers reuse its value,
also when two calibrate at the same time. Parts carry tau in their footers.

Shape letters: R positions, K places for the head of a position, C candidates.
"""

import json
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stages.config.record_kinds import HeadTail, Record
from stages.scoring.drawn import Array
from stages.scoring.sampler_kernels import REST_FLOOR
from stages.scoring.score import forced_candidates
from stages.scoring.scorer import Scorer
from storage.errors import ConfigError, DataError, RetryError
from storage.files.place import Place
from storage.files.write import create_once
from storage.kinds import MIN_TAU
from storage.rows import Rows, values_per_position
from storage.schema import COLUMNS

log = logging.getLogger(__name__)

FILE = "calibration.json"
POSITIONS = 16_384
"""Positions in a sample, and a little more: sequences are taken whole up to `LONGEST`."""
SEQUENCES = 16
"""Least number of sequences in a sample."""
LONGEST = 4_096

MOST_TAU = 0.999
_STEPS = 20
_DIGITS = 4
_CLOSE = 0.05
_SLACK = 1e-9  # relative rounding of a mass
_TINY = 1e-300


@dataclass(frozen=True)
class Heads:
    """The likeliest ids of R positions."""

    p_RK: Array
    """Their probabilities, 0 where a position has fewer."""
    forced_RK: Array
    """Whether an id is in the head whatever its probability: a candidate."""
    outside_R: Array
    """Probability of all other ids together."""
    floor: float
    """`HeadTail.tail_floor` over tau."""

    @classmethod
    def of(cls, scored: Rows, cand_RC: Array, floor: float) -> "Heads":
        """From `head_tail` records at the least tau, and the candidates forced into them."""
        nh_R, drawn_R = scored["nh"].astype(np.int64), scored["nu"].astype(np.int64)
        K = max(1, int(nh_R.max()))
        p_RK = np.zeros((len(nh_R), K))
        ids_RK = np.full((len(nh_R), K), -1, np.int64)
        used_RK = np.arange(K) < nh_R[:, None]
        p_RK[used_RK] = np.exp(scored["hlp"].astype(np.float64))
        # Log p is stored in half precision; a total other than 1 would miscount whole entries.
        rest_R = scored["rest"].astype(np.float64)
        p_RK *= ((1 - rest_R) / np.maximum(p_RK.sum(axis=1), _TINY))[:, None]
        slot_E = np.arange(len(scored["ids"])) - np.repeat(np.cumsum(drawn_R) - drawn_R, drawn_R)
        ids_RK[used_RK] = scored["ids"][slot_E < np.repeat(nh_R, drawn_R)]
        forced_RK = np.zeros_like(used_RK)
        for c in range(cand_RC.shape[1]):
            forced_RK |= ids_RK == cand_RC[:, c : c + 1]
        return cls(p_RK, forced_RK, rest_R, floor)

    def mean_entries(self, tau: float) -> float:
        """Expected entries per position of a record at `tau`, at least the one it came from."""
        head_RK = self.forced_RK | (self.p_RK >= tau)
        while True:
            mass_R = self.outside_R + np.where(head_RK, 0.0, self.p_RK).sum(axis=1)
            n_R = np.where(mass_R > REST_FLOOR, np.ceil(mass_R / tau * (1 - _SLACK)), 0.0)
            weight_R = np.where(n_R > 0, mass_R / np.maximum(n_R, 1.0), np.inf)
            above_RK = (self.p_RK > weight_R[:, None] * (1 + _SLACK)) & ~head_RK
            if not above_RK.any():
                stands_for_R = np.maximum(mass_R, np.where(n_R == 1, self.floor * tau, _TINY))
                drawn_R = n_R * (mass_R / stands_for_R)
                return float((head_RK.sum(axis=1) + drawn_R).mean())
            head_RK |= above_RK


@dataclass(frozen=True)
class FoundTau:
    """What was found, and on what."""

    tau: float
    mean: float
    """Mean number of entries at `tau` on the sample."""
    positions: int
    """Size of the sample."""


def calibrate(scorer: Scorer, rows: Rows, record: HeadTail, seed: int) -> FoundTau:
    """tau at which a position of `rows` keeps `record.entries` entries on average.

    Args:
        scorer: The teacher, run once over all of `rows`.
        rows: Plain sequences, `cand` where the record wants candidates; at least one position.
        record: With `entries`.
        seed: Of the draws; it has no influence on what is found.

    Raises:
        ConfigError: no tau gives that many entries; the message names the possible range.
        (others): as `Scorer.score`.
    """
    finest = record.calibrated(MIN_TAU).one_draw()
    scored = scorer.score(rows, finest, seed)
    rows = rows.take(np.flatnonzero(np.isin(rows["seq_id"], scored["seq_id"])))
    heads = Heads.of(scored, forced_candidates(rows, record), finest.tail_floor / MIN_TAU)
    tau = find_tau(heads, record.entries or 0.0)
    return FoundTau(tau, heads.mean_entries(tau), rows.tokens)


def find_tau(heads: Heads, entries: float) -> float:
    """tau, to four digits, with a mean nearest to `entries`, by bisection of its logarithm.

    The mean falls in steps, since most positions keep a whole number of entries; so the answer is
    the better side of the step that crosses `entries`.

    Raises:
        ConfigError: `entries` is more than 5 % outside what can be reached.
    """
    most, least = heads.mean_entries(MIN_TAU), heads.mean_entries(MOST_TAU)
    if not least / (1 + _CLOSE) <= entries <= most * (1 + _CLOSE):
        raise ConfigError(
            f"teacher-logits.record.entries = {entries:g} cannot be reached: on a sample of "
            f"{len(heads.p_RK):,} positions this teacher keeps between {least:.2f} (tau near 1) "
            f"and {most:.2f} (tau = 1/128) entries, candidates included. Choose a value in "
            "this range, or change record.candidates."
        )
    low, high = math.log(MIN_TAU), math.log(MOST_TAU)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        few = heads.mean_entries(math.exp(middle)) <= entries
        low, high = (low, middle) if few else (middle, high)
    unit = 10.0 ** (math.floor(high / math.log(10)) + 1 - _DIGITS)
    below = max(math.floor(math.exp(low) / unit) * unit, MIN_TAU)
    above = min(math.ceil(math.exp(high) / unit) * unit, MOST_TAU)
    return min(above, below, key=lambda tau: abs(heads.mean_entries(tau) - entries))


def sample(groups: Iterable[Rows]) -> Rows:
    """The first sequences of a set, cut to `LONGEST` positions.

    Sets are shuffled when they are made, so the first sequences are a random sample.
    """
    taken: list[dict[str, Any]] = []
    positions = 0
    for rows in groups:
        for index in range(len(rows)):
            sequence = rows.sequence(index)
            tokens = len(sequence["tok"])
            kept = min(tokens, LONGEST)
            if "cand" in sequence:
                each = values_per_position("candidate", sequence, tokens)
                sequence["cand"] = sequence["cand"][: int(each[:kept].sum())]
            for name, values in sequence.items():
                if COLUMNS[name].level == "position":
                    sequence[name] = values[:kept]
            taken.append(sequence)
            positions += kept
            if positions >= POSITIONS and len(taken) >= SEQUENCES:
                return Rows.from_sequences(taken)
    return Rows.from_sequences(taken)


def calibrated(
    directory: Place, key: str, record: Record, find: Callable[[HeadTail], FoundTau]
) -> Record:
    """The record with its tau; `find` is called unless a worker has found it already.

    Args:
        directory: Where the parts are.
        key: Of the set.
        record: As configured; one that asks for no number of entries is returned as it is.
        find: Finds tau; its errors pass through.

    Raises:
        RetryError: the disk refused.
        DataError: as `stored_tau`.
    """
    if not isinstance(record, HeadTail) or record.tau is not None:
        return record
    path = directory / FILE
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        found = find(record)
        table = {"key": key, "entries": record.entries, **asdict(found)}
        if create_once(path, (json.dumps(table, indent=1) + "\n").encode()):
            log.info(
                "tau = %g keeps %.2f entries per position, %g are asked for (%s positions)",
                found.tau,
                found.mean,
                record.entries,
                f"{found.positions:,}",
            )
    return stored_tau(directory, key, record)


def stored_tau(directory: Place, key: str, record: Record) -> Record:
    """The record with the tau that was found for this set.

    Raises:
        RetryError: none was, so the parts cannot be complete either.
        DataError: the file is damaged, or of another set.
    """
    if not isinstance(record, HeadTail) or record.tau is not None:
        return record
    path = directory / FILE
    again = f"Remove the directory {directory} and run the stage again."
    try:
        found = json.loads(path.read_bytes())
        same = (found["key"], found["entries"]) == (key, record.entries)
        HeadTail.model_validate({"tau": float(found["tau"])})
    except FileNotFoundError as error:
        raise RetryError(f"{path}: missing; run the stage again to calibrate tau") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}). {again}") from error
    if not same:
        raise DataError(
            f"{path}: tau of another set or another number of entries than {record.entries:g}. "
            + again
        )
    return record.calibrated(found["tau"])
