"""Tiny random models of the families people distil: one configuration a family, two or four layers.

Each has what its family has and others lack: tied heads, multipliers of the logits, softcaps,
windows shorter than the sequences, experts, state-space and linear attention, sinks, a vision tower
around the text model. Weights depend on the family's name and a seed.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from transformers import PretrainedConfig, PreTrainedModel

from tests.world import tokenizer

LETTERS = "".join(chr(ord("!") + index) for index in range(94))
VOCABULARY = len(LETTERS) + 2
"""Letters, padding and end token."""
CONTEXT = 128
WINDOW = 8
"""Of sliding attention; sequences are longer."""
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}={% endif %}"
)

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_HALF_WINDOW = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LINEAR = {
    "num_hidden_layers": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_chunk_size": 16}
_VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48}


@dataclass(frozen=True)
class Family:
    """One architecture in one shape."""

    config: Callable[[], PretrainedConfig]
    model: type[PreTrainedModel]
    like: str
    """Models that people have of it."""
    special: str = ""
    """What of it needs care."""


def _of(config: type[PretrainedConfig], **changes: Any) -> Callable[[], PretrainedConfig]:
    return lambda: config(**(_SHAPE | changes))


def _qwen3_5() -> PretrainedConfig:
    text = _SHAPE | _LINEAR
    vision: dict[str, Any] = _VISION | {
        "depth": 1,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 4,
    }
    ids: dict[str, Any] = {"image_token_id": 92, "video_token_id": 93}
    ends: dict[str, Any] = {"vision_start_token_id": 94, "vision_end_token_id": 95}
    return hf.Qwen3_5Config(text_config=text, vision_config=vision, **ids, **ends)


def _gemma3() -> PretrainedConfig:
    text = _SHAPE | _HALF_WINDOW | {"query_pre_attn_scalar": 32}
    vision = _VISION | {"num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 4}
    return hf.Gemma3Config(
        text_config=text, vision_config=vision, image_token_index=93, mm_tokens_per_image=4,
        boi_token_index=94, eoi_token_index=95,
    )  # fmt: skip


def _gemma4_text() -> dict[str, Any]:
    return (
        _SHAPE
        | _HALF_WINDOW
        | {
            "global_head_dim": 64,
            "final_logit_softcapping": 3.0,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": VOCABULARY,
        }
    )


FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        _of(hf.LlamaConfig, rope_parameters={
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 2.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        }),
        hf.LlamaForCausalLM, "Llama 3", "rotary scaling",
    ),
    "qwen2": Family(
        _of(hf.Qwen2Config, head_dim=32, tie_word_embeddings=True),
        hf.Qwen2ForCausalLM, "Qwen2.5", "biases of q, k, v; tied head",
    ),
    "qwen3": Family(
        _of(hf.Qwen3Config, tie_word_embeddings=True),
        hf.Qwen3ForCausalLM, "Qwen3", "norms of q and k; tied head",
    ),
    "qwen3_moe": Family(
        _of(hf.Qwen3MoeConfig, **_EXPERTS, norm_topk_prob=True),
        hf.Qwen3MoeForCausalLM, "Qwen3-MoE", "experts",
    ),
    "qwen3_5": Family(
        _qwen3_5, hf.Qwen3_5ForConditionalGeneration, "Qwen3.5",
        "linear attention; a vision tower around the text model",
    ),
    "gemma3": Family(
        _of(hf.Gemma3TextConfig, **_HALF_WINDOW, query_pre_attn_scalar=32),
        hf.Gemma3ForCausalLM, "Gemma 3 (1B)", "window; scaled embeddings; tied head",
    ),
    "gemma3_vision": Family(
        _gemma3, hf.Gemma3ForConditionalGeneration, "Gemma 3 (4B and larger)",
        "the same, inside a vision-language model",
    ),
    "gemma4": Family(
        lambda: hf.Gemma4TextConfig(**_gemma4_text()),
        hf.Gemma4ForCausalLM, "Gemma 4",
        "softcap on the logits; embeddings per layer; two widths of heads; window",
    ),
    "phi3": Family(
        _of(hf.Phi3Config, num_key_value_heads=2, partial_rotary_factor=0.5),
        hf.Phi3ForCausalLM, "Phi-3, Phi-4", "fused projections; partial rotary embeddings",
    ),
    "granite": Family(
        _of(hf.GraniteConfig, logits_scaling=2.0, embedding_multiplier=3.0,
            residual_multiplier=0.5, attention_multiplier=0.2, tie_word_embeddings=True),
        hf.GraniteForCausalLM, "Granite 3", "logits divided; multipliers; tied head",
    ),
    "granite_hybrid": Family(
        _of(hf.GraniteMoeHybridConfig, **_MAMBA, logits_scaling=2.0, embedding_multiplier=3.0,
            num_local_experts=0, num_experts_per_tok=0, shared_intermediate_size=96,
            layer_types=["mamba", "attention"]),
        hf.GraniteMoeHybridForCausalLM, "Granite 4", "state-space layers; logits divided",
    ),
    "mistral": Family(
        _of(hf.MistralConfig, sliding_window=WINDOW),
        hf.MistralForCausalLM, "Mistral", "window in every layer",
    ),
    "gpt_oss": Family(
        _of(hf.GptOssConfig, **_HALF_WINDOW, num_local_experts=4, num_experts_per_tok=2,
            intermediate_size=64, rope_parameters={
                "rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "beta_fast": 32.0,
                "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 32}),
        hf.GptOssForCausalLM, "gpt-oss", "YaRN; attention sinks; experts with biases; window",
    ),
    "falcon_h1": Family(
        _of(hf.FalconH1Config, **_MAMBA, mamba_d_ssm=128, lm_head_multiplier=0.5,
            embedding_multiplier=2.0, key_multiplier=0.5, ssm_in_multiplier=0.7),
        hf.FalconH1ForCausalLM, "Falcon-H1", "state-space and attention side by side; multipliers",
    ),
    "olmo2": Family(
        _of(hf.Olmo2Config), hf.Olmo2ForCausalLM, "OLMo 2", "norms after the blocks",
    ),
    "olmo3": Family(
        _of(hf.Olmo3Config, **_HALF_WINDOW),
        hf.Olmo3ForCausalLM, "OLMo 3", "the same; window",
    ),
}  # fmt: skip


def random_model(name: str, seed: int = 0) -> PreTrainedModel:
    """The family's model in float32, in evaluation mode; what it says is far from uniform."""
    family = FAMILIES[name]
    torch.manual_seed(zlib.crc32(name.encode()) + seed)
    model = family.model(family.config()).eval()  # type: ignore[reportCallIssue]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return model


def write_family(name: str, directory: Path, seed: int = 0) -> Path:
    """The family's model and a tokenizer of one token per letter, as a user has them."""
    random_model(name, seed).save_pretrained(directory)
    words = tokenizer(LETTERS)
    words.chat_template = TEMPLATE
    words.save_pretrained(directory)
    return directory
