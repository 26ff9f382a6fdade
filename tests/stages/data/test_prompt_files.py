"""Prompt files of every format, compressed or not, and directories of them."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard

from stages.data.prompt_files import count_rows, prompt_files, read_rows
from storage.errors import DataError

ROWS = [{"prompt": 'a, b\n"c"', "answer": "1"}, {"prompt": "ü", "answer": "2"}]
MANY = ("prompt", "answer")


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]], mark: str = ",") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=mark)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


TEXT: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".jsonl": as_jsonl,
    ".json": lambda rows: json.dumps(rows, indent=2).encode(),
    ".csv": as_csv,
    ".tsv": lambda rows: as_csv(rows, "\t"),
}
COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def read(path: Path, **options: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in read_rows(path, MANY, **options)]


@pytest.mark.parametrize("form", TEXT)
@pytest.mark.parametrize("compression", COMPRESSED)
def test_text_in_every_format_and_compression(tmp_path: Path, form: str, compression: str) -> None:
    path = tmp_path / f"a{form}{compression}"
    path.write_bytes(COMPRESSED[compression](TEXT[form](ROWS)))
    assert read(path) == ROWS
    assert count_rows(path) == 2


@pytest.mark.parametrize("form", TEXT)
@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_byte_order_mark_and_windows_line_ends(
    tmp_path: Path, form: str, compression: str
) -> None:
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2"}]
    text = b"\xef\xbb\xbf" + TEXT[form](rows).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    path = tmp_path / f"a{form}{compression}"
    path.write_bytes(COMPRESSED[compression](text))
    assert read(path) == rows


def test_json_lines_in_a_file_called_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(as_jsonl(ROWS))
    assert read(tmp_path / "a.json") == ROWS


def test_an_empty_value_of_csv_is_null(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,answer\na,\nb,007\n")
    assert [row["answer"] for row in read(tmp_path / "a.csv")] == [None, "007"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.csv",
            b"prompt,answer\na,1,2\n",
            r"line 2: another number of values than the 2 columns",
        ),
        ("a.csv", b"prompt,answer\na\n", r"line 2: another number of values"),
        ("a.csv", b'prompt,answer\n"a,1\n', r"line 1: not valid CSV"),
        ("a.csv", "prompt\nä\n".encode("latin-1"), r"line 2: not UTF-8"),
        ("a.json", b'[{"prompt": "a"},', r"not valid JSON"),
        ("a.json", b'["a"]', r"row 0: a JSON str"),
        ("a.jsonl.gz", gzip.compress(as_jsonl(ROWS * 99), mtime=0)[:-12], r"damaged gzip stream"),
        ("a.csv.gz", b"noise", r"damaged gzip stream"),
    ],
)
def test_damaged_text(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.*{said}"):
        read(tmp_path / name)


# ---------------------------------------------------------------------------------------------
# Directories


def shard(path: Path, first: int, count: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": str(n), "answer": n} for n in range(first, first + count)]
    if path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:
        path.write_bytes(as_jsonl(rows))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_directory_is_its_files_by_name(tmp_path: Path, suffix: str) -> None:
    for number in (2, 0, 1):
        shard(tmp_path / "data" / f"train-0000{number}-of-00003{suffix}", 2 * number)
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert [row["prompt"] for row in read(tmp_path)] == list("012345")
    assert count_rows(tmp_path) == 6


def test_a_directory_of_several_splits_needs_one(tmp_path: Path) -> None:
    shard(tmp_path / "train_sft-00000-of-00001.parquet", 0)
    shard(tmp_path / "test_sft-00000-of-00001.parquet", 2)
    with pytest.raises(DataError, match=r"several splits \(test, train\)\. Set `prompts\.split`"):
        read(tmp_path)
    assert count_rows(tmp_path) is None
    for split, prompts in (("train", ["0", "1"]), ("test_sft", ["2", "3"])):
        assert [row["prompt"] for row in read(tmp_path, split=split)] == prompts
    with pytest.raises(DataError, match="no files of prompts of split `dev` in this directory"):
        read(tmp_path, split="dev")


def test_a_directory_of_several_formats_is_unclear(tmp_path: Path) -> None:
    shard(tmp_path / "a.parquet", 0)
    shard(tmp_path / "a.jsonl", 0)
    with pytest.raises(DataError, match=r"several formats \(\.jsonl, \.parquet\)"):
        prompt_files(tmp_path)


def test_null_fields_of_parquet_are_not_there(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "name": "x"}]
    pl.DataFrame([{"prompt": turns, "answer": None}]).write_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [{"prompt": turns, "answer": None}]
