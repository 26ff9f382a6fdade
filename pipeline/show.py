"""What `plan`, `status`, `explain` and `methods` print."""

import textwrap
from collections.abc import Iterable
from dataclasses import asdict

from pipeline import ledger
from pipeline.planning.estimate import Estimate, Estimator, free_space
from pipeline.planning.fingerprint import difference
from pipeline.planning.machine import Machine
from pipeline.planning.memory import gib
from pipeline.planning.methods import Method
from pipeline.planning.node import Node
from pipeline.planning.plan import Planned
from stages.config.training import Student
from stages.progress import duration
from storage.store import Store

Lines = tuple[list[str], list[dict[str, object]]]
"""A table for people, and one JSON object a node for programs."""

WIDTH = 120
"""Longest line of `plan`."""


def plan_lines(store: Store, planned: Iterable[Planned]) -> Lines:
    """One line a node: state, key, what it reads, and what it will take.

    Below the table stand the devices that were seen and where the times come from. A set that is
    there takes no more time or memory.
    """
    planned = list(planned)
    estimator = Estimator(planned, store)
    rows = [["node", "key", "state", "tokens up to", "disk", "memory", "time", "reads"]]
    result: list[dict[str, object]] = []
    bases: dict[str, list[str]] = {}
    seconds = 0.0
    for chosen in planned:
        name, manifest = chosen.node.name, chosen.manifest(store)
        done = manifest is not None
        found = estimator.of(chosen)
        sources = [ref.source for ref in chosen.node.inputs.values()]
        names = [source.name if isinstance(source, Node) else source.path for source in sources]
        if chosen.node.stage.name == "report":
            names = [f"{len(sources)} evaluations"]
        size, memory, time = found.size, found.memory, found.duration
        cells = [_count(size.tokens) if size else "-", "-", "-", "-"]
        if manifest is not None:
            cells[1] = _bytes(manifest.totals.bytes)
        elif found.disk is not None:
            cells[1] = _bytes(found.disk)
        if not done and memory:
            cells[2] = gib(memory.bytes)
        if not done and time:
            cells[3] = ("" if time.basis == "measured" else "~") + duration(time.seconds)
            bases.setdefault(time.basis, []).append(time.source)
            seconds += time.seconds
        reads = ", ".join(names) or "-"
        rows.append([name, _short(chosen.key), "done" if done else "to do", *cells, reads])
        result.append({"node": name, "key": chosen.key, "done": done, **_figures(found)})
    lines = _table(rows, WIDTH)
    lines.append("")
    lines += _devices(estimator.machine, free_space(store))
    if unknown := estimator.unknown():
        lines.append(f"memory and time not known: {', '.join(unknown)} not here yet"[:WIDTH])
    if seconds:
        took = duration(seconds)
        lines.append(f"time: {took} for what is to do, if every response is as long as it may be")
    if "measured" in bases:
        sets = ", ".join(dict.fromkeys(bases["measured"]))
        lines.append(f"  measured on this machine: {sets}"[:WIDTH])
    if "rough" in bases:
        lines.append(f"  ~ rough, to a factor of three, more for tiny models: {bases['rough'][0]}")
    lines += _rounds(store, planned, estimator)
    return lines, result


def _rounds(store: Store, planned: list[Planned], estimator: Estimator | None = None) -> list[str]:
    """What the rounds of every student are, and how those have ended that are done."""
    lines: list[str] = []
    for first in planned:
        config, name = first.node.config, first.node.name
        if not isinstance(config, Student) or config.rounds == 1 or first.node.round > 1:
            continue
        names = [name, *(f"{name}-{number}" for number in range(2, config.rounds + 1))]
        made = [one.manifest(store) for one in planned if one.node.name in names]
        stories = [
            {**manifest.meta, "round": number}
            for number, manifest in enumerate(made, start=1)
            if manifest is not None
        ]
        steps = estimator.steps(first.node) if estimator else config.steps
        steps = int(stories[0]["planned_steps"]) if stories else steps
        each = "?" if steps is None else str(steps)
        how = "an optimiser and a schedule of its own in each"
        if config.rounds_are_one:
            shape = "one learning rate" if not config.follows_progress else "one schedule"
            whole = "" if steps is None else f" over {config.rounds * steps} steps"
            how = f"one optimiser and {shape}{whole}"
        line = f"{name}: {config.rounds} rounds of {each} steps, {how}"
        if stories:
            early = [str(story["round"]) for story in stories if story["stopped_by_drift"]]
            line += f"; {len(stories)} done with {sum(story['steps'] for story in stories)} steps"
            line += f", ended early by drift: {', '.join(early)}" if early else ""
        lines.append(line[:WIDTH])
    return lines


def _figures(found: Estimate) -> dict[str, object]:
    """Everything that is estimated of a node, for programs."""
    size, memory, time = found.size, found.memory, found.duration
    return {
        "tokens": size and size.tokens,
        "bytes": size and size.bytes,
        "disk": {
            "set": size and size.bytes,
            "model": found.model,
            "next_round": found.next_round,
            "checkpoints": found.checkpoints,
        },
        "memory": memory
        and {
            "device": memory.device,
            "bytes": memory.bytes,
            "exactly": memory.surely,
            "processes": memory.processes,
            "items": [asdict(item) for item in memory.items],
        },
        "time": time and asdict(time),
    }


