"""What `plan`, `status` and `explain` print."""

from collections.abc import Iterable
from dataclasses import asdict

from pipeline import ledger
from pipeline.planning.estimate import estimate
from pipeline.planning.fingerprint import difference
from pipeline.planning.nodes import Node
from pipeline.planning.plan import Planned
from storage.store import Store

Lines = tuple[list[str], list[dict[str, object]]]
"""A table for people, and one JSON object a node for programs."""


def plan_lines(store: Store, planned: Iterable[Planned]) -> Lines:
    """One line a node: state, key, what it reads, expected tokens and bytes."""
    rows = [["node", "key", "state", "reads", "tokens up to", "bytes about"]]
    result: list[dict[str, object]] = []
    for chosen in planned:
        name, size = chosen.node.name, estimate(chosen.node)
        done = chosen.manifest(store) is not None
        sources = [ref.source for ref in chosen.node.inputs.values()]
        names = [source.name if isinstance(source, Node) else source.path for source in sources]
        if chosen.node.stage.name == "report":
            names = [f"{len(sources)} evaluations"]
        tokens, volume = ("-", "-") if size is None else (_count(size.tokens), _bytes(size.bytes))
        state, reads = "done" if done else "to do", ", ".join(names) or "-"
        rows.append([name, _short(chosen.key), state, reads, tokens, volume])
        expected = {"tokens": size and size.tokens, "bytes": size and size.bytes}
        result.append({"node": name, "key": chosen.key, "done": done, **expected})
    return _table(rows), result


def status_lines(store: Store, planned: Iterable[Planned]) -> Lines:
    """One line a node: what is there, and what it cost."""
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
    return _table(rows), result


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


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
