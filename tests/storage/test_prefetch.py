"""Reading ahead: order, bound, errors, and a thread that always ends."""

import gc
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from storage.prefetch import Prefetch


def _workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "afterglow-prefetch"]


def test_results_come_in_order_from_the_start_asked_for() -> None:
    ahead = Prefetch(lambda number: number * number, 3, 2)
    assert [ahead.get() for _ in range(5)] == [9, 16, 25, 36, 49]
    ahead.close()


def test_no_more_is_made_than_was_asked_for() -> None:
    made: list[int] = []
    two_made = threading.Event()

    def produce(number: int) -> int:
        made.append(number)
        if number == 1:
            two_made.set()
        return number

    ahead = Prefetch(produce, 0, 2)
    assert two_made.wait(10)
    assert ahead.get() == 0
    ahead.close()
    assert made in ([0, 1], [0, 1, 2])


def test_an_error_arrives_in_its_place() -> None:
    def produce(number: int) -> int:
        if number == 2:
            raise ValueError("broken at 2")
        return number

    ahead = Prefetch(produce, 0, 3)
    assert [ahead.get(), ahead.get()] == [0, 1]
    with pytest.raises(ValueError, match="broken at 2"):
        ahead.get()
    ahead.close()
    assert _workers() == []


def test_closing_twice_and_dropping_both_end_the_thread() -> None:
    ahead = Prefetch(lambda number: number, 0, 2)
    ahead.close()
    ahead.close()
    assert _workers() == []
    ahead = Prefetch(lambda number: number, 0, 2)
    assert len(_workers()) == 1
    del ahead
    gc.collect()
    assert _workers() == []


def test_an_unclosed_one_does_not_keep_the_interpreter_alive() -> None:
    program = "from storage.prefetch import Prefetch\np = Prefetch(lambda n: n, 0, 2)\np.get()"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, timeout=60, capture_output=True, check=True
    )
    assert done.stderr == b""
