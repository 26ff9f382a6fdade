"""Hugging Face causal language models: loading, final hidden states, and the head.

Scoring and training both need the final hidden states at response positions and the language model
head apart from each other, so that logits can be made a few rows at a time. `model(...)` gives
neither; `response_hidden` and `lm_head` do.

Shape letters: N sequences of a batch, L longest of them, P prompt tokens and T positions of the
batch, R rows, D hidden size, V vocabulary.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from stages.models.facts import context_limit
from stages.models.identity import check_weights
from stages.models.quantization import quantization
from stages.models.text_model import left_out, tensor_names
from stages.models.tokenizer import load_tokenizer as load_tokenizer  # where one looks for it
from storage.errors import ConfigError, DataError, EngineError

log = logging.getLogger(__name__)

# ---------------------------------------------------------------------------------------------
# Loading


def pick_device(name: str) -> torch.device:
    """The device called `auto`, `cpu` or `cuda`; `auto` takes a GPU where there is one.

    Raises:
        ConfigError: `cuda` without a usable GPU.
    """
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise ConfigError(
            'device = "cuda", but torch sees no GPU. Use device = "auto", or install the CUDA '
            "build of torch and check the driver."
        )
    return torch.device("cuda" if found and name != "cpu" else "cpu")


def load_model(directory: Path, dtype: str, device: torch.device | str) -> PreTrainedModel:
    """The model in `directory`, in evaluation mode, with weights of `dtype` on `device`.

    Raises:
        DataError: it cannot be loaded, has an adapter beside its weights, or its files lack weights
            (they would be left random).
    """
    check_weights(directory)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            config=_config(directory),
            dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the missing ones
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        method = quantization(directory)
        advice = (
            "Give a directory written by `save_pretrained` of an architecture that transformers "
            "knows."
            if method is None
            else f"Its weights are quantised ({method}): install what transformers asks for, run "
            "it in vLLM, or give the checkpoint in 16 bits that it was made from."
        )
        raise DataError(
            f"{directory}: cannot be loaded as a causal language model ({error}). {advice}"
        ) from error
    model, report = loaded
    lacking = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if lacking:
        raise DataError(
            f"{directory}: {len(lacking)} weights are missing or of another shape than config.json "
            f"says ({sorted(lacking)[0]}, ...). Copy the model again."
        )
    if surplus := left_out(model, directory, report["unexpected_keys"]):
        log.warning(
            "%s: loaded as %s, which has no place for %s. Models saved from here lack these.",
            directory,
            type(model).__name__,
            " and ".join(f"{count} tensors of `{name}`" for name, count in surplus.items()),
        )
    return model.eval().to(device)


def _config(directory: Path) -> PretrainedConfig:
    """Of the checkpoint, its text model inside included.

    Whether the head is tied to the embeddings stands in both, and checkpoints are about in which
    only the outer one is right.
    """
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    text = config.get_text_config()
    if text is not config and config.tie_word_embeddings and not text.tie_word_embeddings:
        heads = [name for name in tensor_names(directory) if name.endswith("lm_head.weight")]
        text.tie_word_embeddings = not heads
    return config


def real_vocab_size(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of ids that mean something: one above the tokenizer's highest, at most the head's.

    Models pad their vocabulary to a round number (Qwen3: 151,936 rows for 151,669 tokens; larger
    models of one family pad further than small ones). The surplus rows were never trained, yet
    carry some probability; scoring leaves them out of the softmax, which also makes teacher and
    student comparable where they are padded differently.
    """
    return min(lm_head(model).weight.shape[0], max(tokenizer.get_vocab().values()) + 1)


def context_length(model: PreTrainedModel) -> int | None:
    """Most tokens the model can be fed, or None where the configuration sets no limit."""
    return context_limit(model.config.get_text_config())


# ---------------------------------------------------------------------------------------------
# Head


