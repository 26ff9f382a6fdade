"""Measure the structure of the code, as CONTRIBUTING.md promises it: `python -m tools.house`.

    import circles      among modules, and among folders
    upward imports      from a layer to one above it, and of a stage by anything in `stages`
    calls to the loss   functions of ours on the stack when `afterglow run train` asks for a loss
    touch points        files and lines that each example of docs/extend.md adds to or changes
    lines               of product code: pipeline, stages, storage

An import inside a function counts like one at the top: it is a dependency all the same.
"""

import ast
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("pipeline", "stages", "storage")
EXTEND = ROOT / "docs" / "extend.md"

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


def calls_to_loss(arguments: list[str]) -> list[str]:
    """Our functions on the stack when an objective is asked for its first loss, outermost first.

    Args:
        arguments: Of `afterglow`: a command that trains in this process.
    """
    from pipeline.cli import main

    found: list[str] = []

    def look(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        asked = code.co_name == "__call__" and "/stages/objectives/" in code.co_filename
        if event != "call" or not asked or found:
            return
        above: FrameType | None = frame
        while above is not None:
            path = Path(above.f_code.co_filename)
            if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PRODUCT:
                found.append(f"{path.relative_to(ROOT)}:{above.f_code.co_qualname}")
            above = above.f_back

    sys.setprofile(look)
    try:
        code = main(arguments)
    finally:
        sys.setprofile(None)
    if code:
        raise SystemExit(code)
    return found[::-1]


def train_once() -> list[str]:
    """`calls_to_loss` of a small model on the demo's corpus, for one step."""
    with tempfile.TemporaryDirectory() as store:
        recipe = ["--recipe", "demo", "--set", f"store={store}", "--set", "corpus.count=64"]
        recipe += ["--set", "pretrain.teacher.steps=1"]
        before = [sys.executable, "-m", "pipeline", "run", "corpus", *recipe]
        subprocess.run(before, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return calls_to_loss(["run", "pretrain.teacher", "--here", *recipe])


def touch_points(page: str) -> dict[str, dict[str, int]]:
    """Product files that the examples of docs/extend.md add or change, by section.

    Returns:
        For each section that has an example: by path, 0 for a new file, else the lines added to it.
    """
    out: dict[str, dict[str, int]] = {}
    sections = re.split(r"^## (.+)\n", page, flags=re.MULTILINE)
    for name, text in zip(sections[1::2], sections[2::2], strict=True):
        files: dict[str, int] = {}
        for kind, block in re.findall(r"^```(python|diff)\n(.*?)^```$", text, re.DOTALL | re.M):
            path = re.match(r"# (\S+/\S+)\n", block)
            if path and path[1].partition("/")[0] in PRODUCT:
                added = len(re.findall(r"^\+", block, re.M)) if kind == "diff" else 0
                files[path[1]] = files.get(path[1], 0) + added
        if files:
            out[name] = files
    return out


def report() -> str:
    """Every figure, as text."""
    graph = import_graph()
    calls = train_once()
    lines_ = [
        f"modules in an import circle: {', '.join(circle(graph)) or 'none'}",
        f"folders in an import circle: {', '.join(circle(folders(graph))) or 'none'}",
        f"upward imports: {', '.join(upward(graph)) or 'none'}",
        f"lines of product code: {lines()}",
        f"function calls from the command line to the loss: {len(calls) - 1}",
        *(f"    {call}" for call in calls),
        "product files that an extension touches:",
    ]
    for section, files in touch_points(EXTEND.read_text()).items():
        shown = [
            f"{path} (+{added})" if added else f"{path} (new)" for path, added in files.items()
        ]
        lines_.append(f"    {section}: {len(files)}, {', '.join(shown)}")
    return "\n".join(lines_)


if __name__ == "__main__":
    sys.stdout.write(report() + "\n")
