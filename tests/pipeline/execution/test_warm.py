"""Forks of a warm process: apart from each other, and no worse for a process that is killed."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.execution.warm import Interrupted, Warm
from tests.pipeline.execution import warm_commands

COMMANDS = warm_commands.__name__


@pytest.fixture(scope="module", autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, also in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    """A process that has imported numpy, and failed to import what there is not."""
    with Warm(["numpy", "no_such_module", COMMANDS]) as made:
        assert not tell(made)["numpy"], "the first command does not wait for what it does not need"
        yield made


def tell(warm: Warm, *imports: str) -> dict[str, Any]:
    code, out = warm.run(COMMANDS, ["tell"], imports)
    assert code == 0
    return json.loads(out)


def test_a_command_starts_with_what_was_imported_and_with_nothing_of_the_one_before(
    warm: Warm,
) -> None:
    first, second = tell(warm), tell(warm)
    assert first["parent"] == second["parent"]
    for found in (first, second):
        assert found["state"] == [found["pid"]]
        assert found["numpy"]
        assert found["threads"] == 1
        assert found["interruptible"]
        assert found["stdin"] == ""
    assert not Path(f"/proc/{first['pid']}").exists()


def test_what_is_announced_is_imported_before_the_first_command() -> None:
    with Warm([COMMANDS]) as warm:
        warm.begin(["numpy"])
        assert tell(warm)["numpy"]


def test_a_command_has_the_environment_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """What engines want set would reach the ranks of a trainer."""
    names = "OMP_NUM_THREADS", "TORCHDYNAMO_DISABLE", "VLLM_LOGGING_LEVEL", "OMP_WAIT_POLICY"
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with Warm([COMMANDS]) as warm:
        found = tell(warm)["environment"]
    assert found.items() >= os.environ.items()
    assert not found.keys() & set(names)


@pytest.mark.parametrize(
    ("command", "code"),
    [(["return", "0"], 0), (["return", "78"], 78), (["die"], -9), (["no number"], 0)],
)
def test_the_exit_code_is_that_of_the_command(warm: Warm, command: list[str], code: int) -> None:
    assert warm.run(COMMANDS, command)[0] == code
    assert tell(warm)["numpy"], "the next command is not touched"


def test_a_warm_process_that_was_killed_is_started_again(warm: Warm) -> None:
    before = tell(warm)
    assert warm.run(COMMANDS, ["orphan"])[0] == 75, "nobody knows how the command ended"
    after = tell(warm, "numpy")
    assert after["numpy"], "what a command needs is imported before it"
    assert after["parent"] != before["parent"]
    os.kill(after["parent"], signal.SIGKILL)
    while Path(f"/proc/{after['parent']}/stat").read_text().split()[2] != "Z":
        time.sleep(0.01)
    assert tell(warm)["parent"] != after["parent"]


def test_sigterm_reaches_the_command(warm: Warm, tmp_path: Path) -> None:
    started = tmp_path / "started"
    threading.Thread(target=_send, args=(signal.SIGTERM, started)).start()
    assert warm.run(COMMANDS, ["wait", str(started)])[0] == -signal.SIGTERM
    assert tell(warm)["numpy"]


def test_an_interruption_before_the_command_began_ends_the_wait(tmp_path: Path) -> None:
    slow = "tests.pipeline.execution.slow_import"
    with Warm([]) as warm:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(Interrupted) as caught:
            warm.run(COMMANDS, ["wait", str(tmp_path / "started")], [slow])
    assert not caught.value.reported
    assert not (tmp_path / "started").exists()


def _send(number: int, started: Path) -> None:
    while not started.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), number)
