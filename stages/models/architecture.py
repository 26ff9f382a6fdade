"""Models from scratch: Qwen3 blocks in the shape the configuration asks for."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from stages.config.training import Architecture
from storage.errors import ConfigError


def new_model(
    shape: Architecture, tokenizer: PreTrainedTokenizerBase, seed: int, device: torch.device
) -> PreTrainedModel:
    """A randomly initialised float32 model over the tokenizer's vocabulary.

    The initialisation is drawn on the CPU, so it depends on `seed` alone.

    Raises:
        ConfigError: the heads do not divide the hidden size, or each other.
    """
    kv_heads = shape.kv_heads or shape.heads
    if shape.hidden_size % (2 * shape.heads) or shape.heads % kv_heads:
        raise ConfigError(
            f"architecture: hidden_size {shape.hidden_size}, heads {shape.heads}, kv_heads "
            f"{kv_heads}: hidden_size / heads must be an even whole number (rotary embeddings turn "
            "pairs), and kv_heads must divide heads"
        )
    special: dict[str, Any] = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size or 3 * shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=kv_heads,
        head_dim=shape.hidden_size // shape.heads,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=shape.tie_embeddings,
        initializer_range=shape.init_std,
        **special,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    return model.to(device)  # type: ignore[reportReturnType]
