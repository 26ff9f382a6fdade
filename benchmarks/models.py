"""Models with random weights whose logits are as spread as those of a trained one."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stages.models.model import lm_head

_SPREAD = 4.5
"""Standard deviation of the logits: a mean entropy of 4 nats, more than text has."""


def random_teacher(
    vocabulary: int, hidden: int, layers: int, *, context: int = 4096
) -> PreTrainedModel:
    """Qwen3 blocks of `hidden` channels; the same weights at every call."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        num_key_value_heads=max(1, hidden // 128),
        head_dim=64,
        max_position_embeddings=context,
        tie_word_embeddings=False,
    )
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        # Entropy decides what a record costs.
        lm_head(model).weight.mul_(_SPREAD / (0.02 * hidden**0.5))
    return model


def save_numbers(directory: Path, vocabulary: int, **special: str) -> None:
    """Save a tokenizer whose words are the numbers from 0 to `vocabulary` - 1.

    Args:
        directory: Where to.
        vocabulary: How many.
        special: Special tokens, as `eos_token="0"`.
    """
    words = Tokenizer(WordLevel({str(i): i for i in range(vocabulary)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(directory)
