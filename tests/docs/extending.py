"""The examples of `docs/extend.md`, applied to a copy of the code.

A section holds blocks of three kinds. `python` that begins with the comment of a path is that file;
`diff` that begins with one changes it: lines marked `+` are added, lines marked `-` go, and what
the others show must be there; any other `python` is a program.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.command import ROOT

PAGE = ROOT / "docs" / "extend.md"
COPIED = ("pipeline", "stages", "storage", "tests", "tools")


@dataclass(frozen=True)
class Extended:
    """A copy of the code with the blocks of one section applied."""

    root: Path
    programs: list[str] = field(default_factory=list[str])
    """Blocks that are to be run, in order."""

    def run(self, *arguments: str) -> str:
        """Output of Python in the copy.

        Raises:
            AssertionError: it failed; the message is what it printed.
        """
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def extended(section: str, root: Path) -> Extended:
    """The code in `root`, with the example under the heading `section`."""
    for name in COPIED:  # with numba's compiled kernels, which take longer than most examples
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    out = Extended(root)
    for language, text in blocks(section):
        path = re.match(r"# (\S+/\S+)\n", text)
        if path is None:
            out.programs.append(text)
        elif language == "diff":
            _patch(root / path[1], text[path.end() :])
        else:
            assert not (root / path[1]).exists(), f"{path[1]} exists: show the change as a diff"
            (root / path[1]).write_text(text[path.end() :])
    return out


def blocks(section: str) -> list[tuple[str, str]]:
    """Language and text of the code blocks under the heading `section`."""
    parts = re.split(r"^## (.+)\n", PAGE.read_text(), flags=re.MULTILINE)
    text = dict(zip(parts[1::2], parts[2::2], strict=True))[section]
    return re.findall(r"^```(python|diff)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def _patch(file: Path, diff: str) -> None:
    lines = [(line[:1], line[1:] + "\n") for line in diff.splitlines()]
    before = "".join(text for mark, text in lines if mark != "+")
    after = "".join(text for mark, text in lines if mark != "-")
    content = file.read_text()
    assert content.count(before) == 1, f"{file}: not there, or more than once:\n{before}"
    file.write_text(content.replace(before, after))
