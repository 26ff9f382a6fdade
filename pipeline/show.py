"""What `plan`, `status` and `explain` print."""

from collections.abc import Iterable
from dataclasses import asdict

from pipeline import ledger
from pipeline.planning.config import Recipe
from pipeline.planning.estimate import estimate
from pipeline.planning.fingerprint import difference
from pipeline.planning.nodes import Node
from pipeline.planning.plan import Planned
from storage.files.place import Place
from storage.store import Store

_UNKNOWN = "not known"
"""In place of a key that depends on a model or file which is not on this machine yet."""

Lines = tuple[list[str], list[dict[str, object]]]


def plan_lines(recipe: Recipe, store: Store, planned: Iterable[Planned]) -> Lines:
    """One line a node: state, key, what it reads, expected tokens and bytes."""
    rows = [["node", "key", "state", "reads", "tokens up to", "bytes about"]]
    result: list[dict[str, object]] = []
    for chosen in planned:
        size = estimate(chosen.node)
        done = chosen.manifest(store) is not None
        state = "done" if done else "to do"
        key = chosen.key[:12] if chosen.key else _UNKNOWN
        tokens = "-" if size is None else _count(size.tokens)
        volume = "-" if size is None else _count(size.bytes, "B")
        rows.append([chosen.node.name, key, state, _reads(chosen), tokens, volume])
        result.append(
            {
                "node": chosen.node.name,
                "key": chosen.key,
                "done": done,
                "tokens": size.tokens if size else None,
                "bytes": size.bytes if size else None,
            }
        )
    return _table(rows), result


def status_lines(store: Store, planned: Iterable[Planned]) -> Lines:
    """One line a node: what is there, and what it cost."""
    rows = [["node", "key", "state", "sequences", "tokens", "bytes", "seconds"]]
    result: list[dict[str, object]] = []
    for chosen in planned:
        manifest = chosen.manifest(store)
        name, key = chosen.node.name, (chosen.key or _UNKNOWN)[:12]
        if manifest is None:
            rows.append([name, key, _progress(chosen, store), "-", "-", "-", "-"])
            result.append({"node": name, "key": chosen.key, "done": False})
            continue
        totals = manifest.totals
        seconds = float(ledger.cost(chosen.directory(store)).get("seconds", 0.0))
        rows.append(
            [
                name,
                key,
                "done",
                _count(totals.sequences),
                _count(totals.tokens),
                _count(totals.bytes, "B"),
                f"{seconds:.1f}",
            ]
        )
        result.append(
            {"node": name, "key": chosen.key, "done": True, "seconds": seconds, **asdict(totals)}
        )
    return _table(rows), result


def explain_lines(store: Store, planned: Iterable[Planned]) -> Lines:
    """For every missing set, the fields in which it differs from the nearest one there is."""
    lines: list[str] = []
    result: list[dict[str, object]] = []
    missing = {p.node.name for p in planned if p.manifest(store) is None}
    for chosen in planned:
        name = chosen.node.name
        if name not in missing:
            lines.append(f"{name}: done, {chosen.directory(store).name}")
            result.append({"node": name, "done": True})
            continue
        nearest = _nearest(chosen, store)
        if nearest is None:
            lines.append(f"{name}: to do; there is no {chosen.node.stage.name} set yet")
            result.append({"node": name, "done": False, "nearest": None, "because": []})
            continue
        path, fields = nearest
        lines.append(f"{name}: to do; the nearest set is {path.name}, which differs in")
        because = [_upstream_hint(line, chosen, missing) for line in fields]
        lines += [f"    {line}" for line in because]
        result.append({"node": name, "done": False, "nearest": path.name, "because": because})
    return lines, result


def _nearest(chosen: Planned, store: Store) -> tuple[Place, list[str]] | None:
    """The committed set of the same stage whose payload differs in the fewest fields."""
    candidates = [
        (path, difference(manifest.payload, chosen.payload))
        for path, manifest in store.sets(chosen.node.stage.name)
    ]
    return min(candidates, key=lambda found: len(found[1])) if candidates else None


def _upstream_hint(line: str, chosen: Planned, missing: set[str]) -> str:
    """Name the node behind a changed input, so that the reader can follow it upstream."""
    for role, ref in chosen.node.inputs.items():
        name = ref.source.name if isinstance(ref.source, Node) else ""
        if line.startswith(f"inputs.{role}.key") and name:
            return f"{line} (from {name}{', itself to do' if name in missing else ''})"
    return line


def _progress(chosen: Planned, store: Store) -> str:
    """Finished parts of a set that is not committed yet."""
    if chosen.key is None:
        return "to do"
    directory = chosen.directory(store)
    parts = {file.name.split("-")[1] for file in directory.glob("part-*-*.parquet")}
    return f"{len(parts)} parts" if parts else "started" if directory.is_dir() else "to do"


def _reads(chosen: Planned) -> str:
    """Names of the nodes, paths of the models from outside; all evaluations as one."""
    if chosen.node.stage.name == "report":
        return f"{len(chosen.inputs)} evaluations"
    sources = (ref.source for ref in chosen.node.inputs.values())
    names = [source.name if isinstance(source, Node) else source.path for source in sources]
    return ", ".join(names) or "-"


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
