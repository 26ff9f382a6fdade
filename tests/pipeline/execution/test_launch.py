"""Which of several failures the launcher reports. tests/e2e/test_processes.py has real ones."""

import json
import logging
import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from pipeline.execution.launch import explain

LOST = (75, "another process ended")
BAD = (78, "hidden_size does not fit")


def failed(root: Path, rank: int, code: int, error: tuple[int, str] | None) -> ProcessFailure:
    """What torchelastic finds of a process: its exit code and the error it recorded."""
    file = root / f"{rank}.json"
    if error is not None:
        found = {"message": error[1], "timestamp": 1_800_000_000, "exit_code": error[0]}
        file.write_text(json.dumps(found))
    return ProcessFailure(rank, 1000 + rank, code, str(file))


@pytest.mark.parametrize("stopped", [78, -signal.SIGTERM])
def test_the_cause_comes_first_even_if_it_was_stopped_while_it_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stopped: int
) -> None:
    found = {0: failed(tmp_path, 0, 75, LOST), 1: failed(tmp_path, 1, stopped, BAD)}
    with caplog.at_level(logging.ERROR, "pipeline"):
        assert explain(found) == 78
    assert caplog.messages == ["hidden_size does not fit"]


def test_a_killed_process_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = {0: failed(tmp_path, 0, 75, LOST), 1: failed(tmp_path, 1, -signal.SIGKILL, None)}
    with caplog.at_level(logging.ERROR, "pipeline"):
        assert explain(found) == 75
    assert "process 1 was killed by signal 9" in caplog.text
