"""Whether memory and disk of this machine are enough for what is to be made.

Weights, gradients and the states of AdamW are known exactly: where these alone do not fit, the run
is refused. Activations and caches are estimates, so they give a note. Nodes that another machine
may run (those after the ones asked for, and units handed to a scheduler) are never refused.
"""

from collections.abc import Iterator

from pipeline.planning.estimate import Estimator, free_space
from pipeline.planning.machine import Machine
from pipeline.planning.memory import Memory, gib
from pipeline.planning.plan import Planned
from pipeline.preflight.finding import Finding
from pipeline.preflight.scope import Scope
from stages.config.execution import Workers
from stages.config.training import TrainRun

_TIGHT = 0.9
"""Share of the memory from which on an estimate is worth a note."""
_PROCESSES = (2, 4, 8, 16, 32, 64)


def check_memory(scope: Scope, machine: Machine | None = None) -> Iterator[Finding]:
    """Every model that is trained or run fits into the memory of its device."""
    estimator = Estimator(list(scope.known.values()), scope.store, machine)
    largest: dict[str, tuple[Memory, str]] = {}
    for chosen in scope.todo:
        run = getattr(chosen.node.config, "run", None)
        if isinstance(run, Workers) and run.executor == "ray":
            continue
        memory = estimator.memory(chosen)
        if memory is None or not (there := estimator.machine.capacity(memory.device)):
            continue
        if memory.bytes > _TIGHT * there:
            yield _too_large(scope, chosen, memory, estimator)
        elif memory.device not in largest or memory.bytes > largest[memory.device][0].bytes:
            largest[memory.device] = memory, chosen.node.name
    for device, (memory, name) in largest.items():
        there = gib(estimator.machine.capacity(device))
        message = f"{name} needs the most: about {gib(memory.bytes)} of {there}"
        yield Finding("ok", "memory" if device == "cpu" else "GPU memory", message)


def check_disk(scope: Scope, machine: Machine | None = None) -> Iterator[Finding]:
    """The disk of the store holds what is to be made, and the checkpoints on the way."""
    free = free_space(scope.store)
    if free is None:
        return
    estimator = Estimator(list(scope.known.values()), scope.store, machine)
    found = [estimator.room(chosen) for chosen in scope.todo]
    sets = sum(one.size.bytes for one in found if one.size)
    models = sum(one.model or 0 for one in found)
    checkpoints = max((one.checkpoints for one in found), default=0)
    need = sets + models + checkpoints
    if not need:
        return
    parts = f"sets {gib(sets)} + models {gib(models)} + checkpoints {gib(checkpoints)}"
    message = f"about {gib(need)} of {gib(free)} free at {scope.store.root} ({parts})"
    if unknown := estimator.unknown():
        message += f", not counting {', '.join(unknown)}, whose size is not known yet"
    mend = "Free some space, or set `store` to a directory on a larger disk."
    if need <= free:
        yield Finding("ok", "disk", message)
    elif models + checkpoints <= free or scope.elsewhere:
        yield Finding("note", "disk", f"may not be enough: {message}", mend)
    else:
        yield Finding("refused", "disk", f"not enough: {message}", mend)


def _too_large(scope: Scope, chosen: Planned, memory: Memory, estimator: Estimator) -> Finding:
    """A model that does not fit, or hardly, with the arithmetic and the next thing to try."""
    there = estimator.machine.capacity(memory.device)
    device = "a GPU with" if memory.device == "cuda" else "this machine's"
    surely = memory.surely > there and not scope.elsewhere
    needs = "needs at least" if surely else "needs about"
    size = memory.surely if surely else memory.bytes
    items = [item for item in memory.items if item.exact or not surely]
    message = f"{needs} {gib(size)}, {device} {gib(there)}: {memory.arithmetic(items)}"
    mend = _mend(chosen, memory, estimator)
    return Finding("refused" if surely else "note", f"{chosen.node.name}: memory", message, mend)


def _mend(chosen: Planned, memory: Memory, estimator: Estimator) -> str:
    """The smallest change of the recipe under which it fits, or what else there is to do."""
    run = getattr(chosen.node.config, "run", None)
    there = _TIGHT * estimator.machine.capacity(memory.device)
    table = chosen.node.heading.strip("[]")
    if isinstance(run, TrainRun):
        tokens = max(1024, run.tokens_per_microbatch // 8)
        changes: list[dict[str, object]] = [
            {"tokens_per_microbatch": tokens},
            {"gradient_checkpointing": True},
            {"gradient_checkpointing": True, "tokens_per_microbatch": tokens},
        ]
        if memory.device == "cuda":
            both: dict[str, object] = {"gradient_checkpointing": True}
            both["tokens_per_microbatch"] = tokens
            changes += [{"processes": count, **both} for count in _PROCESSES]
        for change in changes:
            smaller = estimator.memory(chosen, run.model_copy(update=change))
            if smaller is not None and smaller.bytes <= there:
                said = ", ".join(f"{name} = {str(value).lower()}" for name, value in change.items())
                each = " in each process, of one GPU each" if "processes" in change else ""
                return f"Set {table}.run: {said} (about {gib(smaller.bytes)}{each})."
        return "Train a smaller student, or run this stage where there is more memory."
    if chosen.node.stage.name == "teacher-logits" and memory.device == "cuda":
        options = '{ engine = "vllm", tensor_parallel = 2 }'
        return f"Spread the teacher over GPUs: {table}.run = {options}."
    if memory.device == "cuda":
        return f"Spread the model over GPUs with {table}.run.tensor_parallel, or use bfloat16."
    return "Use a smaller model, bfloat16, fewer workers, or a machine with more memory."
