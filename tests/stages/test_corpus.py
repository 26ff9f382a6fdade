"""`corpus`: text and tasks as sequences, made once, cut where they should be."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import corpus
from stages.config.corpus import Corpus, Tokenizer
from stages.data.tasks import task
from stages.job import Job
from stages.models.identity import tokenizer_hash
from stages.models.tokenizer import load_tokenizer, make_tokenizer
from storage.errors import DataError
from storage.manifest import Manifest
from storage.rows import Rows
from storage.sets import verify_set
from tests.storage import make
from tests.world import make_job, run

TEXTS = {
    "a.txt": "the cat sat on the mat\n" * 40,
    "b.txt": "",
    "c.txt": "naïve café\n\nwithout a last newline",
}
EOS, BOS = 2, 1


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def task_job(root: Path, **fields: Any) -> Job[Corpus]:
    return make_job(root, "corpus", Corpus.model_validate(fields))


def text_job(root: Path, library: Path, **fields: Any) -> Job[Corpus]:
    small = {"tokenizer": {"vocab_size": 280}, "sequence_length": 16, "holdout": 0.2}
    return task_job(root, **{"text": (str(library),), **small, **fields})


def complete(job: Job[Corpus]) -> Manifest:
    return run(job, backwards=True)


def rows_of(job: Job[Corpus], split: str | None = None) -> Rows:
    return make.rows_of(job.directory, split)


def by_id(rows: Rows) -> list[dict[str, Any]]:
    sequences = [rows.sequence(index) for index in range(len(rows))]
    return sorted(sequences, key=lambda one: one["seq_id"])


# ---------------------------------------------------------------------------------------------
# Text


def test_windows_put_together_are_the_text(tmp_path: Path, library: Path) -> None:
    job = text_job(tmp_path, library)
    manifest = complete(job)
    assert verify_set(job.directory) == []
    windows = by_id(rows_of(job))
    tokenizer = load_tokenizer(job.site / "tokenizer")
    stream = np.concatenate([window["tok"] for window in windows])
    text = str(tokenizer.decode(stream.tolist()))
    assert text == TEXTS["a.txt"] + "<eos>" + TEXTS["c.txt"] + "<eos>"
    assert all(window["prompt"].tolist() == [BOS] for window in windows)
    assert all(len(window["tok"]) == 15 for window in windows[:-1])
    assert manifest.meta["vocab_size"] == len(tokenizer)


def test_a_window_is_marked_by_how_it_ends(tmp_path: Path, library: Path) -> None:
    job = text_job(tmp_path, library)
    complete(job)
    for window in rows_of(job), rows_of(job, "holdout"):
        ends = window["tok"][window.offsets["position"][1:] - 1] == EOS
        np.testing.assert_array_equal(window["finish"], np.where(ends, 0, 1))
    assert set(rows_of(job)["outcome"]) == {-1}


def test_nobody_sampled_a_corpus(tmp_path: Path, library: Path) -> None:
    job = text_job(tmp_path, library)
    manifest = complete(job)
    assert set(rows_of(job).columns) == {
        "seq_id", "prompt_id", "sample", "finish", "outcome", "prompt", "tok",
    }  # fmt: skip
    assert manifest.teacher is None
    assert manifest.kind == "sequences"


def test_windows_are_shuffled_and_some_held_out(tmp_path: Path, library: Path) -> None:
    job = text_job(tmp_path, library, sequences_per_part=5)
    complete(job)
    train, held_out = rows_of(job, "train")["seq_id"], rows_of(job, "holdout")["seq_id"]
    total = len(train) + len(held_out)
    assert len(held_out) == round(0.2 * total)
    assert sorted([*train, *held_out]) == list(range(total))
    assert train.tolist() != sorted(train)


def test_part_size_changes_nothing_and_the_seed_the_order(tmp_path: Path, library: Path) -> None:
    orders = []
    for name, fields in (("a", {}), ("b", {"sequences_per_part": 3}), ("c", {"seed": 1})):
        job = text_job(tmp_path / name, library, **fields)
        complete(job)
        orders.append(rows_of(job)["seq_id"].tolist())
    assert orders[0] == orders[1] != orders[2]


def test_files_are_read_in_pieces(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces end at lines or words, so even characters of several bytes stay whole."""
    monkeypatch.setattr(corpus, "READ_BYTES", 7)
    for name, text in TEXTS.items():
        pieces = list(corpus.file_pieces(library / name))
        assert "".join(pieces) == text
        assert len(pieces) > 1 or not text
    monkeypatch.setattr(corpus, "READ_BYTES", 2)
    (library / "d.txt").write_text("ééééé", encoding="utf-8")
    assert "".join(corpus.file_pieces(library / "d.txt")) == "ééééé"