@dataclass(frozen=True)
class Head:
    """From final hidden states to logits: softcap(scale * (hidden W' + bias))."""

    weight: Tensor
    """[V, D]; the live parameter of the model, padding rows included."""
    bias: Tensor | None = None
    """[V]"""
    softcap: float | None = None
    """c in c * tanh(logits / c) (Gemma)."""
    scale: float = 1.0
    """Factor before the softcap (Cohere, Granite, Falcon-H1)."""

    def logits(self, hidden_RD: Tensor, out_RV: Tensor | None = None) -> Tensor:
        """[R, V] logits in float32 (float64 for a float64 head).

        Products of 16-bit types are accumulated and kept in float32 on a GPU. A CPU rounds them to
        the type of the weight: use `in_float32` first where that matters.

        Args:
            hidden_RD: Final hidden states.
            out_RV: Memory for the result, used where the matmul can write to it; without gradients.
        """
        hidden_RD, exact = hidden_RD.to(self.weight.dtype), self.accumulate
        if hidden_RD.is_cuda and self.weight.dtype != exact:
            z_RV = torch.mm(hidden_RD, self.weight.T, out_dtype=exact)
        elif out_RV is None:
            z_RV = (hidden_RD @ self.weight.T).to(exact)
        elif self.weight.dtype == exact:
            z_RV = torch.mm(hidden_RD, self.weight.T, out=out_RV)
        else:
            z_RV = out_RV.copy_(torch.mm(hidden_RD, self.weight.T))
        if self.bias is not None:
            z_RV.add_(self.bias)
        if self.scale != 1.0:
            z_RV.mul_(self.scale)
        if self.softcap is not None:
            z_RV.div_(self.softcap).tanh_()
            # Autograd needs the result of the tanh.
            z_RV = z_RV * self.softcap if z_RV.requires_grad else z_RV.mul_(self.softcap)
        return z_RV

    @property
    def accumulate(self) -> torch.dtype:
        """Type of the logits, and of what is summed over positions."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    def without_padding(self, vocab_size: int) -> "Head":
        """The same head over the first `vocab_size` ids: engines never draw those that pad it."""
        bias = None if self.bias is None else self.bias[:vocab_size]
        return replace(self, weight=self.weight[:vocab_size], bias=bias)

    def in_float32(self) -> "Head":
        """The same head with detached float32 weights; a copy where they are of another type."""
        bias = None if self.bias is None else self.bias.detach().float()
        return Head(self.weight.detach().float(), bias, self.softcap, self.scale)


def lm_head(model: PreTrainedModel) -> Head:
    """The head of `model`, as far as its configuration tells; `check_head` verifies it.

    Raises:
        EngineError: the model has no linear head, or one with an adapter around it.
    """
    layer = model.get_output_embeddings()
    weight = getattr(layer, "weight", None)
    if weight is None:
        raise EngineError(
            f"{type(model).__name__} has no linear language model head; use a causal language model"
        )
    if hasattr(layer, "base_layer"):
        raise EngineError(
            f"{type(model).__name__}: its head is a {type(layer).__name__}, an adapter around a "
            "linear layer, and the fused head and loss would read the layer alone. Merge the "
            "adapter first (`merge_and_unload` of PEFT)."
        )
    config = model.config.get_text_config()
    return Head(
        weight=weight,
        bias=getattr(layer, "bias", None),
        softcap=getattr(config, "final_logit_softcapping", None),
        scale=_scale(config),
    )


def _scale(config: PretrainedConfig) -> float:
    """Factor on the logits; there is no common name for it, and one name with two meanings."""
    for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"):
        value = getattr(config, name, None)
        if isinstance(value, int | float):
            return float(value)
    value = getattr(config, "logits_scaling", None)
    if isinstance(value, int | float):
        return float(value) if config.model_type.startswith("hyperclovax") else 1.0 / value
    return 1.0


@torch.no_grad()
def check_head(model: PreTrainedModel, head: Head) -> None:
    """Compare hidden states times head with the logits the model itself makes.

    Guards against architectures that treat hidden states or logits in a way `lm_head` does not
    know: a wrong scale would corrupt every record silently.

    Raises:
        EngineError: they differ, or are not finite.
    """
    V = head.weight.shape[0]
    ids_1L = torch.arange(7, 7 + 8 * 13, 13, device=model.device)[None] % V
    hidden_LD = model.base_model(input_ids=ids_1L, use_cache=False).last_hidden_state[0]
    wanted_LV = model(input_ids=ids_1L, use_cache=False).logits[0].float()
    if bool(wanted_LV.isnan().any() | wanted_LV.isposinf().any()):
        raise EngineError(
            f"{model.name_or_path}: the logits are NaN or infinite, whatever the input. The "
            f"weights are damaged, or too large for {model.dtype}; copy the model again."
        )
    off = (head.logits(hidden_LD) - wanted_LV).abs().max().item()
    # bfloat16 rounds logits by up to 0.4 %, a forgotten softcap or scale shows in per cents
    if not off <= 0.02 * wanted_LV.abs().max().item() + 1e-4:
        raise EngineError(
            f"{type(model).__name__}: its logits are not those of its head on its final hidden "
            f"states (off by {off:.3g}). The architecture has a step in between that "
            "`stages.models.model.lm_head` lacks; add it there."
        )


# ---------------------------------------------------------------------------------------------
# Hidden states


class Tokens(Protocol):
    """Prompts and responses of N sequences, flat with offsets; `storage.batch.Batch` is one."""

    @property
    def seq_id(self) -> NDArray[np.int64]:
        """[N]"""
        ...

    @property
    def prompt(self) -> NDArray[np.integer]:
        """[P] prompt ids."""
        ...

    @property
    def prompt_off(self) -> NDArray[np.int64]:
        """[N+1]"""
        ...

    @property
    def tok(self) -> NDArray[np.integer]:
        """[T] response ids."""
        ...

    @property
    def tok_off(self) -> NDArray[np.int64]:
        """[N+1]"""
        ...


def response_hidden(model: PreTrainedModel, batch: Tokens) -> Tensor:
    """Final hidden states one step before each response token: [T, D], in the order of `tok`.

    Sequences are padded on the right, where causal attention never looks, so no mask is needed.
    The last response token is not fed: nothing is predicted from it. Gradients flow.

    Raises:
        DataError: a sequence has no prompt, so nothing precedes its first response token.
    """
    if not len(batch.tok):
        weight_VD = lm_head(model).weight
        return weight_VD.new_zeros(0, weight_VD.shape[1])
    inputs_NL, at_T = _pad(batch)
    ids_NL = torch.from_numpy(inputs_NL).to(model.device)
    output = model.base_model(input_ids=ids_NL, use_cache=False)
    hidden_SD = output.last_hidden_state.flatten(0, 1)
    return hidden_SD[torch.from_numpy(at_T).to(model.device)]


def exact_hidden(model: PreTrainedModel, batch: Tokens) -> tuple[Tensor, Head]:
    """`response_hidden` and the head, from which logits follow without 16-bit rounding.

    A GPU keeps the products of 16-bit types in float32; on a CPU both are converted first.
    """
    hidden_TD, head = response_hidden(model, batch), lm_head(model)
    return (hidden_TD, head) if hidden_TD.is_cuda else (hidden_TD.float(), head.in_float32())


def check_prompts(prompt_N: NDArray[np.int64], seq_id_N: NDArray[np.int64]) -> None:
    """Raise if nothing precedes the first response token of a sequence.

    Raises:
        DataError: a prompt has no token; its sequence is named.
    """
    empty = np.flatnonzero(prompt_N == 0)
    if len(empty):
        raise DataError(
            f"sequence {seq_id_N[empty[0]]} has an empty prompt, so its first response token "
            "has no context. Let prompts hold at least one token (a beginning-of-text token)."
        )


def _pad(batch: Tokens) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inputs [N, L], and for each position the index of its hidden state in the flattened [N*L]."""
    prompt_N, tok_N = np.diff(batch.prompt_off), np.diff(batch.tok_off)
    check_prompts(prompt_N, batch.seq_id)
    L = int((prompt_N + tok_N).max())
    rows = np.arange(len(prompt_N))
    row_P, row_T = np.repeat(rows, prompt_N), np.repeat(rows, tok_N)
    col_P = np.arange(len(row_P)) - batch.prompt_off[row_P]
    col_T = np.arange(len(row_T)) - batch.tok_off[row_T] + prompt_N[row_T]
    inputs_NL = np.zeros((len(rows), L), np.int64)
    inputs_NL[row_P, col_P] = batch.prompt
    inputs_NL[row_T, col_T] = batch.tok
    width = L - 1  # at least 1: there is a response token, and a prompt before it
    return np.ascontiguousarray(inputs_NL[:, :width]), row_T * width + col_T - 1
