"""Starting and stopping vLLM in this process, for generation and for scoring.

A CPU engine lives in this process, where vLLM keeps its distributed state in globals that closing
any engine destroys: one at a time.
"""

import gc
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.engines.vllm_support import text_only, why_unsupported
from storage.errors import AfterglowError, EngineError

CPU_ENGINE = ("vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker")
"""What vLLM imports to start on a CPU: some ten seconds' worth, with torch and transformers."""

_SLOT = threading.Lock()


@contextmanager
def running_engine(directory: Path, options: Callable[[bool], dict[str, Any]]) -> Iterator[Any]:
    """A started `LLMEngine` with the model in `directory`; leaving the context ends it.

    Args:
        directory: A Hugging Face model.
        options: Gives fields of `EngineArgs`; its argument says whether vLLM runs on a CPU.

    Raises:
        EngineError: vLLM does not know the architecture, does not start, or runs in this process
            already.
    """
    if not _SLOT.acquire(blocking=False):
        raise EngineError(f"{directory}: this process runs a vLLM engine already; close it first")
    try:
        with _class_restored(directory):
            engine = _start(directory, options)
            try:
                yield engine
            finally:
                engine.engine_core.shutdown()
                del engine
                gc.collect()
    finally:
        _SLOT.release()


@contextmanager
def _class_restored(directory: Path) -> Iterator[None]:
    """Leave transformers' class of the model as it was.

    Where vLLM runs an architecture through transformers (OLMo), it wraps that class in place for
    its compiler, and the class can then be loaded inside vLLM alone. `evaluate` generates with vLLM
    and measures with transformers in one process.
    """
    from transformers import MODEL_MAPPING, AutoConfig

    config = AutoConfig.from_pretrained(directory, local_files_only=True).get_text_config()
    cls: Any = MODEL_MAPPING.get(type(config), object)
    bases, before = cls.__bases__, dict(vars(cls))
    try:
        yield
    finally:
        if cls.__bases__ != bases:
            cls.__bases__ = bases
            for name in set(vars(cls)) - set(before):
                delattr(cls, name)
            for name, value in before.items():
                if vars(cls)[name] is not value:
                    setattr(cls, name, value)


def _start(directory: Path, options: Callable[[bool], dict[str, Any]]) -> Any:
    import torch

    set_num_threads = torch.set_num_threads
    with warnings.catch_warnings(), engine_errors(f"{directory}: vLLM does not start"):
        warnings.simplefilter("ignore", FutureWarning)
        from vllm import EngineArgs, LLMEngine
        from vllm.platforms import current_platform
        from vllm.usage.usage_lib import UsageContext

        # vLLM 0.32 takes `vars()` of every object in every module to find Triton kernels. The
        # library handle of llvmlite answers any attribute, `__dict__` too, with a wrapped C
        # function, on which vLLM fails once numba is imported: give it an empty `__dict__`.
        if (llvmlite := sys.modules.get("llvmlite.binding.ffi")) is not None:
            llvmlite.lib._fntab.setdefault("__dict__", {})
        if reason := why_unsupported(directory):
            raise EngineError(
                f'{directory}: {reason}. With run.engine = "transformers" it works without vLLM.'
            )
        try:
            always: dict[str, Any] = {
                "generation_config": "vllm",
                "skip_tokenizer_init": True,
                "disable_log_stats": True,
                "use_tqdm_on_load": False,
                **text_only(directory),
            }
            chosen = options(current_platform.is_cpu())
            arguments = EngineArgs(str(directory), **always | chosen)
            return LLMEngine.from_engine_args(arguments, UsageContext.LLM_CLASS)
        finally:
            torch.set_num_threads = set_num_threads  # the CPU worker makes it do nothing


@contextmanager
def engine_errors(what: str) -> Iterator[None]:
    """Turn whatever vLLM raises into an `EngineError` that begins with `what`."""
    try:
        yield
    except AfterglowError:
        raise
    except Exception as error:
        raise EngineError(
            f"{what}: {error}. The engine's options are in the `run` table; with run.engine = "
            '"transformers" it works without vLLM.'
        ) from error