def test_a_tokenizer_can_be_given(tmp_path: Path, library: Path) -> None:
    make_tokenizer(Tokenizer(kind="characters"), list(TEXTS.values()), tmp_path / "own")
    table = {"path": str(tmp_path / "own")}
    job = text_job(tmp_path / "store", library, tokenizer=table)
    manifest = complete(job)
    assert (manifest.tokenizer or {})["tokenizer"] == tokenizer_hash(tmp_path / "own")
    copied = job.directory / "tokenizer" / "tokenizer.json"
    assert copied.read_bytes() == (tmp_path / "own" / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("read", [4, 1 << 20])
def test_bytes_that_are_not_utf8_are_named_with_their_offset(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch, read: int
) -> None:
    monkeypatch.setattr(corpus, "READ_BYTES", read)
    (library / "bad.txt").write_bytes("gut\nö\n".encode() + b"schl\xe9cht\n")
    with pytest.raises(DataError, match=r"bad\.txt, byte 11: not UTF-8"):
        corpus.plan(text_job(tmp_path, library))
    assert not list(tmp_path.glob("*/.work/*"))


def test_files_without_text_are_refused(tmp_path: Path, library: Path) -> None:
    with pytest.raises(DataError, match=r"b\.txt: no text"):
        corpus.plan(task_job(tmp_path, text=(str(library / "b.txt"),)))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt: no such file"):
        corpus.plan(task_job(tmp_path, text=("nowhere.txt",)))


def test_a_tokenizer_without_end_token_is_refused(tmp_path: Path, library: Path) -> None:
    make_tokenizer(Tokenizer(vocab_size=280), [], tmp_path / "own")
    tokenizer = load_tokenizer(tmp_path / "own")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "own")
    with pytest.raises(DataError, match="no end token"):
        corpus.plan(text_job(tmp_path, library, tokenizer={"path": str(tmp_path / "own")}))


# ---------------------------------------------------------------------------------------------
# Tasks


def test_a_task_becomes_its_problems(tmp_path: Path) -> None:
    characters = {"kind": "characters"}
    job = task_job(tmp_path, task="addition", count=60, seed=3, tokenizer=characters, holdout=0.1)
    complete(job)
    tokenizer = load_tokenizer(job.site / "tokenizer")
    assert len(tokenizer) == 3 + len(task("addition").characters)
    problems = task("addition").problems(0, 60, 3)
    for one, problem in zip(by_id(rows_of(job)), problems, strict=True):
        assert tokenizer.decode(one["prompt"].tolist()) == "<bos>" + problem.prompt
        assert tokenizer.decode(one["tok"].tolist()) == problem.response + "<eos>"
        assert (one["finish"], one["outcome"]) == (0, 1)
    assert len(rows_of(job, "holdout")) == 6


# ---------------------------------------------------------------------------------------------
# Made once


def test_processes_that_race_agree_on_one_tokenisation(tmp_path: Path, library: Path) -> None:
    job = text_job(tmp_path, library)
    with ThreadPoolExecutor(4) as threads:
        plans = list(threads.map(lambda _: corpus.plan(job), range(4)))
    assert all(plan == plans[0] for plan in plans)
    work = job.directory / ".work"
    assert [path.name for path in work.iterdir()] == ["prepared"]


def test_what_is_prepared_is_not_made_again(tmp_path: Path, library: Path) -> None:
    job = text_job(tmp_path, library)
    before = corpus.plan(job)
    (library / "a.txt").unlink()
    assert corpus.plan(job) == before
