"""The shape of a model, read from `config.json` and the headers of its weight files.

Enough to say how many bytes and operations it needs; no weight is read, and neither torch nor
transformers is imported. Where weight files have headers (safetensors), parameters are counted;
otherwise they follow from the shape, as in a decoder of the Llama family (RMSNorm, gated MLP,
experts in place of the MLP).
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from stages.config.training import Architecture

_NOT_TEXT = ("visual.", "vision", "audio", "multi_modal", "mtp.")
"""In names of weights that a language model leaves in the file."""
_EXPERTS = (".experts.", ".experts_")


@dataclass(frozen=True)
class ModelShape:
    """What memory and time of a model follow from."""

    parameters: int
    """Different weights; tied embeddings count once."""
    idle: int
    """Of these, weights of experts that a token does not visit."""
    rows: int
    """V: ids, padding included."""
    hidden: int
    """D: width of the residual stream."""
    layers: int
    queries: int
    """Width of all query heads together."""
    keys: int
    """Width of all key heads together; values are as wide."""
    intermediate: int
    """Width of the MLP that a token passes: of all experts it visits, where there are experts."""
    context: int | None
    """Longest sequence; None where the configuration sets no limit."""
    tied: bool
    """Whether the head shares its weights with the embeddings."""
    counted: bool
    """Whether parameters were counted in the files, not computed."""

    @property
    def root(self) -> int:
        """Weights of embeddings and head."""
        return self.rows * self.hidden * (1 if self.tied else 2)

    @property
    def multiplied(self) -> int:
        """Weights that a token is multiplied with: two operations each in a forward pass.

        Embeddings are looked up; a head that shares their weights is multiplied.
        """
        embeddings = 0 if self.tied else self.rows * self.hidden
        return self.parameters - self.idle - embeddings

    def pruned(self, layers: int) -> "ModelShape":
        """The shape with fewer layers, all of the same size."""
        outside = self.root + self.hidden  # the final norm
        kept = (self.parameters - outside) * layers // self.layers
        idle = self.idle * layers // self.layers
        return replace(self, parameters=outside + kept, idle=idle, layers=layers)


def shape_of(directory: Path) -> ModelShape | None:
    """Shape of the model in `directory`; None where its files do not tell."""
    file = directory / "config.json"
    try:
        whole = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    config = text_config(whole)
    sizes = None if "quantization_config" in whole else _tensors(directory)
    tied = bool(config.get("tie_word_embeddings", whole.get("tie_word_embeddings", False)))
    if sizes is not None:
        tied = not any("lm_head." in name or name == "output.weight" for name in sizes)
    computed = _shape(config, tied=tied)
    if computed is None or sizes is None:
        return computed
    total = sum(sizes.values())
    experts = sum(size for name, size in sizes.items() if any(word in name for word in _EXPERTS))
    visited, all_experts = _experts(config)
    idle = round(experts * (1 - visited / all_experts)) if all_experts else 0
    return ModelShape(**{**vars(computed), "parameters": total, "idle": idle, "counted": True})


def shape_from_scratch(architecture: Architecture, rows: int) -> ModelShape:
    """Shape of a model that is made here, with `rows` ids."""
    D, heads = architecture.hidden_size, architecture.heads
    config = {
        "vocab_size": rows,
        "hidden_size": D,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": architecture.kv_heads or heads,
        "intermediate_size": architecture.intermediate_size or 3 * D,
        "max_position_embeddings": architecture.max_positions,
        "model_type": "qwen3",
    }
    found = _shape(config, tied=architecture.tie_embeddings)
    assert found is not None, "all sizes are given"
    return found


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that describes the language model."""
    for name in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(name), dict):
            return cast("Mapping[str, Any]", config[name])
    return config


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of several fields that is a number."""
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)


def _experts(config: Mapping[str, Any]) -> tuple[int, int]:
    """Experts that a token visits, and all of a layer; zero where there are none."""
    there = _first(config, "num_experts", "num_local_experts", "n_routed_experts") or 0
    return _first(config, "num_experts_per_tok", "num_experts_per_token") or there, there


def _shape(config: Mapping[str, Any], *, tied: bool) -> ModelShape | None:
    """The shape that a configuration describes; None where a size is missing."""
    rows, D = _first(config, "vocab_size"), _first(config, "hidden_size", "n_embd", "d_model")
    layers = _first(config, "num_hidden_layers", "n_layer", "num_layers")
    if rows is None or D is None or layers is None:
        return None
    heads = _first(config, "num_attention_heads", "n_head") or 1
    head_dim = _first(config, "head_dim") or D // heads
    queries = heads * head_dim
    keys = (_first(config, "num_key_value_heads") or heads) * head_dim
    dense = _first(config, "intermediate_size", "n_inner", "ffn_hidden_size") or 4 * D
    visited, experts = _experts(config)
    one = _first(config, "moe_intermediate_size", "expert_ffn_hidden_size") or dense
    mlp = 3 * D * (experts * one if experts else dense) + D * experts
    idle = 3 * D * one * (experts - visited)
    norms = 2 * D + (2 * head_dim if str(config.get("model_type", "")).startswith("qwen3") else 0)
    layer = 2 * D * queries + 2 * D * keys + mlp + norms
    return ModelShape(
        parameters=layers * layer + rows * D * (1 if tied else 2) + D,
        idle=layers * idle,
        rows=rows,
        hidden=D,
        layers=layers,
        queries=queries,
        keys=keys,
        intermediate=visited * one if experts else dense,
        context=_first(config, "max_position_embeddings", "n_positions"),
        tied=tied,
        counted=False,
    )


def _tensors(directory: Path) -> dict[str, int] | None:
    """Number of weights by name, from the headers of safetensors files; None without them."""
    files = sorted(directory.glob("*.safetensors"))
    index = directory / "model.safetensors.index.json"
    try:
        if index.exists():  # of weights in several layouts, those that are loaded
            names = set(json.loads(index.read_text())["weight_map"].values())
            files = [directory / str(name) for name in sorted(names)]
        found = {name: size for file in files for name, size in _header(file)}
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return found or None


def _header(file: Path) -> Iterator[tuple[str, int]]:
    """Names and sizes of the tensors in a safetensors file: 8 bytes of length, then JSON."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError(f"{file}: not a safetensors file")
        header = json.loads(stream.read(length))
    for name, tensor in header.items():
        if name != "__metadata__" and not any(word in name for word in _NOT_TEXT):
            yield name, math.prod(tensor["shape"])
