"""The passes over a chunk of logits: torch against its own softmax, Triton against torch."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from stages.objectives.softmax import TORCH, softmax_kernels
from storage.errors import ConfigError


@pytest.mark.parametrize("width", [1, 7, 5000])
def test_torch_kernels_are_logsumexp_and_scaled_softmax(width: int) -> None:
    logits_CV = 20 * torch.randn((4, width), dtype=torch.float64)
    logits_CV[1, 1:] = -torch.inf
    factor_C = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    work_CV = logits_CV.clone()
    log_z_C, carry_C = TORCH.reduce(work_CV)
    torch.testing.assert_close(log_z_C, logits_CV.logsumexp(-1))
    out_CV = TORCH.scale(work_CV, carry_C, factor_C)
    torch.testing.assert_close(out_CV, logits_CV.softmax(-1) * factor_C[:, None])
    assert out_CV.data_ptr() == work_CV.data_ptr()


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton comes with CUDA builds of torch only"
)
def test_triton_agrees_with_torch_under_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.stages.objectives.triton_child"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr


def test_triton_without_a_gpu_is_refused() -> None:
    assert softmax_kernels("torch", torch.device("cpu")) is TORCH
    with pytest.raises(ConfigError, match=r'softmax = "triton" needs a CUDA device, not cpu'):
        softmax_kernels("triton", torch.device("cpu"))


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is not None, reason="Triton is installed here"
)
def test_triton_that_is_not_installed_is_named() -> None:
    with pytest.raises(ConfigError, match="Triton is not installed"):
        softmax_kernels("triton", torch.device("cuda"))
