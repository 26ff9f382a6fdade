"""Tiny recipes of a user's own models and prompts, checked through the command in this process."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from tests.world import write_model

RECIPE = """
[teacher]
path = "{root}/teacher"
dtype = "float32"

[student]
path = "{root}/student"
dtype = "float32"

[rollouts]
prompts = {{ path = "{root}/prompts.jsonl" }}
sampling = {{ max_tokens = 6 }}
verifier = {{ kind = "exact_match" }}

[train]
steps = 1
"""
SFT = """
[sft-data]
prompts = {{ path = "{root}/prompts.jsonl" }}
sampling = {{ max_tokens = 6 }}

[sft]
steps = 1
"""


def write_prompts(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass(frozen=True)
class Case:
    """A recipe in a directory of its own, with models and prompts that fit."""

    root: Path
    capture: pytest.CaptureFixture[str]

    @classmethod
    def at(cls, root: Path, capture: pytest.CaptureFixture[str], more: str = "") -> "Case":
        """Make it in `root`; `more` are further tables."""
        write_model(root / "teacher", 1)
        write_model(root / "student", 2)
        rows = [{"prompt": letters, "answer": "a"} for letters in ("ab", "bc", "cd", "de")]
        write_prompts(root / "prompts.jsonl", rows)
        (root / "recipe.toml").write_text((RECIPE + more).format(root=root))
        capture.readouterr()
        return cls(root, capture)

    def call(self, verb: str, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and log of a verb on the recipe."""
        recipe = ("--config", f"{self.root}/recipe.toml", "--set", f"store={self.root}/store")
        code = main([verb, *arguments, *recipe])
        out, err = self.capture.readouterr()
        return code, out, err

    def findings(self, *overrides: str) -> list[dict[str, str]]:
        """What `afterglow check` says."""
        arguments = [word for one in overrides for word in ("--set", one)]
        _, out, err = self.call("check", *arguments)
        assert "Traceback" not in err
        return json.loads(out.splitlines()[-1])["findings"]

    def find(self, words: str, *overrides: str) -> list[str]:
        """Levels of the findings whose line has these words."""
        found = self.findings(*overrides)
        return [one["level"] for one in found if words in f"{one['subject']}: {one['message']}"]
