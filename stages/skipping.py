"""Sequences that cannot be used: they stop the stage, or are left out and counted.

Which sequences are left out depends on the sequences alone, so a part has the same bytes whoever
makes it, and a set is missing the same ones whatever the parts and workers.
"""

import logging
from collections.abc import Sequence

from stages.config.stage import SkipsBad
from storage.errors import DataError, SequenceError
from storage.manifest import Part

log = logging.getLogger(__name__)

_SHOWN = 5
"""Skipped sequences of a part that are named in the log."""


class Skipped:
    """The sequences left out of one part; no part may lack more than the set may.

    Args:
        name: Of set and part, for messages.
        config: Says whether any may be left out.
        total: Sequences of the set.
    """

    def __init__(self, name: str, config: SkipsBad, total: int) -> None:
        self._name, self._config = name, config
        self._allowed = config.bad_allowed(total)
        self._total = total
        self.count = 0

    def add(self, error: SequenceError) -> None:
        """Leave out the sequences of `error`.

        Raises:
            SequenceError: that is not allowed; how to allow it is said.
        """
        if self._config.on_bad_sequence == "stop":
            raise SequenceError(
                error.seq_ids,
                f'{error} To leave such sequences out, set on_bad_sequence = "skip" in the '
                "table of the stage; parts that are done are kept.",
            ) from error
        self.count += len(error.seq_ids)
        if self.count > self._allowed:
            raise SequenceError(
                error.seq_ids,
                f"{self._name}: {_too_many(self.count, self._total, self._config)} The last one: "
                f"{error}",
            ) from error
        log.log(
            logging.WARNING if self.count <= _SHOWN else logging.DEBUG,
            "%s: skipped: %s",
            self._name,
            error,
        )


def skipped_of_set(
    name: str, config: SkipsBad, planned: Sequence[int], parts: Sequence[Part]
) -> dict[str, int]:
    """`skipped` for the manifest: how many sequences the parts lack; empty where none are missing.

    Args:
        name: Of the set.
        config: Says whether any may be skipped.
        planned: Sequences that each part was to have.
        parts: As they are.

    Raises:
        DataError: more than the share that may be skipped.
    """
    total = sum(planned)
    count = total - sum(part.sequences for part in parts)
    if not count:
        return {}
    if count > config.bad_allowed(total):
        raise DataError(f"{name}: {_too_many(count, total, config)}")
    log.warning("%s: %d of %d sequences were skipped", name, count, total)
    return {"skipped": count}


def _too_many(count: int, total: int, config: SkipsBad) -> str:
    return (
        f"{count} of {total} sequences cannot be used, and max_bad_share = "
        f"{config.max_bad_share:g} lets at most {config.bad_allowed(total)} be skipped. Look for "
        "their common cause, or raise max_bad_share; parts that are done are kept."
    )
