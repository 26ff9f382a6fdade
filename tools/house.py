"""Measure the structure of the code: `python tools/house.py` prints what CONTRIBUTING.md promises.

    import circles      among modules, and among folders
    upward imports      from a layer to one above it, and of a stage by anything in `stages`
    calls to the loss   functions of ours on the stack when `afterglow run train` asks for a loss
    touch points        files and lines that each example of docs/extend.md adds to or changes
    lines               of product code: pipeline, stages, storage

An import inside a function counts like one at the top: it is a dependency all the same.
"""

import ast
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("pipeline", "stages", "storage")

Graph = Mapping[str, frozenset[str]]
"""Module -> the modules of this repository that it imports."""


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the product and of `dags`, by its dotted name."""
    found: dict[str, Path] = {}
    for package in (*PRODUCT, "dags"):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def import_graph(root: Path = ROOT) -> dict[str, frozenset[str]]:
    """What imports what; `from package import module` is an import of the module."""
    known = modules(root)
    return {name: frozenset(_imports(path, known) - {name}) for name, path in known.items()}


def _imports(path: Path, known: Iterable[str]) -> set[str]:
    out: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(known)
            plain = any(f"{node.module}.{alias.name}" not in inner for alias in node.names)
            out |= inner | ({node.module} & set(known) if plain else set())
        elif isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names} & set(known)
    return out


def circle(graph: Graph) -> list[str]:
    """Modules of one import circle, in order; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def folders(graph: Graph) -> dict[str, frozenset[str]]:
    """The same graph with every folder below a package as one node."""
    out: dict[str, set[str]] = {}
    for name, imported in graph.items():
        out.setdefault(_folder(name), set()).update(map(_folder, imported))
    return {name: frozenset(imported - {name}) for name, imported in out.items()}


def _folder(module: str) -> str:
    return ".".join(module.split(".")[:2])


def upward(graph: Graph) -> list[str]:
    """Imports against the layers, as `importer -> imported`.

    `pipeline` imports `stages` and `storage`, `stages` imports `storage`, `dags` import the graph
    and how a command is spelled. A stage is run by the pipeline and imported by nothing.
    """
    from pipeline.graph import STAGES

    allowed = {
        "storage": ("storage",),
        "stages": ("stages", "storage"),
        "pipeline": ("pipeline", "stages", "storage"),
        "dags": ("dags", "pipeline.graph", "pipeline.command"),
    }
    stages = {stage.module for stage in STAGES}
    out: list[str] = []
    for name, imported in graph.items():
        below = allowed[name.partition(".")[0]]
        for module in imported:
            fits = any(module == layer or module.startswith(f"{layer}.") for layer in below)
            if not fits or module in stages:
                out.append(f"{name} -> {module}")
    return sorted(out)


def lines(root: Path = ROOT) -> int:
    """Lines of product code, blank ones and docstrings included."""
    paths = [path for package in PRODUCT for path in (root / package).rglob("*.py")]
    return sum(len(path.read_text().splitlines()) for path in paths)
