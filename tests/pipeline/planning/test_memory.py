"""Predicted memory against real tensors: weights, gradients, moments, what autograd keeps."""

from dataclasses import replace

import pytest
import torch

from pipeline.planning.machine import GPU, Machine
from pipeline.planning.memory import Memory, memory_of
from stages.config.data import PromptSource
from stages.config.evaluation import Evaluate
from stages.config.generation import GenerateRun, Rollouts
from stages.config.records import ScoreRun, TeacherLogits
from stages.config.training import Architecture, Sft, TrainRun
from stages.models.model import lm_head
from stages.models.shape import ModelShape, shape_from_scratch
from stages.training.optim import adamw
from tests.world import random_model

CPU = Machine("any", 2, 2, 16 << 30)
GPUS = replace(CPU, gpus=(GPU("NVIDIA H100 80GB", 80 << 30),) * 8)
QWEN3_8B = ModelShape(8_190_735_360, 0, 151_936, 4096, 36, 4096, 1024, 12288, 40960, False, True)
SMALL = shape_from_scratch(Architecture(hidden_size=32, layers=3, heads=4, kv_heads=2), 24)


def sft(**run: object) -> Sft:
    return Sft(steps=1, run=TrainRun.model_validate({"device": "auto", **run}))


def of(memory: Memory, what: str) -> int:
    return sum(item.bytes for item in memory.items if item.what == what)


def needed(config: object, shape: ModelShape, dtype: str, machine: Machine = CPU) -> Memory:
    found = memory_of(config, shape, dtype, machine)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_weights_gradients_and_moments_are_those_of_a_real_step() -> None:
    model = random_model(0, layers=3, hidden_size=32, heads=4, kv_heads=2, vocab_size=24)
    shape = replace(SMALL, parameters=sum(weight.numel() for weight in model.parameters()))
    config = sft()
    optimiser = adamw(model, config)
    model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.sum().backward()
    optimiser.step()
    tensors = list(model.parameters())
    tensors += [weight.grad for weight in model.parameters() if weight.grad is not None]
    for state in optimiser.state.values():
        tensors += [state["exp_avg"], state["exp_avg_sq"]]
    assert needed(config, shape, "float32").surely == sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_autograd_keeps(dtype: str, checkpointing: bool) -> None:
    """Counted on a real model, without the copies of its weights; a layer is added for the peak."""
    tokens, layers = 128, 6
    model = random_model(
        0, layers=layers, hidden_size=64, intermediate_size=192, heads=4, kv_heads=2, context=256
    )
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if len(tensor.shape) != 2 or tokens in tensor.shape:  # else a weight in bfloat16
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"),
    ):
        ids = torch.zeros(1, tokens, dtype=torch.long)
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    size = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)
    assert hidden.requires_grad
    shape = ModelShape(0, 0, 24, 64, layers, 64, 32, 192, None, False, False)
    found = needed(
        sft(tokens_per_microbatch=tokens, gradient_checkpointing=checkpointing), shape, dtype
    )
    predicted = of(found, "activations")
    one_more = 1 if not checkpointing else layers  # with checkpointing, one layer is most of it
    assert size <= predicted <= size * (1.3 + one_more)
    if not checkpointing:
        assert predicted == pytest.approx(size * (layers + 1) / layers, rel=0.15)


def test_an_8b_student_needs_16_bytes_a_weight_and_fsdp_divides_them() -> None:
    alone = needed(sft(gradient_checkpointing=True), QWEN3_8B, "bfloat16", GPUS)
    assert alone.surely == 16 * QWEN3_8B.parameters
    assert alone.surely > GPUS.capacity("cuda")
    assert "4 bytes x 8.19 B weights" in alone.arithmetic()
    eight = needed(sft(gradient_checkpointing=True, processes=8), QWEN3_8B, "bfloat16", GPUS)
    assert eight.surely == pytest.approx(alone.surely / 8, rel=1e-6)
    assert eight.surely < eight.bytes < GPUS.capacity("cuda")
    assert of(eight, "unsharded") > 8 * QWEN3_8B.root


def test_processes_on_a_cpu_share_its_memory() -> None:
    alone = needed(sft(), SMALL, "float32")
    two = needed(sft(processes=2), SMALL, "float32")
    assert two.surely == alone.surely
    assert two.bytes > alone.bytes


def test_checkpointing_and_smaller_microbatches_need_less() -> None:
    all_kept = needed(sft(), QWEN3_8B, "bfloat16", GPUS).bytes
    assert needed(sft(gradient_checkpointing=True), QWEN3_8B, "bfloat16", GPUS).bytes < all_kept
    assert needed(sft(tokens_per_microbatch=2048), QWEN3_8B, "bfloat16", GPUS).bytes < all_kept


def test_a_teacher_needs_its_weights_in_its_own_type() -> None:
    score = TeacherLogits(run=ScoreRun())
    on_gpu = needed(score, QWEN3_8B, "bfloat16", GPUS)
    assert on_gpu.surely == 2 * QWEN3_8B.parameters
    on_cpu = needed(score, QWEN3_8B, "bfloat16")
    assert of(on_cpu, "float32 head") == 4 * QWEN3_8B.rows * QWEN3_8B.hidden
    spread = TeacherLogits(run=ScoreRun(engine="vllm", tensor_parallel=2))
    assert needed(spread, QWEN3_8B, "bfloat16", GPUS).surely == QWEN3_8B.parameters
    workers = TeacherLogits(run=ScoreRun(workers=4))
    assert needed(workers, QWEN3_8B, "bfloat16").surely == 4 * 2 * QWEN3_8B.parameters


def test_a_generating_stage_needs_weights_and_cache() -> None:
    prompts = PromptSource(path="p.jsonl")
    plain = Rollouts(prompts=prompts, run=GenerateRun(engine="transformers", max_sequences=4))
    found = needed(plain, QWEN3_8B, "bfloat16")
    # two tensors of 1,024 bfloat16 numbers in each of 36 layers, 4 sequences of 1,024 tokens
    assert of(found, "key-value cache") == 2 * 2 * 1024 * 36 * 4 * 1024
    assert found.surely == 2 * QWEN3_8B.parameters
    pytest.importorskip("vllm")
    vllm = Rollouts(prompts=prompts, run=GenerateRun(engine="vllm", kv_cache_mib=512))
    assert of(needed(vllm, QWEN3_8B, "bfloat16"), "key-value cache") == 512 << 20
    share = needed(vllm, QWEN3_8B, "bfloat16", GPUS)
    assert share.bytes == pytest.approx(0.85 * GPUS.capacity("cuda"), rel=1e-6)


def test_an_evaluation_reads_and_writes() -> None:
    reads = needed(Evaluate(), QWEN3_8B, "bfloat16")
    writes = needed(Evaluate(prompts=PromptSource(path="p.jsonl")), QWEN3_8B, "bfloat16")
    assert reads.surely <= writes.surely
    assert reads.bytes <= writes.bytes


def test_the_head_is_found_where_the_shape_says() -> None:
    model = random_model(0, vocab_size=24, hidden_size=32, tied=True)
    assert lm_head(model).weight.numel() == replace(SMALL, tied=True).root
