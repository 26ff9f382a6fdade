"""Several processes that train one model: FSDP2 over all of them, NCCL on GPUs and gloo on CPUs.

Weights, gradients and optimiser state are cut along their first dimension, one shard a process.
Every decoder layer is whole only while it computes. Embedding, final norm and head form the root:
the fused head and loss reads `lm_head.weight` itself, so the root is whole from the start of a
micro-batch to the end of its backward pass. That is one float32 copy of embedding and head in every
process, and one of their gradient, which is summed over the processes and cut at the end of the
backward pass. Tied embeddings are one parameter here as everywhere.

Gradients are *summed*, not averaged: each micro-batch is divided by the positions of the whole
step already. They are summed after every micro-batch, so that no process ever holds a whole
gradient of the layers.
"""

import logging
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from stages.models.model import lm_head
from stages.ranks import Ranks, here
from stages.training.group import ALONE, Group
from storage.errors import ConfigError, RetryError

log = logging.getLogger(__name__)

T = TypeVar("T")

_PATIENCE = timedelta(minutes=30)
"""How long processes wait for each other: the first one may be writing a large model."""


class Processes(Group):
    """Processes started by torchrun, or by `run.processes`."""

    def __init__(self, ranks: Ranks) -> None:
        self.rank, self.size, self._local = ranks.rank, ranks.size, ranks.local
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        with _lost_peers(self.size):
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_PATIENCE)
        self._roots: dict[int, _Root] = {}

    def all_gather(self, value: T) -> list[T]:
        """The `value` of every process, by way of their CPUs."""
        out: list[T | None] = [None] * self.size
        dist.all_gather_object(out, value)
        return cast("list[T]", out)

    def build(
        self,
        make: Callable[[torch.device], PreTrainedModel],
        device: torch.device,
        dtype: torch.dtype,
    ) -> PreTrainedModel:
        """Load and cut the model, one process of a machine after the other.

        So a machine's memory holds one whole model beside the shards, and a GPU never does.
        """
        if device.type == "cuda":
            _take_gpu(self._local)
        mesh = init_device_mesh(device.type, (self.size,))
        turns = max(self.all_gather(self._local)) + 1
        built: list[tuple[PreTrainedModel, _Root]] = []
        for turn in range(turns):
            if turn == self._local:
                model = make(torch.device("cpu"))
                built.append((model, _shard(model, mesh, dtype)))
            self.all_gather(None)  # the others wait
        model, root = built[0]
        model.to(device)  # type: ignore[reportArgumentType]
        self._roots[id(model)] = root
        return model

    def unsharded(self, model: PreTrainedModel, action: Callable[[], T]) -> T:
        """Run `action` as the forward pass of the root."""
        root = self._roots[id(model)]
        found = root(action)
        if not torch.is_grad_enabled():
            cast("FSDPModule", root).reshard()  # no backward pass will do it
        return found

    def zero_loss(self, model: PreTrainedModel) -> Tensor:
        """One token through all layers, and all of the head, times zero."""

        def nothing() -> Tensor:
            ids_11 = torch.zeros(1, 1, dtype=torch.long, device=model.device)
            hidden = model.base_model(input_ids=ids_11, use_cache=False).last_hidden_state
            head = lm_head(model)
            used = [hidden, *(x for x in (head.weight, head.bias) if x is not None)]
            return torch.stack([x.float().sum() for x in used]).sum() * 0.0

        return self.unsharded(model, nothing)

    def full_model(self, model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel | None:
        """Gather one weight after the other, and keep them on the CPU of the first process."""
        whole: dict[str, Tensor] = {}
        for name, value in model.state_dict().items():
            found = value.full_tensor() if isinstance(value, DTensor) else value
            if self.first:
                kind = dtype if found.is_floating_point() else found.dtype
                whole[name] = found.detach().to("cpu", kind, copy=True)
        return _plain(model, whole, dtype) if self.first else None

    def fail_if_peer_lost(self) -> AbstractContextManager[None]:
        """Says in one sentence that another process is gone; its own message says why."""
        return _lost_peers(self.size)


@cache
def current() -> Group:
    """The group of this process, made at the first call.

    Raises:
        ConfigError: the launcher's variables make no sense.
        RetryError: the other processes cannot be reached.
    """
    ranks = here()
    return ALONE if ranks.size == 1 else Processes(ranks)


def shutdown() -> None:
    """Part from the other processes at the end of all work."""
    if dist.is_initialized():
        dist.destroy_process_group()


class _Root(nn.Module):
    """The module whose forward pass is whatever has to be done with whole weights."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, action: Callable[[], Any]) -> Any:
        return action()


def _shard(model: PreTrainedModel, mesh: Any, dtype: torch.dtype) -> _Root:
    """Cut `model` in place: layer by layer, then what is left."""
    layers = list(_layers(model))
    # Root weights stay float32, and so does the residual stream, as under autocast in one process.
    passing = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=passing)
    root = _Root(model)
    fully_shard(root, mesh=mesh)
    for module in (root, *layers):
        part = cast("FSDPModule", module)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo can do nothing else
    return root


def _layers(model: PreTrainedModel) -> Iterable[nn.Module]:
    """The decoder layers, as the architecture names what must stay together."""
    names = set(getattr(model, "_no_split_modules", None) or [])
    return [module for module in model.modules() if type(module).__name__ in names]


def _plain(model: PreTrainedModel, whole: dict[str, Tensor], dtype: torch.dtype) -> PreTrainedModel:
    """An ordinary model on the CPU that holds the tensors `whole`."""
    with torch.device("meta"):
        made = type(model)(model.config)
    made.load_state_dict(whole, assign=True)
    made.tie_weights()
    made.generation_config = model.generation_config
    made.name_or_path = model.name_or_path
    made.config.dtype = dtype
    return made


def _take_gpu(local: int) -> None:
    """Work on the GPU of this process.

    Raises:
        ConfigError: there are more processes on this machine than GPUs.
    """
    there = torch.cuda.device_count()
    if local >= there:
        raise ConfigError(
            f"process {local + 1} of this machine has no GPU: there are {there}. Start as many "
            'processes as GPUs, or set run.device = "cpu".'
        )
    torch.cuda.set_device(local)


@contextmanager
def _lost_peers(size: int) -> Generator[None]:
    """Turn what the backends say of a lost process into a `RetryError`."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise RetryError(
                f"another of the {size} processes ended or cannot be reached; its own "
                "message may say why. Finished checkpoints are kept: run the same command again."
            ) from error
        raise
