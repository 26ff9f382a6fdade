"""Reads prompt files row by row: JSON, CSV, Parquet, plain or compressed, and directories of them.

Rows are numbered from 0 in the order of the file, blank lines of JSON not counted; the files of a
directory follow each other by name. Text is UTF-8, with or without a byte order mark, with line
ends of either kind. Memory use does not grow with the file, but for `.json`. Imports neither torch
nor transformers.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, cast

from storage.errors import DataError

Row = Mapping[str, Any]

_BATCH = 1024
_READ = 1 << 18
_BOM = b"\xef\xbb\xbf"
_SPLITS = ("train", "training", "test", "validation", "valid", "val", "dev", "eval")
"""Words that name a split where they occur in the name of a file, as on the Hub."""


def read_rows(path: Path, names: tuple[str, ...], split: str | None = None) -> Iterator[Row]:
    """The rows of a prompt file, in order.

    Args:
        path: File or directory.
        names: Wanted fields, of which only the first must exist. Formats with a schema read their
            columns alone; without the first, rows hold all columns there are.
        split: Which of the splits in a directory.

    Raises:
        DataError: the path does not exist, its format is unknown, or its content is damaged; the
            message names file and line or row.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or directory. Check `prompts.path`.")
    if path.is_dir() and _saved_by_datasets(path):
        return dataset_rows(_load_datasets(path, split), names)
    files = prompt_files(path, split)
    return chain.from_iterable(_file_rows(file, names) for file in files)


def count_rows(path: Path, split: str | None = None) -> int | None:
    """Number of rows; None where a file is missing or unreadable.

    Cheap for Parquet and `datasets` directories; JSON lines are counted, not parsed.
    """
    try:
        if path.is_dir() and _saved_by_datasets(path):
            return len(_load_datasets(path, split))
        return sum(_count(file) for file in prompt_files(path, split))
    except (OSError, DataError, ValueError):
        return None


def prompt_files(path: Path, split: str | None = None) -> list[Path]:
    """The files that a path stands for: itself, or those of a directory, sorted by name.

    Args:
        path: File, or directory with files of one format at any depth.
        split: Which of the splits in a directory, by a word in the names of its files.

    Raises:
        DataError: the path is not there, or a directory has no such files, files of several
            formats, or files of several splits without saying which.
    """
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"{path}: no such file or directory. Check `prompts.path`.")
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and _format(file))
    data = [file for file in found if _format(file) != ".json"]  # beside data: its description
    found = data or found
    words = {file: _words(file.relative_to(path)) for file in found}
    if split is not None:
        found = [file for file in found if split in words[file]]
    splits = {file: words[file].intersection(_SPLITS) for file in found}
    names = ", ".join(sorted(set[str]().union(*splits.values())))
    formats = sorted({str(_format(file)) for file in found})
    if split is None and len({*map(frozenset, splits.values())}) > 1:
        raise DataError(f"{path}: holds several splits ({names}). Set `prompts.split` to one.")
    if len(formats) > 1:
        raise DataError(
            f"{path}: holds files of several formats ({', '.join(formats)}). Give the path of one "
            "file, or a directory that holds one format."
        )
    if not found:
        which = f" of split `{split}`" if split is not None else ""
        raise DataError(
            f"{path}: no files of prompts{which} in this directory, and not a directory written by "
            f"`datasets.save_to_disk`. Supported are {', '.join(_FORMATS)}; the text ones also "
            "with .gz or .zst."
        )
    return found


def dataset_rows(dataset: Any, names: tuple[str, ...]) -> Iterator[Row]:
    """The rows of a `datasets.Dataset`; see `read_rows`."""
    view = dataset.select_columns(_wanted(dataset.column_names, names)).with_format(None)
    for batch in view.iter(batch_size=_BATCH):
        columns = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield _without_nulls(dict(zip(columns, values, strict=True)))


def one_split(found: Any, where: str, split: str | None) -> Any:
    """The data set itself, or the wanted one of several splits.

    Raises:
        DataError: there is no such split, or there are several and none is wanted.
    """
    import datasets

    if not isinstance(found, datasets.DatasetDict):
        return found
    splits = sorted(map(str, found))
    if split is None and len(splits) > 1:
        raise DataError(
            f"{where}: holds several splits ({', '.join(splits)}). Set `prompts.split` to one."
        )
    if split is not None and split not in splits:
        raise DataError(f"{where}: no split `{split}`; it has {', '.join(splits)}")
    return found[split or splits[0]]


# ---------------------------------------------------------------------------------------------
# Formats


def _file_rows(path: Path, names: tuple[str, ...]) -> Iterator[Row]:
    form = _format(path)
    if form is None:
        raise DataError(
            f"{path}: unknown format of prompts; supported are {', '.join(_FORMATS)} (the text "
            "ones also with .gz or .zst), a directory of such files, a directory written by "
            "datasets.save_to_disk, and the Hub id of a data set"
        )
    return _FORMATS[form](path, names)


