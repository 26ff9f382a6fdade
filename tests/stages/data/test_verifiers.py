"""Outcomes of responses, including those of text nobody should write."""

import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from stages.config.data import Verifier
from stages.data import verifiers
from stages.data.final_answer import final_answer
from stages.data.verifiers import Check, exact_match, open_verifier, verifier_identity
from storage.errors import ConfigError, EngineError
from storage.schema import NOT_RIGHT, OUTCOME


@pytest.fixture(scope="module")
def math() -> Iterator[Check]:
    with open_verifier(Verifier(kind="math_verify")) as check:
        yield check


@pytest.mark.parametrize(
    ("extract", "text", "answer", "expected"),
    [
        (r">(\d+)", "7+6+0=13,>0933", "0933", 1),
        (r">(\d+)", "7+6+0=13,>0934", "0933", 0),
        (r">(\d+)", "0933", "0933", 2),
        (r">(\d+)", "no, not >12 but >13", "13", 1),
        (r"\d+", "first 1, then 2", "2", 1),
        (r"a|(b)", "a", "a", 2),
        ("", "  Paris \n", "Paris", 1),
        ("", "Paris!", "Paris", 0),
        ("", "anything", None, -1),
    ],
)
def test_exact_match(extract: str, text: str, answer: str | None, expected: int) -> None:
    assert exact_match(extract)([text], [answer], [False]).tolist() == [expected]


def test_exact_match_through_the_table() -> None:
    with open_verifier(Verifier(kind="exact_match", extract="=(.*)")) as check:
        outcomes = check(["1+1=2", "1+1=3", "?"], ["2", "2", None], [False] * 3)
    assert outcomes.dtype == "int8"
    assert outcomes.tolist() == [1, 0, -1]


def test_a_broken_pattern_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a regular expression"):
        exact_match("(")


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        (r"So the result is $\boxed{\frac{1}{2}}$.", "0.5", 1),
        ("the answer is 0.5", r"\frac{1}{2}", 1),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", 1),
        (r"\boxed{(1, 2)}", "(1, 2)", 1),
        (r"\boxed{7}", "$8$", 0),
        ("no idea", "3", 2),
        (r"\boxed{3}", None, -1),
    ],
)
def test_math_verify(math: Check, text: str, answer: str | None, expected: int) -> None:
    assert math([text], [answer], [False]).tolist() == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00\ud83d",
        "\\boxed{" * 3000,
        "(" * 20_000,
        "9" * 50_000,
        r"\frac{}{}$$\\",
        "{}\n" * 99,
    ],
    ids=["nothing", "half a character", "boxes", "brackets", "digits", "ruins", "lines"],
)
def test_weird_text_is_not_right_and_harmless(math: Check, text: str) -> None:
    weird, plain = math([text, r"\boxed{3}"], ["3", "3"], [False, False]).tolist()
    assert weird in NOT_RIGHT
    assert plain == 1


def test_many_are_checked_in_order(math: Check) -> None:
    texts = [rf"\boxed{{{number % 7}}}" for number in range(60)]
    assert math(texts, ["3"] * 60, [False] * 60).tolist() == [
        int(number % 7 == 3) for number in range(60)
    ]


def test_a_comparison_without_end_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    """The process is ended from outside; the next answer gets a new one."""
    worker = verifiers.MathWorker(seconds=0.0)
    assert worker.check([r"\boxed{3}"], "3") == OUTCOME["unparsed"]
    assert "unparsed" in caplog.text
    patient = verifiers.MathWorker()
    try:
        assert patient.check([r"\boxed{3}"], "3") == 1
    finally:
        patient.stop()


def test_no_process_is_left_behind() -> None:
    with open_verifier(Verifier(kind="math_verify")) as check:
        check([r"\boxed{3}"], ["6/2"], [False])
        running = worker_processes()
    assert running > worker_processes()


def test_a_worker_that_cannot_start_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifiers, "SCRIPT", verifiers.SCRIPT.with_name("nowhere.py"))
    with (
        open_verifier(Verifier(kind="math_verify")) as check,
        pytest.raises(EngineError, match="does not start"),
    ):
        check([r"\boxed{3}"], ["6/2"], [False])


def worker_processes() -> int:
    """Running children of this process that compare answers."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            ours = f"PPid:\t{os.getpid()}\n" in (process / "status").read_text()
            found += ours and verifiers.SCRIPT.name in (process / "cmdline").read_text()
    return found


def test_versions_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of sets judged by `exact_match` are older than its version, and stay."""
    assert verifier_identity(Verifier(kind="exact_match")) == {}
    assert verifier_identity(Verifier()) == {"verifier": "math-verify 0.9.0, rules 2"}
    monkeypatch.setattr(verifiers, "EXACT_MATCH_VERSION", 2)
    assert verifier_identity(Verifier(kind="exact_match")) == {"verifier": "exact_match 2"}


def test_without_math_verify_the_pinned_version_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    installed = verifier_identity(Verifier())
    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert verifier_identity(Verifier()) == installed


@pytest.mark.parametrize(
    "text",
    ["answer to " * 20_000, " \\quad" * 20_000 + "\\boxed{1}" + " " * 50_000 + "x\\boxed{2}"],
    ids=["statements", "between boxes"],
)
def test_long_texts_are_searched_in_one_pass(text: str) -> None:
    """A pattern that goes back over what it has read takes minutes on these."""
    found = final_answer(text, marked_only=False)
    assert found is not None
    assert found.place in ("box", "text")
