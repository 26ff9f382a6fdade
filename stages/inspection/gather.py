"""Reads a set for the inspector: figures of every sequence, and all that is known of some.

A page cannot hold the tokens of a large set. It holds a line for every sequence that was read and,
within a budget of tokens, whole sequences: half of the budget goes to the worst ones, shared evenly
by the quantities, half to a random sample. The set is read once: what falls out of a choice cannot
come back, since further sequences only make it stricter.

Shape letters: N sequences, T positions.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stages.counter import uniform
from stages.evaluation.positions import PositionValues
from stages.inspection.quantities import Quantity, badness, mean, of_model, of_set, worst
from stages.progress import advance
from storage.batch import Batch
from storage.codec import to_batch
from storage.files.place import Place
from storage.manifest import Manifest, SetMeta
from storage.rows import Rows, gather
from storage.schema import Array
from storage.shard import PartFile

_SALT = 0x1D5B
"""Seed of the random choices: the same sequences are shown every time."""

Models = Mapping[str, Callable[[Batch], PositionValues]]
"""By name: what gives a model's values at the positions of a batch."""


@dataclass(frozen=True)
class Kept:
    """Sequences of which the page holds everything."""

    batch: Batch
    columns: dict[str, Array]
    """[T] or [T, K] by name: quantities by key, `top:NAME` and `top_lp:NAME` of models, `cand`."""
    number_N: NDArray[np.int64]
    """Line of each sequence among all that were read."""


@dataclass
class Gathered:
    """What the page shows."""

    quantities: list[Quantity] = field(default_factory=list)
    table: dict[str, Array] = field(default_factory=dict)
    """A value for each sequence that was read: `seq_id`, `prompt_id`, `sample`, `outcome`,
    `finish`, `holdout`, `length`, and `mean:KEY` and `worst:KEY` of every quantity."""
    kept: Kept | None = None
    total: int = 0
    """Sequences of the set."""


def gather_set(
    directory: Place,
    manifest: Manifest,
    *,
    models: Models,
    limit: int | None,
    tokens: int,
    split: str | None = None,
    only: Collection[int] | None = None,
) -> Gathered:
    """Read a set of sequences or records.

    Args:
        directory: Of the set.
        manifest: Of it.
        models: Run over every sequence that is read.
        limit: Read about this many sequences, chosen at random; None reads all.
        tokens: Response tokens that the page may hold.
        split: Read this one only.
        only: Numbers of the sequences to read; None reads all.

    Raises:
        DataError: a part is missing or damaged.
    """
    parts = [part for part in manifest.parts if split in (None, part.split)]
    total = sum(part.sequences for part in parts)
    share = 1.0 if limit is None or total <= limit else limit / total
    out = Gathered(total=total)
    tables: list[dict[str, Array]] = []
    chosen, read = list[Kept](), 0
    for rows, meta, holdout in _groups(directory, manifest, split):
        advance(int(rows.tokens))
        if share < 1.0:
            wanted = np.flatnonzero(uniform(_SALT, rows["seq_id"]) < share)
            rows = rows.take(wanted)
        if only is not None:
            rows = rows.take(np.flatnonzero(np.isin(rows["seq_id"], list(only))))
        if not len(rows):
            continue
        batch = to_batch(rows, meta)
        found = of_set(batch)
        columns: dict[str, Array] = {}
        if "cand" in rows.columns:
            columns["cand"] = rows["cand"].reshape(batch.tokens, -1).astype(np.int64)
        for name, model in models.items():
            values = model(batch)
            found |= of_model(batch, name, values)
            columns |= {f"top:{name}": values.ids_TK, f"top_lp:{name}": values.logq_TK}
        out.quantities = list(dict.fromkeys([*out.quantities, *found]))
        columns |= {one.key: values_T for one, values_T in found.items()}
        tables.append(_lines(rows, batch, found, holdout))
        chosen.append(Kept(batch, columns, np.arange(read, read + len(batch))))
        read += len(batch)
        if sum(one.batch.tokens for one in chosen) > 4 * tokens:
            chosen = [_choose(chosen, tables, out.quantities, tokens)]
    if tables:
        out.table = _joined(tables)
        # The last model's quantities first: it is the one after training.
        order = [*reversed(list(models)), None]
        out.quantities.sort(key=lambda one: order.index(one.model))
        out.kept = _choose(chosen, [out.table], out.quantities, tokens)
    return out


def _groups(
    directory: Place, manifest: Manifest, split: str | None
) -> Iterator[tuple[Rows, SetMeta, bool]]:
    for part in manifest.parts:
        if split in (None, part.split):
            with closing(PartFile(directory / part.file, part.bytes)) as file:
                for group in range(len(file.row_groups)):
                    yield file.read(group), file.meta, part.split == "holdout"


def _lines(
    rows: Rows, batch: Batch, found: Mapping[Quantity, Array], holdout: bool
) -> dict[str, Array]:
    names = ("seq_id", "prompt_id", "sample", "outcome", "finish")
    table: dict[str, Array] = {name: rows[name] for name in names}
    table["holdout"] = np.full(len(rows), holdout, np.uint8)
    table["length"] = np.diff(batch.tok_off)
    for one, values_T in found.items():
        table[f"mean:{one.key}"] = mean(values_T, batch.tok_off).astype(np.float32)
        table[f"worst:{one.key}"] = worst(one, values_T, batch.tok_off).astype(np.float32)
    return table


def _joined(tables: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([one[name] for one in tables]) for name in tables[0]}


def _choose(
    kept: list[Kept], tables: list[dict[str, Array]], quantities: list[Quantity], tokens: int
) -> Kept:
    """The worst and a random sample of what is kept so far; everything that fits."""
    table = _joined(tables)
    batch = Batch.concat([one.batch for one in kept])
    number_N = np.concatenate([one.number_N for one in kept])
    columns = {
        name: np.concatenate([one.columns[name] for one in kept]) for name in kept[0].columns
    }
    if batch.tokens <= tokens:
        return Kept(batch, columns, number_N)
    length_N = np.diff(batch.tok_off)
    wanted = set(_first(uniform(_SALT + 1, batch.seq_id), length_N, tokens // 2))
    for one in quantities:
        bad_N = badness(one, table[f"mean:{one.key}"][number_N])
        wanted |= set(_first(-bad_N, length_N, tokens // 2 // len(quantities)))
    rows = np.array(sorted(wanted), np.int64)
    at_T, _ = gather(batch.tok_off, rows)
    taken = {name: values[at_T] for name, values in columns.items()}
    return Kept(batch.select(rows), taken, number_N[rows])


def _first(rank_N: Array, length_N: Array, tokens: int) -> list[int]:
    """The sequences of lowest rank that fit the budget together, at least one."""
    order = np.argsort(rank_N, kind="stable")
    fit = int(np.searchsorted(np.cumsum(length_N[order]), tokens, side="right"))
    return order[: max(1, fit)].tolist()
