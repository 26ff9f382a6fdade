"""Starts over seeds: what the page says, and whether a process is held to the instructions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.starts import INSTRUCTIONS, page


def test_the_page_has_means_and_deviations() -> None:
    found = {"widest": [60.0, 62.0, 64.0], "AVX2": [61.0, 61.0, 61.0]}
    text = page(found, 120.0, Path("docs/lab.md"))
    assert "| widest | 60.0 | 62.0 | 64.0 | 62.0 | 2.0 |" in text
    assert "| AVX2 | 61.0 | 61.0 | 61.0 | 61.0 | 0.0 |" in text
    assert "`python -m benchmarks.starts --seeds 3 --into docs/lab.md`: 2 min" in text


def test_torch_is_held_to_the_instructions() -> None:
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this processor has nothing wider than AVX2: run it on one with AVX-512")
    program = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **INSTRUCTIONS["AVX2"]},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "AVX2"
