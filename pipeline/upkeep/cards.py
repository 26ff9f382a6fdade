"""Dataset and model cards: what a set is, where it came from, and what it is good for."""

import json
from collections.abc import Mapping
from typing import Any

from storage.kinds import KINDS
from storage.manifest import Manifest


def dataset_card(name: str, licence: str, sets: Mapping[str, Manifest]) -> str:
    """README of a dataset repository; `datasets.load_dataset` reads its header.

    Args:
        name: Of the repository.
        licence: Identifier as on the Hub: `apache-2.0`, `cc-by-4.0`, `unknown`, ...
        sets: By name of the folder, which is also that of the configuration.
    """
    configs: list[dict[str, Any]] = []
    for folder, manifest in sets.items():
        paths: dict[str, list[str]] = {}  # by split; a glob would also match stray files
        for part in manifest.parts:
            if part.sequences:
                paths.setdefault(part.split, []).append(f"{folder}/{part.file}")
        files = [{"split": split, "path": found} for split, found in paths.items()]
        configs.append({"config_name": folder, "data_files": files})
    return _page(
        {"license": licence, "configs": configs},
        f"# {name}",
        "Sets of offline on-policy distillation, one configuration each, written by Afterglow.",
        *(_about(folder, manifest) for folder, manifest in sets.items()),
        "## Reading",
        "```python\nfrom datasets import load_dataset\n\n"
        f'load_dataset("{name}", "{next(iter(sets))}")\n```',
        "One row is one sequence. Columns are described in Afterglow's `storage/FORMAT.md`; "
        "`afterglow adopt` copies a folder into a store and checks every byte of it.",
    )


def model_card(name: str, licence: str, manifest: Manifest) -> str:
    """README of a model repository."""
    return _page(
        {"license": licence, "library_name": "transformers", "pipeline_tag": "text-generation"},
        f"# {name}",
        f"A model made by stage `{manifest.stage}` of Afterglow.",
        _about(manifest.name, manifest),
        "## Reading",
        "```python\nfrom transformers import AutoModelForCausalLM\n\n"
        f'AutoModelForCausalLM.from_pretrained("{name}")\n```',
    )


def _about(title: str, manifest: Manifest) -> str:
    """A table of facts about a set, and the recipe that its key is the hash of."""
    totals, teacher, meta = manifest.totals, manifest.teacher, manifest.meta
    rows = {
        "stage": f"`{manifest.stage}`, version {manifest.version}",
        "key": f"`{manifest.key}`",
        "digest of the manifest": f"`{manifest.digest}`",
    }
    if manifest.parts:
        rows["sequences"] = f"{totals.sequences:,}"
        rows["response tokens"] = f"{totals.tokens:,}"
        rows["entries of records"] = f"{totals.entries:,}"
    in_parts = f" in {totals.parts} parts" if manifest.parts else ""
    rows["bytes"] = f"{totals.bytes:,}{in_parts}"
    rows["teacher"], rows["tokenizer"] = "none, or unknown", "unknown"
    if teacher is not None:
        dtype = f", run in {teacher['dtype']}" if teacher.get("dtype") else ""
        rows["teacher"] = f"weights with sha256 `{teacher.get('weights', 'unknown')}`{dtype}"
    if manifest.tokenizer is not None:
        rows["tokenizer"] = f"sha256 `{manifest.tokenizer.get('tokenizer', 'unknown')}`"
    if (record := meta.get("record")) is not None:
        kind = KINDS.get(str(record.get("kind")))
        promise = kind.summary if kind else "unknown kind"
        temperature = record.get("temperature", 1.0)
        rows[f"`{record.get('kind')}` records"] = f"{promise} Temperature {temperature}."
    if (guarantee := meta.get("guarantee")) is not None:
        rows["guarantee of the objective"] = f"{guarantee['level']}: {guarantee['reason']}"
    if outcomes := meta.get("outcomes"):
        rows["outcomes of responses"] = ", ".join(f"{n:,} {name}" for name, n in outcomes.items())
    if skipped := meta.get("skipped"):
        rows["sequences that could not be used, left out"] = f"{skipped:,}"
    if (full := meta.get("full_support")) is not None:
        truncated = "truncated: importance weights would be biased"
        rows["sampling of the responses"] = "full support" if full else truncated
    table = "\n".join(["| | |", "|---|---|", *(f"| {key} | {rows[key]} |" for key in rows)])
    recipe = json.dumps(manifest.payload, indent=1, sort_keys=True)
    return f"## {title}\n\n{table}\n\n### Recipe\n\n```json\n{recipe}\n```"


def _page(header: Mapping[str, Any], *blocks: str) -> str:
    """A card: the header (JSON is YAML too) and paragraphs."""
    header = {**header, "tags": ["afterglow", "knowledge-distillation"]}
    lines = [f"{name}: {json.dumps(value)}" for name, value in header.items()]
    return "\n".join(["---", *lines, "---", ""]) + "\n" + "\n\n".join(blocks) + "\n"
