"""The memory a stage will need, item by item, each with its arithmetic.

Letters: P weights of the model, V ids, D hidden size, L layers, T tokens of a micro-batch, C rows
of a chunk of logits. Weights, gradients and the states of AdamW are exact. The rest follows from
the tensors that a decoder of the Llama family keeps for its backward pass, and is about right for
others; whatever a prompt adds to a response is not counted.

    training   float32 weights, gradients and two moments: 16 bytes a weight. Under autocast the
               matrices once more in bfloat16. A layer keeps, per token, 24 D + 16 I + 16 (Q + K)
               bytes in float32 and 26 D + 8 I + 10 (Q + K) under autocast (Q and K are the widths
               of all query heads and of all key heads, I that of the MLP); with
               gradient checkpointing 4 D, and one layer at a time all of it. The fused head and
               loss holds one chunk of logits and the gradient of the head.
    FSDP       divides weights, gradients and moments, but every process holds embeddings and head
               whole, and their gradient.
    scoring    weights, one layer's activations, one chunk of logits.
    writing    weights, the key-value cache, logits of the sequences decoded together. vLLM takes
               its share of a GPU whole.
"""

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.planning.machine import Machine
from stages.config.evaluation import Evaluate
from stages.config.execution import Workers
from stages.config.generation import EngineRun, Generate
from stages.config.records import ScoreRun, TeacherLogits
from stages.config.stage import StageTable
from stages.config.training import Training
from stages.models.shape import ModelShape
from stages.ranks import here

_BYTES = {"float32": 4, "bfloat16": 2}
_PROCESS = {"cpu": 600 << 20, "cuda": 800 << 20}
"""Libraries in the memory of a process, or the context of CUDA on its GPU."""
_FRAGMENTS = 0.25
"""Memory that allocators hold beyond what is in use, as a share of what comes and goes; with it,
`python -m benchmarks.planned_memory` finds predictions within a fifth of real peaks."""
_VLLM = 1 << 30
"""The same for vLLM on a CPU."""
_PREFILL = 4096
"""Prompt tokens that vLLM reads at once on a CPU."""


@dataclass(frozen=True)
class Item:
    """Something that takes memory."""

    what: str
    bytes: int
    how: str
    """The arithmetic, in words."""
    exact: bool = False
    """Whether the stage surely needs all of it."""


@dataclass(frozen=True)
class Memory:
    """What one process of a stage needs at its peak."""

    device: str
    """`cpu` or `cuda`."""
    items: tuple[Item, ...]
    processes: int = 1
    """Processes that share the memory of the device."""

    @property
    def bytes(self) -> int:
        """Of all processes on the device together."""
        return self.processes * sum(item.bytes for item in self.items)

    @property
    def surely(self) -> int:
        """The part of it that is exact."""
        return self.processes * sum(item.bytes for item in self.items if item.exact)

    def arithmetic(self, items: Iterable[Item] | None = None) -> str:
        """The sum in words, largest item first."""
        found = sorted(self.items if items is None else items, key=lambda item: -item.bytes)
        shown = [f"{item.what} {gib(item.bytes)} ({item.how})" for item in found]
        times = f", in each of {self.processes} processes" if self.processes > 1 else ""
        return " + ".join(shown) + times


