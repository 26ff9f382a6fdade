"""Every block of docs/python.md runs, in order."""

import re
from pathlib import Path

import pytest

from stages.config.record_kinds import HeadTail
from tests.stages.evaluation.cases import scored
from tests.world import write_model

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "python.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_every_block_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher, _ = write_model(tmp_path / "teacher", 1), write_model(tmp_path / "student", 2)
    scored(tmp_path / "store" / "teacher-logits-0123456789ab", teacher, HeadTail(), split="train")
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) == 7
    page: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), page)
    said = capsys.readouterr().out
    assert "unbiased - " in said
    losses = [float(found) for found in re.findall(r"loss ([\d.]+)", said)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
