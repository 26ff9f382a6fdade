"""Write the tables of `docs/models.md` from `docs/models.json`.

    python tools/models_page.py [--check]

`make test-models` writes the figures and calls this; `--check` exits with 1 if the page is another.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pipeline.planning.document import BEGIN, END, replace_block

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, FIGURES = DOCS / "models.md", DOCS / "models.json"

_HEAD = (
    "| models | class of the checkpoint | what needs care | vLLM on a CPU | rollouts by "
    "| engine and trainer | two scorers | greedy, saved student |\n" + "|---" * 8 + "|"
)


def text(figures: dict[str, Any]) -> str:
    """The generated part of the page."""
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    families = figures["families"].values()
    rows = [_row(found) for found in families]
    lacking = [
        f"- **{found['models']}**: {found['vllm']}." for found in families if not _by_vllm(found)
    ]
    saved = [
        f"- **{found['models']}**: `{found['architecture']}` is saved as `{found['saved_as']}`."
        for found in families
        if found["saved_as"] != found["architecture"]
    ]
    parts = [f"{versions}; float32, one CPU.", "\n".join([_HEAD, *rows])]
    if lacking:
        parts.append("What vLLM cannot run in this environment:\n\n" + "\n".join(lacking))
    if saved:
        parts.append("Saved as another class:\n\n" + "\n".join(saved))
    return "\n\n".join(parts)


def _by_vllm(found: dict[str, Any]) -> bool:
    return found["vllm"] in ("yes", "through transformers")


def _row(found: dict[str, Any]) -> str:
    cells = (
        found["models"],
        f"`{found['architecture']}`",
        found["special"],
        found["vllm"] if _by_vllm(found) else "no, see below",
        found["rollouts"],
        found["agreement"],
        found["scoring"] or "transformers alone",
        f"{found['greedy']} equal" if found["greedy"] else "transformers alone",
    )
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str]) -> int:
    """Write or check the page; returns the exit code."""
    made = text(json.loads(FIGURES.read_text()))
    if arguments == ["--check"]:
        return 0 if f"{BEGIN}\n{made}\n{END}" in PAGE.read_text() else 1
    replace_block(PAGE, made)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
