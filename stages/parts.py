"""How a set of sequences is split into parts: the unit of work, and what a kill may cost.

A set has `_PARTS` parts of equal size, so that eight workers have 32 each and a killed one loses
1/256 of the work. Small sets have fewer, since a part should hold at least `_LEAST` tokens; very
large ones have more, since it should hold at most `_MOST`. Parts hold whole row groups, so that the
row groups of a set, and with them the order in which it is read, do not depend on the split.

The split follows from the sequences alone, never from the number of workers. It does not decide
what a set means either, and another version may have split the same set otherwise: a set that was
begun goes on with the split that its first parts have.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from stages.job import Job, ShardSpec
from storage.errors import DataError
from storage.files.place import Place
from storage.manifest import FILE_NAME, Part, read_manifest
from storage.schema import ROW_GROUP
from storage.shard import PartFile

_PARTS = 256
_LEAST = 1 << 15
"""Tokens: half a megabyte of rollouts, a minute or two of a small model on a few CPU cores."""
_MOST = 1 << 21
"""Tokens: 30 to 80 MB, a few minutes of a model of some billion parameters on a GPU."""


def plan_parts(
    job: Job[Any], boundary: int, total: int, *, fixed: int | None, former: int, tokens: int
) -> list[ShardSpec]:
    """The parts of the set that `job` makes.

    Args:
        job: Its directory may hold a committed set, or parts of one.
        boundary: Sequences of split `train`; those of `holdout` follow.
        total: Number of sequences.
        fixed: Sequences per part, if the recipe says so.
        former: Sequences per part where the recipe does not, in version 0.1.0.
        tokens: Tokens in the set, or an upper bound.

    Raises:
        DataError: the manifest of a committed set cannot be read.
    """
    if fixed is not None and fixed != former:
        return split_parts(boundary, total, fixed)
    even = split_evenly(boundary, total, tokens)
    earlier = split_parts(boundary, total, former)
    for index, count in _present(job.directory) if even != earlier else ():
        lacks_even, lacks_earlier = (_lacking(plan, index, count) for plan in (even, earlier))
        if lacks_even != lacks_earlier:
            return even if lacks_even < lacks_earlier else earlier
    return even if fixed is None else earlier


def split_parts(boundary: int, total: int, per_part: int) -> list[ShardSpec]:
    """Parts of `per_part` sequences, the last of a split smaller.

    Sequences from `boundary` on are held out; no part holds both splits.
    """
    spans = [
        (first, min(per_part, stop - first), split)
        for split, start, stop in (("train", 0, boundary), ("holdout", boundary, total))
        for first in range(start, stop, per_part)
    ]
    return [ShardSpec(index, *span) for index, span in enumerate(spans)]


def split_evenly(boundary: int, total: int, tokens: int) -> list[ShardSpec]:
    """Parts that differ by at most one row group, as the head of this module describes.

    Sequences from `boundary` on are held out; no part holds both splits.
    """
    wanted = min(max(tokens / _PARTS, _LEAST), _MOST)
    most = max(int(wanted * total / max(tokens, 1)) // ROW_GROUP, 1)
    """Row groups in a part."""
    specs: list[ShardSpec] = []
    for split, start, stop in (("train", 0, boundary), ("holdout", boundary, total)):
        groups = -(-(stop - start) // ROW_GROUP)
        parts = -(-groups // most)
        for part in range(parts):
            first, end = (start + ROW_GROUP * (groups * n // parts) for n in (part, part + 1))
            specs.append(ShardSpec(len(specs), first, min(end, stop) - first, split))
    return specs


def check_split(
    directory: Place, parts: Sequence[Part], specs: Sequence[ShardSpec], skippable: int = 0
) -> None:
    """Refuse parts of another split than the planned one.

    Args:
        directory: Of the set.
        parts: As they are.
        specs: As they are planned.
        skippable: How many sequences a part may lack.

    Raises:
        DataError: a part holds more or fewer sequences than planned.
    """
    for part, spec in zip(parts, specs, strict=True):
        if not 0 <= spec.count - part.sequences <= skippable:
            raise DataError(
                f"{directory / part.file}: holds {part.sequences} sequences where {spec.count} are "
                "planned; two versions of Afterglow split this set differently. Move the file away "
                "and run the stage again."
            )


def _lacking(plan: Sequence[ShardSpec], index: int, count: int) -> float:
    """Sequences that part `index` lacks if it belongs to `plan`; infinite if it cannot.

    Few or none if it does: sequences may have been skipped.
    """
    planned = plan[index].count if index < len(plan) else 0
    return planned - count if planned >= count else math.inf


def _present(directory: Place) -> Iterator[tuple[int, int]]:
    """Index and number of sequences of the parts in `directory`; damaged ones are left out."""
    if (directory / FILE_NAME).exists():
        for part in read_manifest(directory).parts:
            yield part.index, part.sequences
        return
    for path in sorted(directory.glob("part-*-*.parquet"), key=lambda path: path.name):
        try:
            with PartFile(path) as file:
                yield file.index, sum(group.rows for group in file.row_groups)
        except DataError:  # reported where it is made again
            continue
