"""Random language models of any small shape: what every test that needs a real one starts from."""

from typing import Literal

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)


def random_model(
    seed: int,
    *,
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    end: int,
    begin: int | None = None,
    pad: int | None = None,
    heads: int = 2,
    kv_heads: int = 1,
    context: int = 64,
    tied: bool = False,
    family: Literal["qwen3", "llama"] = "qwen3",
) -> PreTrainedModel:
    """One layer with random weights that depend on `seed` and the shape alone."""
    make, model = {
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[family]
    config = make(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden_size // heads,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=pad,
    )
    torch.manual_seed(seed)
    return model(config)
