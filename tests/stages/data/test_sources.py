"""Identity of what a recipe names: content counts, names and places do not."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.config.corpus import Corpus, Tokenizer
from stages.config.data import PromptSource
from stages.config.generation import SftData
from stages.data.sources import (
    content_identity,
    corpus_files,
    corpus_identity,
    prompts_identity,
)
from stages.models.identity import DigestCache
from stages.models.tokenizer import make_tokenizer
from storage.errors import ConfigError, DataError


def prompts(path: Path) -> dict[str, object]:
    return prompts_identity(PromptSource(path=str(path)))


def corpus(*patterns: Path | str, **fields: object) -> Corpus:
    return Corpus.model_validate({"text": [str(pattern) for pattern in patterns], **fields})


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", "x"), ("b.jsonl", "x"), ("c.jsonl", "y")):
        (tmp_path / name).write_text(text)
    assert prompts(tmp_path / "a.jsonl") == prompts(tmp_path / "b.jsonl")
    assert prompts(tmp_path / "a.jsonl") != prompts(tmp_path / "c.jsonl")


def test_a_data_set_directory_is_its_arrow_files(tmp_path: Path) -> None:
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        datasets.Dataset.from_list([{"prompt": text}]).save_to_disk(str(tmp_path / name))
    assert prompts(tmp_path / "a") == prompts(tmp_path / "b")
    assert prompts(tmp_path / "a") != prompts(tmp_path / "c")


def test_the_rules_of_a_verifier_count_where_there_are_answers(tmp_path: Path) -> None:
    """Sets of prompts without answers keep their keys whatever becomes of the rules."""
    rows = {"with": {"prompt": "1+1", "answer": "2"}, "without": {"prompt": "1+1"}}
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{name}.parquet")

    def named(file: str, **fields: object) -> bool:
        table = SftData.model_validate({"prompts": {"path": str(tmp_path / file)}, **fields})
        return "verifier" in content_identity(table, DigestCache())

    assert named("with.jsonl")
    assert named("with.parquet")
    assert not named("without.jsonl")
    assert not named("without.parquet")
    assert not named("missing.jsonl")
    assert not named("with.jsonl", verifier={"kind": "exact_match"})


def test_a_task_is_its_name_and_version() -> None:
    source = PromptSource(task="addition", limit=1)
    assert prompts_identity(source) == {"task": "addition", "version": 1}
    assert corpus_identity(Corpus(task="addition")) == {"task": "addition", "version": 1}
    with pytest.raises(ConfigError, match="does not exist"):
        prompts_identity(PromptSource(task="magic", limit=1))


def test_what_is_not_there_has_no_digest(tmp_path: Path) -> None:
    assert prompts(tmp_path / "nowhere.jsonl") == {"sha256": None}
    assert corpus_identity(corpus(tmp_path / "nowhere.txt")) == {"sha256": None}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.txt", "sub/c.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_files_of_a_corpus(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(*patterns: Path | str, **fields: object) -> list[str]:
        return [file.name for file in corpus_files(corpus(*patterns, **fields))]

    assert names(library) == ["a.txt", "b.txt", "c.txt"]
    assert names(library, suffix=".md") == ["notes.md"]
    assert names(library / "*.txt") == ["a.txt", "b.txt"]
    assert names(library / "b.txt", library / "a.txt") == ["b.txt", "a.txt"]
    monkeypatch.chdir(library)
    assert names("sub/*") == ["c.txt"]
    assert names("**/*.txt") == ["a.txt", "b.txt", "c.txt"]


def test_the_standard_library_is_text_on_every_machine() -> None:
    source = corpus("{stdlib}/json/*.py", "{stdlib}/json", suffix=".py")
    found = corpus_files(source)
    named = [file for file in found if file.samefile(json.__file__ or "")]
    assert len(named) == 2
    assert corpus_identity(source)["sha256"] is not None


@pytest.mark.parametrize("pattern", ["*.html", "nowhere", "nowhere.txt"])
def test_a_pattern_that_matches_nothing_is_named(library: Path, pattern: str) -> None:
    with pytest.raises(DataError, match=r"no such file.*corpus\.text"):
        corpus_files(corpus(library, library / pattern))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda root: (root / "notes.md").write_text("other"), True),
        (lambda root: (root / "a.txt").rename(root / "aa.txt"), True),
        (lambda root: (root / "a.txt").write_text("other"), False),
        (lambda root: (root / "a.txt").rename(root / "z.txt"), False),
        (lambda root: (root / "d.txt").write_text(""), False),
    ],
    ids=["not matched", "renamed in place", "changed", "reordered", "added"],
)
def test_identity_of_a_corpus(library: Path, change: Callable[[Path], object], same: bool) -> None:
    before = corpus_identity(corpus(library))
    change(library)
    assert (corpus_identity(corpus(library)) == before) == same


def test_a_given_tokenizer_counts_by_content(library: Path, tmp_path: Path) -> None:
    identities = []
    for name, text in (("one", "ab"), ("two", "ab"), ("three", "abc")):
        make_tokenizer(Tokenizer(kind="characters"), [text], tmp_path / name)
        table = {"path": str(tmp_path / name)}
        identities.append(corpus_identity(corpus(library / "a.txt", tokenizer=table)))
    assert identities[0] == identities[1] != identities[2]
    assert identities[0] != corpus_identity(corpus(library / "a.txt"))