def _devices(machine: Machine, free: int | None) -> list[str]:
    """The devices that a plan is for."""
    memory = gib(machine.memory) if machine.memory else "unknown"
    parts = [f"{machine.cpu}, {machine.cores} cores, {memory}"]
    for gpu in dict.fromkeys(machine.gpus):
        parts.append(f"{machine.gpus.count(gpu)} x {gpu.name}, {gib(gpu.memory)}")
    disk = f"; {_bytes(free)} free on disk" if free is not None else ""
    return [f"for this machine: {'; '.join(parts)}{disk}"]


def status_lines(store: Store, planned: Iterable[Planned]) -> Lines:
    """One line a node: what is there, and what it cost."""
    planned = list(planned)
    rows = [["node", "key", "state", "sequences", "tokens", "bytes", "seconds"]]
    result: list[dict[str, object]] = []
    for chosen in planned:
        manifest = chosen.manifest(store)
        name, state, sizes, cost = chosen.node.name, "to do", ["-"] * 4, dict[str, object]()
        if manifest is not None:
            totals = manifest.totals
            seconds = float(ledger.cost(chosen.directory(store)).get("seconds", 0.0))
            state, cost = "done", {"seconds": seconds, **asdict(totals)}
            sizes = [_count(totals.sequences), _count(totals.tokens), _bytes(totals.bytes)]
            sizes.append(f"{seconds:.1f}")
        elif chosen.key is not None:
            directory = chosen.directory(store)
            parts = {file.name.split("-")[1] for file in directory.glob("part-*-*.parquet")}
            if parts or directory.is_dir():
                state = f"{len(parts)} parts" if parts else "started"
        rows.append([name, _short(chosen.key), state, *sizes])
        result.append({"node": name, "key": chosen.key, "done": manifest is not None, **cost})
    return [*_table(rows), *_rounds(store, planned)], result


def explain_lines(store: Store, planned: Iterable[Planned]) -> Lines:
    """For every missing set, the fields in which it differs from the nearest one there is.

    The nearest is the committed set of the same stage that differs in the fewest fields.
    """
    lines: list[str] = []
    result: list[dict[str, object]] = []
    missing = {p.node.name for p in planned if p.manifest(store) is None}
    for chosen in planned:
        name, stage = chosen.node.name, chosen.node.stage.name
        if name not in missing:
            lines.append(f"{name}: done, {chosen.directory(store).name}")
            result.append({"node": name, "done": True})
            continue
        fields = {
            path.name: difference(manifest.payload, chosen.payload)
            for path, manifest in store.sets(stage)
        }
        nearest = min(fields, key=lambda path: len(fields[path]), default=None)
        because: list[str] = []
        if nearest is None:
            lines.append(f"{name}: to do; there is no {stage} set yet")
        else:
            lines.append(f"{name}: to do; the nearest set is {nearest}, which differs in")
            because = [_upstream_hint(line, chosen, missing) for line in fields[nearest]]
            lines += [f"    {line}" for line in because]
        result.append({"node": name, "done": False, "nearest": nearest, "because": because})
    return lines, result


def _upstream_hint(line: str, chosen: Planned, missing: set[str]) -> str:
    """Name the node behind a changed input, so that the reader can follow it upstream."""
    for role, ref in chosen.node.inputs.items():
        name = ref.source.name if isinstance(ref.source, Node) else ""
        if line.startswith(f"inputs.{role}.key") and name:
            return f"{line} (from {name}{', itself to do' if name in missing else ''})"
    return line


def _short(key: str | None) -> str:
    """A key depends on models and files, of which one may not be on this machine yet."""
    return key[:12] if key else "not known"


def _bytes(value: float) -> str:
    return _count(value, "B")


def _count(value: float, unit: str = "") -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.1f} {prefix}{unit}"
    return f"{value:.0f} {unit}".strip()


def _table(rows: list[list[str]], width: int | None = None) -> list[str]:
    """Columns side by side; the last one is cut where the line would be wider than `width`."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if width is None:
        return lines
    return [line if len(line) <= width else line[: width - 1] + "…" for line in lines]


def methods_listed(methods: Iterable[Method]) -> list[str]:
    """One line a method."""
    rows = [["method", "mechanism", "offline", "paper", "what it is"]]
    for one in methods:
        rows.append([one.name, one.mechanism, one.offline, one.arxiv or "-", one.title])
    return _table(rows)


def methods_described(methods: Iterable[Method]) -> list[str]:
    """All that is known of each method, field by field."""
    lines: list[str] = []
    for one in methods:
        lines += [""] if lines else []
        for name, value in one.summary.items():
            if value:
                text = f"{name:<11}{value}"
                lines += textwrap.wrap(text, WIDTH, subsequent_indent=" " * 11)
    return lines
