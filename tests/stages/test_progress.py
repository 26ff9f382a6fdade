"""What a person is told while a stage runs. The clock is the test's own."""

import io
import logging
import sys
import time

import pytest

from stages import progress
from stages.progress import Progress, duration
from stages.ranks import WORKER


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """No line comes of itself."""
    one = Clock()
    monkeypatch.setattr(progress, "time", one)
    return one


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="stages.progress")
    return caplog


def test_a_line_has_the_share_and_the_time_left(clock: Clock) -> None:
    with Progress("train", 120, "steps") as one:
        assert one.line() == "train: 0 of 120 steps (0%)"
        clock.now += 30
        one.advance(20)
        assert one.line() == "train: 20 of 120 steps (17%), 0.67 steps/s, about 2 min 30 s left"


def test_the_share_is_of_the_whole_set_and_the_rate_is_of_this_run(clock: Clock) -> None:
    """4,000 of 10,000 sequences were there; another worker makes as many as this one."""
    others = [4000.0]
    with Progress("rollouts", 10000, "sequences", elsewhere=lambda: others[0]) as one:
        clock.now += 100
        one.advance(1000, tokens=250_000)
        others[0] = one._others = 5000.0
        assert one.line() == (
            "rollouts: 6,000 of 10,000 sequences (60%), 2,500 tokens/s, about 3 min 20 s left"
        )


def test_the_last_line_has_the_time_and_the_rate(
    clock: Clock, told: pytest.LogCaptureFixture
) -> None:
    with Progress("train") as stage:
        with Progress("train", 120, "steps", done=100) as one:
            clock.now += 5
            one.advance(20)
        clock.now += 1
    assert told.messages == ["train: 20 steps in 5.0 s, 4 steps/s"]
    assert stage.rate == "4 steps/s"


def test_what_failed_did_not_take_its_time(clock: Clock, told: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="no"), Progress("train", 120, "steps"):
        raise ValueError("no")
    assert told.messages == []


def test_a_silent_stage_is_heard(
    monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture
) -> None:
    """Without a call of the stage, from a thread; only the innermost speaks."""
    monkeypatch.setattr(progress, "SECONDS", 0.01)
    with Progress("train"):
        _until(lambda: told.messages)
        assert told.messages[0].startswith("train: working for 0.0 s")
        with Progress("train", 4, "steps", done=1):
            told.clear()
            _until(lambda: len(told.messages) > 2)
            assert set(told.messages[1:]) == {"train: 1 of 4 steps (25%)"}
        told.clear()
        _until(lambda: told.messages)
        assert told.messages[0].startswith("train: working for")


def _until(happened: object) -> None:
    assert callable(happened)
    for _ in range(1000):
        if happened():
            return
        time.sleep(0.005)
    raise AssertionError("no line came")


def test_stages_count_for_whoever_counts(clock: Clock) -> None:
    progress.advance()  # nobody does
    with Progress("rollouts", 10, "sequences") as counts, Progress("loading"):
        progress.advance(2, tokens=8)
        assert counts.own == 2
    counts.reach(5)
    counts.reach(3)
    assert counts.own == 5


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """What a person sees half way."""
    for name in ("CI", "MAKEFLAGS", "AFTERGLOW_LOG", WORKER):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    with monkeypatch.context() as patched:  # pytest puts its own between a fixture and a test
        patched.setattr(sys, "stderr", terminal)
        with Progress("train", 4, "steps") as one:
            one.advance(2)
            if one._bar is not None:
                one._bar.refresh()
    return terminal.getvalue()


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = on_a_terminal(monkeypatch)
    assert "train:  50%|" in seen
    assert "2/4 steps" in seen


@pytest.mark.parametrize(
    "environment",
    [
        {"CI": "true"},
        {"MAKEFLAGS": " -j2 --jobserver-auth=3,4"},
        {WORKER: "1"},
        {"AFTERGLOW_LOG": "json"},
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_where_nobody_looks_there_is_no_bar(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    assert on_a_terminal(monkeypatch, **environment) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (61, "1 min 1 s"),
        (3599, "59 min 59 s"),
        (7384, "2 h 3 min"),
        (200000, "2 d 7 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
