"""Text models inside checkpoints of more: what is left out, and what goes along unchanged.

Some vision-language checkpoints load as their text model (Qwen3.5), which is then all that is
trained and saved; others load whole (Gemma 3), with a vision part that text never reaches. Nothing
of this changes a number, so it is said and not refused.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from transformers import PreTrainedModel

PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""Files that turn images and videos into input; vLLM asks for them where a model has a vision
part, whatever it is asked to do."""


def left_out(
    model: PreTrainedModel, directory: Path, unexpected: Iterable[str]
) -> Mapping[str, int]:
    """Tensors in the files of `directory` that `model` has no place for, counted by module.

    Args:
        model: As it was loaded.
        directory: Of the checkpoint.
        unexpected: Those that loading reported; it is silent on those the class ignores.
    """
    ignored = [re.compile(one) for one in model._keys_to_ignore_on_load_unexpected or ()]
    names = set(unexpected)
    if ignored:
        names |= {
            name for name in tensor_names(directory) if any(one.search(name) for one in ignored)
        }
    return Counter(_module(name) for name in sorted(names))


def tensor_names(directory: Path) -> Iterator[str]:
    """Names of the tensors in the safetensors files of `directory`, from their headers."""
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            yield from tensors.keys()


def _module(name: str) -> str:
    """`model.visual` of `model.visual.blocks.0.norm.weight`, `mtp` of `mtp.fc.weight`."""
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] in ("model", "language_model") else 1])


def processor_files(model: PreTrainedModel) -> list[Path]:
    """Files beside the checkpoint `model` was loaded from that serving its vision part needs."""
    has_vision = hasattr(model.config, "vision_config")
    if not has_vision or not model.name_or_path:
        return []
    places = [Path(model.name_or_path) / name for name in PROCESSOR_FILES]
    return [place for place in places if place.is_file()]
