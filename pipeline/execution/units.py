"""Units of work: the commands that a scheduler may run side by side to complete a stage.

Airflow, Dagster, Slurm and the Ray executor all ask for what is left to do of a stage, split into
at most n units. A unit is a list of arguments of `afterglow`; the units of a stage do not depend on
each other, and a sharded stage is committed after the last of them.
"""

import importlib
import logging
import re
from collections.abc import Iterable
from itertools import groupby, pairwise

from pipeline.planning.plan import Planned
from stages.job import ShardSpec
from storage.errors import UsageError
from storage.shard import find_part
from storage.store import Store

log = logging.getLogger(__name__)

_ITEM = re.compile(r"(\d+)(?:-(\d+))?")


def find_units(planned: Iterable[Planned], store: Store, at_most: int) -> list[list[str]]:
    """Arguments of the commands that complete the nodes in `planned`.

    Committed nodes have none. Nor have nodes that read sets which are not committed yet: a recipe
    with several rounds runs a stage again when the round before has ended.

    Args:
        planned: Nodes of one stage.
        store: Where their sets go.
        at_most: Most units of one sharded node; its missing parts are spread over them evenly.
    """
    out: list[list[str]] = []
    for chosen in planned:
        name, stage = chosen.node.name, chosen.node.stage
        if chosen.manifest(store) is not None:
            continue
        if waiting := chosen.waits_for(store):
            log.info("%s waits for %s: ask again after it", name, ", ".join(waiting))
        elif not stage.sharded:
            out.append(["run", name, "--here"])
        else:
            job = chosen.job(store)
            specs: list[ShardSpec] = importlib.import_module(stage.module).plan(job)
            left = [spec.index for spec in specs if find_part(job.directory, spec.index) is None]
            count = min(at_most, len(left))
            edges = [len(left) * unit // count for unit in range(count + 1)] if count else []
            out += [
                ["run", name, "--shard", format_shards(left[low:high])]
                for low, high in pairwise(edges)
            ]
    return out


def parse_shards(text: str) -> list[int]:
    """`3`, `0-7` or `0-2,5` as indices.

    Raises:
        UsageError: anything else.
    """
    out: list[int] = []
    for item in text.split(","):
        found = _ITEM.fullmatch(item.strip())
        if found is None:
            raise UsageError(f"--shard {text}: give an index, a range or several: 3, 0-7, 0-2,5")
        first = int(found[1])
        last = int(found[2] or first)
        if last < first:
            raise UsageError(f"--shard {text}: the range {item} ends before it begins")
        out += range(first, last + 1)
    return list(dict.fromkeys(out))


def format_shards(indices: list[int]) -> str:
    """The inverse of `parse_shards` for ascending indices."""
    runs: list[str] = []
    for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        members = [index for _, index in run]
        runs.append(f"{members[0]}-{members[-1]}" if len(members) > 1 else str(members[0]))
    return ",".join(runs)
