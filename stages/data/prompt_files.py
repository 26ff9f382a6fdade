"""Reads prompt files row by row: JSON lines, plain or zstd, Parquet, `datasets` directories.

Rows are numbered from 0 in the order of the file, blank lines of JSON not counted. Memory use does
not grow with the file. Imports neither torch nor transformers.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from storage.errors import DataError

Row = Mapping[str, Any]

_SUFFIXES = ".jsonl, .jsonl.zst, .parquet, or a directory written by datasets.save_to_disk"
_BATCH = 1024
_READ = 1 << 18


def read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """The rows of a prompt file, in order.

    Args:
        path: File or directory.
        columns: Wanted columns, of which only the first must exist. Formats with a schema read
            these alone; without the first, rows hold all columns there are.

    Raises:
        DataError: the path does not exist, its format is unknown, or its content is damaged; the
            message names file and line or row.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or directory. Check `prompts.path`.")
    if path.is_dir():
        return _datasets_rows(path, columns)
    if path.name.endswith(".jsonl"):
        return _json_rows(path, _plain_lines(path))
    if path.name.endswith(".jsonl.zst"):
        return _json_rows(path, _zst_lines(path))
    if path.name.endswith(".parquet"):
        return _parquet_rows(path, columns)
    raise DataError(f"{path}: unknown format of prompts; supported are {_SUFFIXES}")


def count_rows(path: Path) -> int | None:
    """Number of rows; None where the file is missing or unreadable.

    Cheap for Parquet and `datasets` directories; JSON lines are counted, not parsed.
    """
    try:
        if path.is_dir():
            return len(_load_datasets(path))
        if path.name.endswith(".parquet"):
            import pyarrow.parquet as pq

            return pq.read_metadata(path).num_rows
        lines = _zst_lines if path.name.endswith(".zst") else _plain_lines
        return sum(1 for line in lines(path) if line.strip())
    except (OSError, DataError, ValueError):
        return None


def _json_rows(path: Path, lines: Iterable[bytes]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: not valid JSON ({error}). Correct or remove the line."
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number}: a JSON {type(row).__name__}, but every line must be an "
                'object such as {"prompt": "..."}'
            )
        yield cast("Row", row)


def _plain_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        yield from stream


def _zst_lines(path: Path) -> Iterator[bytes]:
    """Lines of a zstd file, frame after frame; the library's own reader accepts a cut-off end."""
    import zstandard

    damaged = f"{path}: damaged zstd stream ({{}}). Restore the file, or compress it again."
    decompressor = zstandard.ZstdDecompressor()
    frame, rest = None, b""
    with path.open("rb") as stream:
        try:
            while block := stream.read(_READ):
                while block:
                    frame = frame or decompressor.decompressobj()
                    *lines, rest = (rest + frame.decompress(block)).split(b"\n")
                    yield from lines
                    block, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        except zstandard.ZstdError as error:
            raise DataError(damaged.format(error)) from error
    if frame is not None:
        raise DataError(damaged.format("it ends in the middle"))
    yield rest


def _parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            wanted = _wanted(file.schema_arrow.names, columns)
            for batch in file.iter_batches(batch_size=_BATCH, columns=wanted):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: damaged, or not a Parquet file ({error}). Restore it from a copy."
        ) from error


def _datasets_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    found = _load_datasets(path)
    view = found.select_columns(_wanted(found.column_names, columns)).with_format(None)
    for batch in view.iter(batch_size=_BATCH):
        names = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(names, values, strict=True))


def _load_datasets(path: Path) -> Any:
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a directory written by `datasets.save_to_disk` ({error}). "
            f"Supported are {_SUFFIXES}."
        ) from error
    if isinstance(found, datasets.DatasetDict):
        splits = ", ".join(sorted(map(str, found)))
        raise DataError(f"{path}: holds several splits ({splits}). Give one: {path}/<split>.")
    return found


def _wanted(present: list[str], names: tuple[str, ...]) -> list[str]:
    """The columns that hold the wanted fields; all without the first: an error will list them."""
    held = [[one for one in (name, name.partition(".")[0]) if one in present] for name in names]
    return list(dict.fromkeys(one for ones in held for one in ones)) if held[0] else present
