"""A model with some of its layers: a small student, or the usual start of a draft model."""

import copy
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from stages.models.model import load_model
from storage.errors import ConfigError

_POSITION = {"layer_idx", "layer_id", "layer_index", "training"}
"""Attributes of a module that only say where it is, or that it is being trained."""


def prune(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A new model of the same class that consists of `layers` of `model`, in this order.

    Embeddings, final norm and head are kept, and so is their tying. Lists in the configuration with
    one element a layer (`layer_types`) keep the elements of these layers.

    Args:
        model: A decoder whose layers lie in one `ModuleList`.
        layers: Indices of the layers to keep, ascending.

    Raises:
        ConfigError: there is no such layer, the layers cannot be found, or one of them would
            compute something else at its new place.
    """
    prefix, blocks = _blocks(model)
    if not layers or list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1]:
        raise ConfigError(f"layers {list(layers)}: give ascending indices, each once")
    if layers[-1] >= len(blocks):
        raise ConfigError(
            f"layer {layers[-1]}: the model has {len(blocks)} layers, 0 to {len(blocks) - 1}"
        )
    made: Any = type(model)
    pruned: PreTrainedModel = made._from_config(_shortened(model.config, layers), dtype=model.dtype)
    _check_same(blocks, _blocks(pruned)[1], layers)
    new_place = {old: new for new, old in enumerate(layers)}
    inside = re.compile(re.escape(prefix) + r"\.(\d+)\.(.*)")
    weights: dict[str, Any] = {}
    for name, weight in model.state_dict().items():
        found = inside.fullmatch(name)
        if found is None:
            weights[name] = weight
        elif int(found[1]) in new_place:
            weights[f"{prefix}.{new_place[int(found[1])]}.{found[2]}"] = weight
    try:
        pruned.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"{type(model).__name__}: its layers do not fit a model with fewer of them ({error})"
        ) from error
    pruned.generation_config = copy.deepcopy(model.generation_config)
    return pruned.eval()


def prune_directory(directory: Path, layers: Sequence[int]) -> PreTrainedModel:
    """The pruned model of the one in `directory`, in the numeric type of its weights there.

    Raises:
        ConfigError: as `prune`.
        DataError: the directory holds no usable model.
    """
    return prune(load_model(directory, stored_dtype(directory), "cpu"), layers)


def stored_dtype(directory: Path) -> str:
    """Numeric type that the configuration gives for the weights; `float32` where it gives none."""
    config = json.loads((directory / "config.json").read_text())
    text = config.get("text_config", {})
    named = [table.get(name) for table in (config, text) for name in ("dtype", "torch_dtype")]
    return next((name for name in named if name), "float32")


def _blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of the layers, and its name in the model."""
    count = model.config.get_text_config().num_hidden_layers
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    outer = [
        (name, module)
        for name, module in found
        if not any(name.startswith(other + ".") for other, _ in found)
    ]
    if len(outer) != 1:
        raise ConfigError(
            f"{type(model).__name__}: {len(outer)} lists of {count} modules could be its layers "
            f"({', '.join(name for name, _ in outer) or 'none'}); exactly one is needed"
        )
    return outer[0]


def _shortened(config: PreTrainedConfig, layers: Sequence[int]) -> PreTrainedConfig:
    """The configuration of a model with these layers only."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    count = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == count:
            setattr(text, name, [value[layer] for layer in layers])
    text.num_hidden_layers = len(layers)
    return config


def _check_same(old: nn.ModuleList, new: nn.ModuleList, layers: Sequence[int]) -> None:
    """Raise if a layer would be another one at its new place.

    Some architectures derive from its index what a layer does (dense or mixture of experts, rotary
    embeddings or none, whose keys it shares). Where that is not a list in the configuration, the
    new layer has another class or another setting.
    """
    for layer, block in zip(layers, new, strict=True):
        before, after = list(_settings(old[layer])), list(_settings(block))
        if before != after:
            name = next(
                (one[0] for one, other in zip(before, after, strict=False) if one != other), ""
            )
            raise ConfigError(
                f"layer {layer}: `{name or 'a module'}` depends on the place of the layer in this "
                "architecture, so the layer cannot be moved. Keep the layers up to it, too."
            )


def _settings(block: nn.Module) -> Iterator[tuple[str, str, dict[str, object]]]:
    """Name, class and plain attributes of every module of a layer."""
    for name, module in block.named_modules():
        plain: dict[str, object] = {
            key: value
            for key, value in vars(module).items()
            if key not in _POSITION and isinstance(value, bool | int | float | str | None)
        }
        yield name, type(module).__name__, plain
