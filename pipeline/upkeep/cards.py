"""Dataset and model cards: what a set is, where it came from, and what it is good for."""

import json
from collections.abc import Mapping, Sequence
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
    header: dict[str, Any] = {
        "license": licence,
        "tags": ["afterglow", "knowledge-distillation"],
        "configs": [
            {"config_name": folder, "data_files": _data_files(folder, manifest)}
            for folder, manifest in sets.items()
        ],
    }
    folder = next(iter(sets))
    return _page(
        header,
        [
            f"# {name}",
            "Sets of offline on-policy distillation, one configuration each, written by Afterglow.",
            *(_about(folder, manifest) for folder, manifest in sets.items()),
            "## Reading",
            f'```python\nfrom datasets import load_dataset\n\nload_dataset("{name}", "{folder}")\n'
            "```",
            "One row is one sequence. Columns are described in Afterglow's `storage/FORMAT.md`; "
            "`afterglow adopt` takes a folder into a store and checks every byte of it.",
        ],
    )


def model_card(name: str, licence: str, manifest: Manifest) -> str:
    """README of a model repository."""
    header = {
        "license": licence,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["afterglow", "knowledge-distillation"],
    }
    return _page(
        header,
        [
            f"# {name}",
            f"A model made by stage `{manifest.stage}` of Afterglow.",
            _about(manifest.name, manifest),
            "## Reading",
            "```python\nfrom transformers import AutoModelForCausalLM\n\n"
            f'AutoModelForCausalLM.from_pretrained("{name}")\n```',
        ],
    )


def _data_files(folder: str, manifest: Manifest) -> list[dict[str, object]]:
    """Paths by split; a glob would also take strays."""
    splits = dict.fromkeys(part.split for part in manifest.parts if part.sequences)
    return [
        {
            "split": split,
            "path": [
                f"{folder}/{part.file}"
                for part in manifest.parts
                if part.split == split and part.sequences
            ],
        }
        for split in splits
    ]


def _about(title: str, manifest: Manifest) -> str:
    rows = [
        ("stage", f"`{manifest.stage}`, version {manifest.version}"),
        ("key", f"`{manifest.key}`"),
        ("digest of the manifest", f"`{manifest.digest}`"),
        *_size(manifest),
        ("teacher", _model(manifest.teacher)),
        ("tokenizer", _tokenizer(manifest.tokenizer)),
        *_guarantees(manifest),
    ]
    table = "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])
    recipe = json.dumps(manifest.payload, indent=1, sort_keys=True)
    return f"## {title}\n\n{table}\n\n### Recipe\n\n```json\n{recipe}\n```"


def _size(manifest: Manifest) -> list[tuple[str, str]]:
    totals = manifest.totals
    if not manifest.parts:
        return [("bytes", f"{totals.bytes:,}")]
    return [
        ("sequences", f"{totals.sequences:,}"),
        ("response tokens", f"{totals.tokens:,}"),
        ("entries of records", f"{totals.entries:,}"),
        ("bytes", f"{totals.bytes:,} in {totals.parts} parts"),
    ]


def _model(identity: Mapping[str, Any] | None) -> str:
    if identity is None:
        return "none, or unknown"
    dtype = f", run in {identity['dtype']}" if identity.get("dtype") else ""
    return f"weights with sha256 `{identity.get('weights', 'unknown')}`{dtype}"


def _tokenizer(identity: Mapping[str, Any] | None) -> str:
    return "unknown" if identity is None else f"sha256 `{identity.get('tokenizer', 'unknown')}`"


def _guarantees(manifest: Manifest) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    record: Mapping[str, Any] | None = manifest.meta.get("record")
    if record is not None:
        temperature = record.get("temperature", 1.0)
        kind = KINDS.get(str(record.get("kind")))
        said = kind.summary if kind else "unknown kind"
        out.append((f"`{record.get('kind')}` records", f"{said} Temperature {temperature}."))
    promise: Mapping[str, Any] | None = manifest.meta.get("guarantee")
    if promise is not None:
        out.append(("guarantee of the objective", f"{promise['level']}: {promise['reason']}"))
    support = manifest.meta.get("full_support")
    if support is not None:
        said = "full support" if support else "truncated: importance weights would be biased"
        out.append(("sampling of the responses", said))
    return out


def _page(header: Mapping[str, Any], blocks: Sequence[str]) -> str:
    """JSON is YAML too, so the header needs no writer of its own."""
    lines = [f"{name}: {json.dumps(value)}" for name, value in header.items()]
    return "\n".join(["---", *lines, "---", ""]) + "\n" + "\n\n".join(blocks) + "\n"
