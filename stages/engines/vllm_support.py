"""Whether vLLM can run an architecture here, found out before an engine is started.

vLLM reports a model class that it cannot import as "failed to be inspected" and leaves the reason
in its log. The usual one: classes with a vision part import torchvision, also where only their text
model is served. The ordinary package index has torchvision as a CUDA build alone, whose import
fails beside a CPU build of torch, so the CPU environment leaves it out.
"""

import json
import logging
from pathlib import Path
from typing import Any

from stages.models.environment import cpu_build

log = logging.getLogger(__name__)


def text_only(directory: Path) -> dict[str, Any]:
    """Fields of `EngineArgs` that make vLLM serve the text of a model with a vision part.

    Without them vLLM starts the image processor, for which it wants the tokenizer that the engines
    here do without, and files that a text model need not have.
    """
    config = json.loads((directory / "config.json").read_text())
    return {"language_model_only": True} if "vision_config" in config else {}


def why_unsupported(directory: Path) -> str | None:
    """Why vLLM's class for the model in `directory` cannot be imported; None where it can.

    No weights are read. In a CPU build the class stays registered, which saves vLLM a process of
    its own to look at it (6 to 16 s, once per architecture and machine). On a GPU vLLM looks at it
    in that process, since an import might initialise CUDA, and keeps what it found on disk.
    Architectures that vLLM does not know, and may run through transformers, are left to the start
    of the engine.
    """
    from vllm.model_executor.models import ModelRegistry

    config = directory / "config.json"
    named = json.loads(config.read_text()).get("architectures") if config.exists() else None
    if not named or named[0] not in ModelRegistry.models:
        return None
    entry: Any = ModelRegistry.models[named[0]]
    try:
        if cpu_build():
            ModelRegistry.register_model(named[0], entry.load_model_cls())
        else:
            entry.inspect_model_cls()
    except Exception as error:
        log.debug("%s: vLLM's class for %s", directory, named[0], exc_info=True)
        return f"vLLM cannot run {named[0]} in this environment: {_cause(error)}"
    return None


def _cause(error: BaseException) -> str:
    """The error at the bottom of the chain, or the last line that another process printed."""
    while not str(error).startswith("Error raised in subprocess"):
        before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if before is None:
            break
        error = before
    lines = str(error).strip().splitlines() or [type(error).__name__]
    cause = lines[-1].rstrip(".")
    if "torchvision" in cause and cpu_build():
        cause += (
            " (vLLM imports it for the vision part of this architecture, and the package index has "
            "no build of it for a CPU build of torch)"
        )
    return cause