def gib(size: int) -> str:
    """A size as people say it, in powers of 1,024 as memory is sold."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def memory_of(
    config: StageTable,
    model: ModelShape,
    dtype: str,
    machine: Machine,
    *,
    teacher: ModelShape | None = None,
    longest: int | None = None,
) -> Memory | None:
    """Memory that a stage with this table needs; None for a stage that runs no model.

    Args:
        config: Table of the stage.
        model: The model it trains or runs.
        dtype: What the model computes in.
        machine: Where it will run.
        teacher: The model that runs beside a student (`data = "live"`).
        longest: Tokens of the longest sequence that is read, where known.
    """
    if isinstance(config, Training):
        return _training(config, model, dtype, machine, teacher, longest)
    if isinstance(config, TeacherLogits):
        return _scoring(config, model, dtype, machine, longest)
    if isinstance(config, Generate):
        shared = _side_by_side(config.run)
        return _writing(config.run, config.sampling.max_tokens, model, dtype, machine, shared)
    if isinstance(config, Evaluate):
        device = machine.device()
        read = [_weights(model, dtype), *_reading(model, dtype, config.run.tokens_per_batch, 1024)]
        found = [_memory(device, read, 1)]
        if config.prompts:
            limit = config.sampling.max_tokens
            found.append(_writing(config.run, limit, model, dtype, machine, 1))
        return max(found, key=lambda memory: memory.bytes)
    return None


def _training(
    config: Training,
    model: ModelShape,
    dtype: str,
    machine: Machine,
    teacher: ModelShape | None,
    longest: int | None,
) -> Memory:
    run, P = config.run, model.parameters
    device, ranks = machine.device(run.device), here().size
    processes = ranks if ranks > 1 else run.processes  # as torchrun says
    autocast = dtype == "bfloat16"
    cut = f" / {processes} processes" if processes > 1 else ""
    items = [
        Item("weights", 4 * P // processes, f"4 bytes x {_count(P)}{cut}", exact=True),
        Item("gradients", 4 * P // processes, f"4 bytes x {_count(P)}{cut}", exact=True),
        Item("AdamW", 8 * P // processes, f"8 bytes x {_count(P)}{cut}", exact=True),
    ]
    D, I, L = model.hidden, model.intermediate, model.layers  # noqa: E741
    one_layer = max(0, P - model.root) // L
    if processes > 1:
        whole = 8 * model.root + 8 * one_layer
        items.append(Item("unsharded", whole, "embeddings, head and a layer, with gradients"))
    copies = 0 if not autocast else one_layer * (1 if run.gradient_checkpointing or cut else L)
    if copies:
        items.append(Item("bfloat16 copies", 2 * copies, f"2 bytes x {_count(copies)}"))

    tokens = _tokens(run.tokens_per_microbatch, config, model, longest)
    heads = model.queries + model.keys
    kept = 26 * D + 8 * I + 10 * heads if autocast else 24 * D + 16 * I + 16 * heads
    if run.gradient_checkpointing:
        each, how = 4 * D * L + 2 * kept + 16 * D, "with gradient checkpointing"
    else:
        each, how = kept * (L + 1) + 16 * D, f"{kept:,} bytes x {L} layers"
    items.append(Item("activations", tokens * each, f"{tokens:,} tokens, {how}"))

    rows, V = min(run.rows_per_chunk, tokens), model.rows
    size = 10 if autocast else 4
    gradient = (8 if autocast else 4) * V * D
    how = f"{size} bytes x {rows:,} rows x {V:,} ids, and the gradient of the head"
    items.append(Item("logits", size * rows * V + gradient, how))
    if teacher is not None:
        beside = _weights(teacher, dtype)
        items.append(Item("teacher", beside.bytes, beside.how, exact=True))
    return _memory(device, items, processes)


def _tokens(budget: int, config: Training, model: ModelShape, longest: int | None) -> int:
    """Tokens of the largest micro-batch: the budget, or all there is, or one long sequence."""
    limits = [size for size in (longest, config.max_length, model.context) if size]
    if not limits:
        return budget
    one = min(limits)
    return max(min(budget, config.batch_size * one), one if longest else 0)


def _scoring(
    config: TeacherLogits, model: ModelShape, dtype: str, machine: Machine, longest: int | None
) -> Memory:
    run = config.run
    if run.engine == "vllm":
        limit = longest or model.context or _PREFILL
        return _vllm(run, limit, 1, model, dtype, machine, _side_by_side(run))
    device = machine.device(run.device)
    tokens = max(run.tokens_per_batch, longest or 0)
    items = [_weights(model, dtype), *_reading(model, dtype, tokens, run.rows_per_chunk)]
    if device == "cpu" and dtype != "float32":
        size = 4 * model.rows * model.hidden
        items.append(Item("float32 head", size, f"4 bytes x {model.rows:,} x {model.hidden:,}"))
    return _memory(device, items, _side_by_side(run))


def _reading(model: ModelShape, dtype: str, tokens: int, rows: int) -> list[Item]:
    """A forward pass over `tokens` tokens without gradients, and a chunk of logits."""
    width = 2 * model.hidden + 3 * model.intermediate + 2 * (model.queries + model.keys)
    each = _BYTES[dtype] * width + 8 * model.hidden
    return [
        Item("activations", tokens * each, f"{each:,} bytes x {tokens:,} tokens"),
        Item("logits", 12 * rows * model.rows, f"12 bytes x {rows:,} rows x {model.rows:,} ids"),
    ]


def _writing(
    run: EngineRun, limit: int, model: ModelShape, dtype: str, machine: Machine, shared: int
) -> Memory:
    """An engine that decodes responses of up to `limit` tokens."""
    if run.engine != "transformers" and importlib.util.find_spec("vllm") is not None:
        return _vllm(run, limit, run.max_sequences, model, dtype, machine, shared)
    device = machine.device()
    sequences, V = run.max_sequences, model.rows
    cache = 2 * _BYTES[dtype] * model.keys * model.layers * sequences * limit
    items = [
        _weights(model, dtype),
        Item("key-value cache", cache, f"{sequences} sequences x {limit:,} tokens"),
        Item("logits", 36 * sequences * V, f"36 bytes x {sequences} sequences x {V:,} ids"),
    ]
    return _memory(device, items, shared)


def _vllm(
    run: EngineRun | ScoreRun,
    limit: int,
    sequences: int,
    model: ModelShape,
    dtype: str,
    machine: Machine,
    shared: int,
) -> Memory:
    device = machine.device()
    parallel = run.tensor_parallel
    weights = _weights(model, dtype)
    if device == "cuda":
        share = run.memory_fraction
        taken = round(share * machine.capacity(device))
        own = Item(
            "weights",
            weights.bytes // parallel,
            weights.how + (f" / {parallel} GPUs" if parallel > 1 else ""),
            exact=True,
        )
        rest = Item("vLLM", max(0, taken - own.bytes), f"{share:g} of the GPU, mostly its cache")
        return Memory(device, (own, rest))
    mib = run.kv_cache_mib
    tokens = max(limit, sequences, _PREFILL)
    items = (
        weights,
        Item("key-value cache", mib << 20, f"kv_cache_mib = {mib}", exact=True),
        *_reading(model, dtype, tokens, sequences),
        Item("vLLM", _VLLM, "libraries and compiled code"),
    )
    return Memory(device, items, shared)


def _weights(model: ModelShape, dtype: str) -> Item:
    size = _BYTES[dtype]
    how = f"{size} bytes x {_count(model.parameters)}"
    return Item("weights", size * model.parameters, how, exact=True)


def _memory(device: str, items: list[Item], processes: int) -> Memory:
    """With what every process needs besides; processes on a CPU share its memory."""
    passing = sum(item.bytes for item in items if not item.exact)
    fragments = Item("allocator", round(_FRAGMENTS * passing), f"{_FRAGMENTS:.0%} of the estimates")
    what = "CUDA context" if device == "cuda" else "the process and its libraries"
    base = Item("base", _PROCESS[device], what)
    return Memory(device, (*items, fragments, base), processes if device == "cpu" else 1)


def _side_by_side(run: Workers) -> int:
    """Workers that share this machine's memory."""
    return run.workers if run.executor == "local" else 1


def _count(weights: int) -> str:
    """Number of weights as people say it."""
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if weights >= factor:
            return f"{weights / factor:.2f} {unit} weights"
    return f"{weights} weights"
