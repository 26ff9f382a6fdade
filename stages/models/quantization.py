"""Quantised checkpoints: which engine can run one here, told from `config.json` alone.

Imports no torch. What transformers needs for a method is what its quantizers ask for; vLLM on a CPU
runs integer formats alone.
"""

import importlib.util
from pathlib import Path
from typing import Any, Literal, cast

from stages.models.environment import cpu_build
from stages.models.facts import read_json
from storage.files.place import Place

_PACKAGES = {
    "awq": ("gptqmodel", "accelerate"),
    "gptq": ("optimum", "gptqmodel"),
    "compressed-tensors": ("compressed_tensors",),
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "fp8": ("accelerate",),
    "mxfp8": ("accelerate",),
    "mxfp4": ("accelerate",),
}
"""What transformers imports to load weights of a method."""
_VLLM_ON_CPU = ("awq", "gptq", "compressed-tensors")
_NOT_IN_VLLM = ("bitsandbytes", "gguf")
_ORIGINAL = "give the checkpoint in 16 bits that it was made from"

Use = Literal["transformers", "vllm", "training"]


def quantization(directory: Place) -> str | None:
    """How the weights in `directory` are quantised (`fp8`, `awq`, ...); None: they are not.

    Raises:
        DataError: `config.json` cannot be read.
    """
    file = directory / "config.json"
    config = read_json(file) if file.exists() else {}
    text = config.get("text_config")
    settings = config.get("quantization_config") or (
        cast(dict[str, Any], text).get("quantization_config") if isinstance(text, dict) else None
    )
    return str(settings.get("quant_method") or "an unnamed method") if settings else None


def quantization_problem(method: str, use: Use) -> tuple[str, str] | None:
    """Why weights of `method` cannot be used here, and how to mend it; None if they can.

    Args:
        method: As `quantization` gives it.
        use: The engine that is to run them, or `training` for a model that is to be trained.
    """
    if use == "training":
        return (
            f"its weights are quantised ({method}), and quantised weights cannot be trained",
            f"As the model to start from, {_ORIGINAL}.",
        )
    if use == "vllm":
        gpu = not cpu_build()
        if method in _NOT_IN_VLLM or (not gpu and method not in _VLLM_ON_CPU):
            where = "" if gpu else " on a CPU"
            return (
                f"its weights are quantised ({method}), which vLLM does not run{where}",
                f'Set `run.engine = "transformers"` for this stage, or {_ORIGINAL}.',
            )
        return None
    lacking = [one for one in _PACKAGES.get(method, ()) if importlib.util.find_spec(one) is None]
    if lacking:
        return (
            f"its weights are quantised ({method}), for which transformers needs "
            f"{' and '.join(lacking)}, not installed here",
            f'Install it, or set `run.engine = "vllm"` on a machine with a GPU, or {_ORIGINAL}.',
        )
    return None


def other_parts(directory: Path) -> list[str]:
    """What a checkpoint has beside a text model: `vision`, `audio`, `multi-token prediction`.

    Raises:
        DataError: `config.json` cannot be read.
    """
    file = directory / "config.json"
    config = read_json(file) if file.exists() else {}
    found = [name for name in ("vision", "audio") if config.get(f"{name}_config")]
    text = config.get("text_config") or config
    if text.get("num_nextn_predict_layers") or text.get("mtp_num_hidden_layers"):
        found.append("multi-token prediction")
    return found
