"""Starts a generation engine: vLLM where it is installed and knows the model, else transformers."""

import importlib.util
import logging
from contextlib import AbstractContextManager
from pathlib import Path

from stages.config.generation import EngineRun
from stages.engines.base import Generator
from stages.engines.vllm_process import CPU_ENGINE
from stages.models.environment import prepare_environment
from storage.errors import ConfigError

log = logging.getLogger(__name__)


def open_generator(
    directory: Path, *, dtype: str, run: EngineRun, max_model_len: int, seed: int = 0
) -> AbstractContextManager[Generator]:
    """Start an engine with the model in `directory`; leaving the context frees its memory.

    Args:
        directory: A Hugging Face model with its tokenizer.
        dtype: `float32` or `bfloat16`.
        run: Engine, batch and memory limits.
        max_model_len: Context, from `needed_context`.
        seed: Of the engine itself; responses depend on the seeds of requests only.

    Raises:
        DataError: the directory holds no usable model.
        ConfigError: the engine asked for is not installed.
        EngineError: the engine does not start.
    """
    prepare_environment()
    installed = importlib.util.find_spec("vllm") is not None
    if run.engine == "vllm" and not installed:
        raise ConfigError(
            'run.engine = "vllm", but vLLM is not installed. Install the extra `cpu` or `cuda`, or '
            'use "transformers".'
        )
    if run.engine == "transformers" or not installed or _without_vllm(directory, run):
        from stages.engines.transformers_engine import open_transformers

        return open_transformers(directory, dtype=dtype, run=run, max_model_len=max_model_len)
    from stages.engines.vllm_engine import open_vllm

    return open_vllm(directory, dtype=dtype, run=run, max_model_len=max_model_len, seed=seed)


def engine_modules(run: EngineRun) -> tuple[str, ...]:
    """What `open_generator` is likely to import for `run`, as far as it can be told beforehand."""
    if run.engine == "transformers" or importlib.util.find_spec("vllm") is None:
        return ("stages.engines.transformers_engine",)
    return CPU_ENGINE


def _without_vllm(directory: Path, run: EngineRun) -> bool:
    """Whether `auto` must do without the vLLM that is installed; the reason is logged."""
    from stages.engines.vllm_support import why_unsupported

    reason = why_unsupported(directory) if run.engine == "auto" else None
    if reason is not None:
        log.warning("%s: %s. Transformers generates instead, more slowly.", directory, reason)
    return reason is not None
