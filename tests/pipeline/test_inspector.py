"""`afterglow inspect`, called in this process."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main
from storage.rows import Rows
from tests.storage.make import meta_of, sequence, write_parts


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    meta = meta_of("head_tail", vocab_size=50)
    rng = np.random.default_rng(0)
    rows = Rows.from_sequences([sequence(rng, meta, i) for i in range(40)])
    write_parts(tmp_path / "teacher-logits-1", meta, [(rows, "train")])
    return tmp_path / "teacher-logits-1"


def test_a_page_is_written_and_its_path_printed(
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(directory), "--only", "3,5-6"]) == 0
    path, result = capsys.readouterr().out.splitlines()
    assert path == "inspect-teacher-logits-1.html"
    assert json.loads(result) == {
        "verb": "inspect",
        "page": path,
        "sequences": 40,
        "read": 3,
        "shown": 3,
        "quantities": ["advantage", "entropy", "surprise", "rest", "drawn"],
    }
    assert 'id="inspector-data"' in Path(path).read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--tokens", "0"], 2, "--tokens 0: give 1 or more"),
        (["--limit", "-1"], 2, "--limit -1: give 1 or more"),
        (["--only", "x"], 2, "--only x: give an index"),
        (["--only", "99"], 65, "no sequence to show"),
        (["--model", "./nowhere"], 65, "nowhere: no such directory"),
    ],
)
def test_what_cannot_be_shown_is_an_error(
    directory: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(directory), *arguments]) == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.glob("*.html")) == []