def _json_lines(path: Path, names: tuple[str, ...]) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), start=1):
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


def _json_array(path: Path, names: tuple[str, ...]) -> Iterator[Row]:
    """A file that holds an array of objects, or, as many `.json` files do, JSON lines."""
    lines = _lines(path)
    first = next((line for line in lines if line.strip()), b"")
    if not first.lstrip().startswith(b"["):
        yield from _json_lines(path, names)
        return
    try:
        rows = json.loads(b"\n".join([first, *lines]))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}). Correct the file.") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, row {number}: a JSON {type(row).__name__}, but every row must be an "
                'object such as {"prompt": "..."}'
            )
        yield cast("Row", row)


def _csv_rows(path: Path, names: tuple[str, ...]) -> Iterator[Row]:
    """Rows below a line of column names. All values are text; an empty one is null."""
    csv.field_size_limit(2**31 - 1)
    mark = "\t" if _format(path) == ".tsv" else ","
    reader = csv.DictReader(_text(path), delimiter=mark, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path}, line {reader.line_num}: another number of values than the "
                    f"{len(reader.fieldnames or ())} columns of the first line; quote values that "
                    "hold separators or line ends"
                )
            yield {name: value or None for name, value in row.items()}
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from error


def _parquet_rows(path: Path, names: tuple[str, ...]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            wanted = _wanted(file.schema_arrow.names, names)
            for batch in file.iter_batches(batch_size=_BATCH, columns=wanted):
                yield from map(_without_nulls, batch.to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: damaged, or not a Parquet file ({error}). Restore it from a copy."
        ) from error


_FORMATS: dict[str, Callable[[Path, tuple[str, ...]], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json_array,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}
_COMPRESSED = (".gz", ".zst")


def _format(path: Path) -> str | None:
    """Suffix of the format, without that of the compression; None where it is unknown."""
    name = path.name.lower()
    compressed = name.endswith(_COMPRESSED)
    form = Path(Path(name).stem if compressed else name).suffix
    return form if form in _FORMATS and not (compressed and form == ".parquet") else None


def known_format(path: str) -> bool:
    """Whether a path ends as a file of prompts does."""
    return _format(Path(path)) is not None


def _count(path: Path) -> int:
    if _format(path) == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_metadata(path).num_rows
    if _format(path) == ".jsonl":
        return sum(1 for line in _lines(path) if line.strip())
    return sum(1 for _ in _file_rows(path, ("",)))


def _words(path: Path) -> set[str]:
    """Words in the name of a file and of its directories; `train_sft-00000` has `train_sft` too."""
    parts = [part for name in path.parts for part in re.split(r"[^\w]+", name.lower())]
    return {word for part in parts for word in (part, *part.split("_"))}


def _wanted(present: list[str], names: tuple[str, ...]) -> list[str]:
    """The columns that hold the wanted fields; all without the first: an error will list them."""
    held = [[one for one in (name, name.partition(".")[0]) if one in present] for name in names]
    return list(dict.fromkeys(one for ones in held for one in ones)) if held[0] else present


def _without_nulls(row: dict[str, Any]) -> Row:
    """The row without fields of inner tables that are null: Arrow gives all tables all fields."""

    def inner(value: Any) -> Any:
        if isinstance(value, dict):
            table = cast("dict[str, Any]", value)
            return {name: inner(one) for name, one in table.items() if one is not None}
        return (
            [inner(one) for one in cast("list[Any]", value)] if isinstance(value, list) else value
        )

    return {name: inner(value) for name, value in row.items()}


# ---------------------------------------------------------------------------------------------
# Bytes


def _text(path: Path) -> Iterator[str]:
    """Lines of text with their ends, which a quoted value of CSV may contain."""
    for number, line in enumerate(_lines(path), start=1):
        try:
            yield line.decode() + "\n"
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not UTF-8 ({error}). Save the file as UTF-8."
            ) from error


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, decompressed, without a byte order mark."""
    name = path.name.lower()
    read = _zst_lines if name.endswith(".zst") else _gz_lines if name.endswith(".gz") else _plain
    for number, line in enumerate(read(path)):
        yield line.removeprefix(_BOM) if number == 0 else line


def _plain(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        for line in stream:
            yield line.removesuffix(b"\n")


def _gz_lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) as stream:
            for line in stream:
                yield line.removesuffix(b"\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: damaged gzip stream ({error}). Restore the file, or compress it again."
        ) from error


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
    if rest:
        yield rest


# ---------------------------------------------------------------------------------------------
# Directories written by datasets


def _saved_by_datasets(path: Path) -> bool:
    return any((path / name).exists() for name in ("dataset_dict.json", "state.json"))


def _load_datasets(path: Path, split: str | None) -> Any:
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: damaged, or not written by `datasets.save_to_disk` ({error})"
        ) from error
    return one_split(found, str(path), split)
