"""The token inspector of a large set: time and size of the page, and how it feels in a browser.

    python -m benchmarks.inspector demo        records of the demo
    python -m benchmarks.inspector smollm2     records of a real language model

The records of the recipe are repeated under further numbers until there are 100,000 sequences, and
`afterglow inspect` writes the page of that; then that of the records as they are, with the student
before and after training. Chromium opens each page, sorts its list by another quantity, scrolls
through it and goes from sequence to sequence; what is waited for is the paint. Playwright drives
the browser; `make test-browser` installs it.

Sets that are not in the store are made: `demo` takes ten minutes, `smollm2` half an hour. Figures
stand in docs/inspector.jsonl, the table between the markers of docs/report.md.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from benchmarks.__main__ import environment, memory, processor
from benchmarks.browser import MISSING, Timed, executable
from benchmarks.harness import ROOT, Table, markdown
from benchmarks.teachers import make
from pipeline.planning.config import load_recipe
from pipeline.planning.document import replace_block, surroundings
from stages.models.descent import TOKENIZER
from storage.manifest import RANKS, SetIdentity, read_manifest, write_manifest
from storage.rows import Rows
from storage.sets import commit_parts
from storage.shard import PartWriter, read_meta, read_rows

log = logging.getLogger("benchmarks")

PAGE, ROWS = ROOT / "docs" / "report.md", ROOT / "docs" / "inspector.jsonl"

_TRIES = 9


@dataclass(frozen=True)
class Figures:
    """Of one page."""

    recipe: str
    what: str
    sequences: int
    """Lines of its list."""
    tokens: int
    """Of the set."""
    seconds: float
    """CPU seconds of the command on one core."""
    memory: float
    """Most bytes that the command held."""
    size: int
    """Bytes of the page."""
    first_paint: float
    ready: float
    """Seconds after opening the file."""
    sort: float
    scroll: float
    step: float
    """Milliseconds until the change is painted, the median of some tries."""
    heap: float
    """Bytes that the page holds."""
    machine: str
    """And the date."""

    def cells(self) -> list[str]:
        """A row of the table."""
        return [
            f"{self.recipe}, {self.what}",
            f"{self.sequences:,}",
            f"{self.tokens:,}",
            f"{self.seconds:.0f} s, {self.memory / 1e9:.1f} GB",
            f"{self.size / 1e6:.1f} MB",
            f"{self.first_paint:.2f} s",
            f"{self.ready:.2f} s",
            f"{self.sort:.0f} ms",
            f"{self.scroll:.0f} ms",
            f"{self.step:.0f} ms",
            f"{self.heap / 1e6:.0f} MB",
        ]


HEADER = (
    "records", "sequences", "tokens", "to write", "page", "first paint", "ready", "sort",
    "scroll", "next sequence", "heap",
)  # fmt: skip


def main() -> None:
    """Measure a recipe, and write the page anew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--sequences", type=int, default=100_000)
    parser.add_argument("--store", type=Path, default=Path("store"))
    parsed = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    surroundings(PAGE)  # an error now, not after the work
    found = list(measure(parsed.recipe, parsed.sequences, parsed.store))
    kept = [one for one in done() if one.recipe != parsed.recipe]
    lines = [json.dumps(asdict(one)) + "\n" for one in (*kept, *found)]
    ROWS.write_text("".join(lines))
    replace_block(PAGE, page(done()))


def done() -> list[Figures]:
    """What has been measured."""
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    return [Figures(**json.loads(line)) for line in lines]


def measure(recipe: str, sequences: int, store: Path) -> Iterator[Figures]:
    """The records of a recipe, repeated; then as they are, with a student before and after."""
    student = f"train.{load_recipe(recipe).train.objective.name}"
    sets = make(store, ["sft", "teacher-logits", student], "--recipe", recipe)
    with tempfile.TemporaryDirectory(dir=store) as scratch:
        large = Path(scratch) / sets["teacher-logits"].name
        repeat(sets["teacher-logits"], large, sequences)
        yield of_page(recipe, "repeated", large, [], Path(scratch) / "page.html")
        models = ["--model", str(sets["sft"].resolve()), "--model", str(sets[student].resolve())]
        what = "student before and after"
        yield of_page(recipe, what, sets["teacher-logits"], models, Path(scratch) / "page.html")


def repeat(source: Path, directory: Path, sequences: int) -> None:
    """A set of at least so many sequences: those of `source` under further numbers."""
    manifest = read_manifest(source)
    directory.mkdir()
    for name in (TOKENIZER, RANKS):
        if (source / name).exists():
            (directory / name).symlink_to((source / name).resolve())
    count, turns = 0, -(-sequences // manifest.totals.sequences)
    for turn in range(turns):
        for part in manifest.parts:
            meta = read_meta(source / part.file)
            with PartWriter(directory, count, meta, part.split) as writer:
                for rows in read_rows(source / part.file):
                    moved = rows["seq_id"] + turn * 10**7
                    writer.write(Rows({**rows.columns, "seq_id": moved}, rows.offsets))
            count += 1
    fields = ("stage", "version", "key", "name", "kind", "payload", "teacher", "tokenizer", "meta")
    identity = SetIdentity(*(getattr(manifest, name) for name in fields))
    write_manifest(directory, commit_parts(directory, identity, count))


def of_page(recipe: str, what: str, directory: Path, options: Sequence[str], into: Path) -> Figures:
    """Write the page of a set, and use it."""
    command = [sys.executable, "-m", "pipeline", "inspect", str(directory.resolve()), *options]
    command += ["--into", str(into.resolve()), "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment())
    assert child.stdout is not None, "a pipe"
    said = child.stdout.read().decode()
    _, status, used = os.wait4(child.pid, 0)  # what this one has used, and no other
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    told = json.loads(said.splitlines()[-1])
    sync_playwright = import_module(
        "playwright.sync_api"
    ).sync_playwright  # not in every environment
    program = executable()
    if program is None:
        sys.exit(MISSING)
    with sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--enable-precise-memory-info"]
        )
        shown = Timed(browser, into)
        shown.choose("show", "all")
        keys = [key for key in told["quantities"] if key != told["quantities"][0]]
        found = Figures(
            recipe,
            what,
            told["read"],
            read_manifest(directory).totals.tokens,
            used.ru_utime + used.ru_stime,
            1024.0 * used.ru_maxrss,
            into.stat().st_size,
            shown.first_paint,
            shown.ready,
            _median(lambda i: shown.choose("colour", keys[i % len(keys)])),
            _median(lambda i: shown.scroll((i + 1) / (_TRIES + 2))),
            _median(lambda _: shown.press("ArrowDown")),
            shown.heap,
            f"{processor()}, {os.cpu_count()} cores, {memory()}, "
            f"{time.strftime('%Y-%m-%d', time.gmtime())}; "
            f"load {os.getloadavg()[0]:.0f}",
        )
        browser.close()
    log.info("%s", " | ".join(found.cells()))
    return found


def _median(action: Callable[[int], float]) -> float:
    return statistics.median(action(i) for i in range(_TRIES))


def page(found: Sequence[Figures]) -> str:
    """The table, and how it was made."""
    recipes = list(dict.fromkeys(one.recipe for one in found))
    commands = " and ".join(f"`python -m benchmarks.inspector {recipe}`" for recipe in recipes)
    rows = [one.cells() for one in found]
    return f"{commands}, on {found[-1].machine}.\n\n{markdown(Table('', HEADER, rows))}"


if __name__ == "__main__":
    main()
