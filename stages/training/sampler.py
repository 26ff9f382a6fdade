"""Plain batched sampling from the model being trained: key-value cache, full support, no engine.

Good enough for the live comparison, where the policy changes at every step and loading it into an
engine would cost more than decoding. Each token is drawn by inverting the distribution function at
a uniform that depends on seed, sequence and position only, so a resumed run draws the same tokens.

Shape letters: N sequences, L prompt length with padding, V vocabulary, K candidates, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from stages.scoring.philox import uniforms
from storage.schema import FINISH

_STREAM = 0x6C697665  # scoring draws from the same seed: the two must not share numbers


@dataclass(frozen=True)
class Samples:
    """Responses of N sequences, one after the other."""

    tok_T: NDArray[np.uint32]
    off_N: NDArray[np.int64]
    """[N + 1]"""
    ref_lp_T: NDArray[np.float32]
    """Log-probability with which each token was drawn, in nats."""
    cand_TK: NDArray[np.uint32]
    """The model's own K likeliest ids at each position."""
    finish_N: NDArray[np.uint8]


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[NDArray[Any]],
    *,
    seq_id: NDArray[np.int64],
    seed: int,
    temperature: float,
    max_tokens: int,
    vocab_size: int,
    stop_ids: Sequence[int],
    candidates: int,
) -> Samples:
    """Sample one response per prompt.

    Args:
        model: A decoder with a key-value cache.
        prompts: Ids of each prompt, at least one.
        seq_id: [N] names of the sequences, for the uniforms.
        seed: Any integer.
        temperature: Divides the logits.
        max_tokens: Longest response.
        vocab_size: Logits from here on are padding and never drawn.
        stop_ids: A response ends after any of these, which it keeps.
        candidates: K.
    """
    device = model.device
    ids_NL, mask_NL = _left_padded(prompts, device)
    ends = torch.tensor(stop_ids, device=device, dtype=torch.int64)
    place_N1 = mask_NL.sum(dim=1, keepdim=True)
    position_NL = (mask_NL.cumsum(dim=1) - 1).clamp_(min=0)
    open_N = torch.ones(len(prompts), dtype=torch.bool, device=device)
    cache, steps = None, []
    for step in range(max_tokens):
        out = model(
            input_ids=ids_NL,
            attention_mask=mask_NL,
            position_ids=position_NL,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        logp_NV = (out.logits[:, -1, :vocab_size].float() / temperature).log_softmax(dim=-1)
        u_N1 = uniforms(seed ^ _STREAM, seq_id, np.full(len(prompts), step), 1)
        ids_NL = _invert(logp_NV, torch.from_numpy(u_N1).to(device))
        steps.append((ids_NL, logp_NV.gather(1, ids_NL), logp_NV.topk(candidates).indices, open_N))
        open_N = open_N & ~torch.isin(ids_NL[:, 0], ends)
        if not bool(open_N.any()):
            break
        mask_NL = torch.cat([mask_NL, mask_NL.new_ones(len(prompts), 1)], dim=1)
        position_NL = place_N1 + step
    return _collect(steps, open_N)


def _left_padded(prompts: Sequence[NDArray[Any]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both int64 [N, L]."""
    longest = max(map(len, prompts))
    ids_NL = np.zeros((len(prompts), longest), np.int64)
    mask_NL = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in enumerate(prompts):
        ids_NL[row, longest - len(prompt) :] = prompt
        mask_NL[row, longest - len(prompt) :] = 1
    return torch.from_numpy(ids_NL).to(device), torch.from_numpy(mask_NL).to(device)


def _invert(logp_NV: Tensor, u_N1: Tensor) -> Tensor:
    """[N, 1] ids at which the distribution function passes u; an id of mass 0 is never hit."""
    mass_NV = logp_NV.double().exp().cumsum(dim=-1)
    # The last sum is 1 up to rounding, and u < 1 must fall below it.
    found_N1 = torch.searchsorted(mass_NV, u_N1 * mass_NV[:, -1:], right=True)
    return found_N1.clamp_(max=logp_NV.shape[1] - 1)


def _collect(steps: list[tuple[Tensor, ...]], open_N: Tensor) -> Samples:
    """From one entry per decoding step to sequences one after the other."""
    tok_NT, lp_NT = (torch.cat([step[part] for step in steps], dim=1) for part in (0, 1))
    cand_NTK = torch.stack([step[2] for step in steps], dim=1)
    kept_NT = torch.stack([step[3] for step in steps], dim=1)
    lengths_N = kept_NT.sum(dim=1).cpu().numpy()
    finish_N = np.where(open_N.cpu().numpy(), FINISH["length"], FINISH["stop"])
    return Samples(
        tok_T=tok_NT[kept_NT].cpu().numpy().astype(np.uint32),
        off_N=np.concatenate([[0], lengths_N.cumsum()]).astype(np.int64),
        ref_lp_T=lp_NT[kept_NT].cpu().numpy().astype(np.float32),
        cand_TK=cand_NTK[kept_NT].cpu().numpy().astype(np.uint32),
        finish_N=finish_N.astype(np.uint8),
    )
