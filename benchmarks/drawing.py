"""What an engine is asked for beside tokens, and what that costs: vLLM on a CPU.

    python -m benchmarks.drawing

A model so small that the sampler weighs as much as it can beside the forward pass. Its vocabulary
is padded by 300 ids, more than those of real models, and padding is never drawn: that ban is among
what is measured.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.harness import Options, Report, Table, figure, interleave, main, ratios, spread
from benchmarks.models import save_numbers
from stages.config.data import Sampling
from stages.config.generation import GenerateRun
from stages.engines.base import Generator, Request, sequence_seed
from stages.engines.open import open_generator
from stages.models.environment import prepare_environment

_IDS, _PADDING, _CONTEXT = 2048, 300, 128
_PLAIN = "temperature 1"


def run(options: Options) -> Report:
    """CPU time of drawing with each option over drawing without."""
    prepare_environment()
    count, length = (8, 8) if options.quick else (256, 64)
    plain = Sampling(max_tokens=length)
    others = {
        "min_p = 0.05": {"min_p": 0.05},
        "presence_penalty = 0.5": {"presence_penalty": 0.5},
        "top_p = 0.9": {"top_p": 0.9},
    }
    with tempfile.TemporaryDirectory() as scratch:
        _write_model(Path(scratch))
        settings = GenerateRun(engine="vllm", max_sequences=64, kv_cache_mib=128)
        with open_generator(
            Path(scratch), dtype="float32", run=settings, max_model_len=_CONTEXT, seed=0
        ) as engine:
            draw = _drawing(engine, count)

            def without_ban() -> None:
                with mock.patch.object(engine, "_surplus", None):
                    draw(plain)

            candidates: dict[str, Callable[[], object]] = {
                _PLAIN: lambda: draw(plain),
                "padding may be drawn": without_ban,
                "4 candidates": lambda: draw(plain, 4),
            }
            for name, values in others.items():
                sampling = plain.model_copy(update=values)
                candidates[name] = lambda sampling=sampling: draw(sampling)
            found = interleave(candidates, options.rounds)
    tokens = count * length
    rows: list[list[str]] = []
    for name, seconds in found.items():
        over = ratios(found, name, _PLAIN)
        each = figure(statistics.median(seconds) / tokens * 1e6)
        rows.append([name, each, f"{statistics.median(over):.2f} ± {spread(over):.1g}"])
    header = ("asked for", "CPU microseconds a token", f"time over {_PLAIN}")
    return Report("Drawing in vLLM", [], [Table("Cost, one core", header, rows)], [], found)


def _drawing(engine: Generator, count: int) -> Callable[..., None]:
    """Draws `count` responses to one prompt."""
    prompt = np.arange(2, 10, dtype=np.uint32)

    def draw(sampling: Sampling, candidates: int = 0) -> None:
        requests = (Request(index, prompt, sequence_seed(0, index)) for index in range(count))
        for _ in engine.generate(requests, sampling, candidates):
            pass

    return draw


def _write_model(directory: Path) -> None:
    """Random weights; its end token is as unlikely as any other, so responses run to the limit."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=_IDS + _PADDING,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=_CONTEXT,
        eos_token_id=0,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    save_numbers(directory, _IDS, eos_token="0")


if __name__ == "__main__":
    main(run, __doc__)
