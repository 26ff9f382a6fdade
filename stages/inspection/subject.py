"""What is shown of a set that holds no tokens: those it was made from, and what it says of them.

    a model        the data it was trained on, with the model before and after
    an evaluation  the held-out records it read, with the values it kept of its model

Imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stages.evaluation.positions import POSITIONS, HeldOutValues, read_positions
from stages.models.descent import manifest_of_model
from storage.copies import local_copy
from storage.errors import DataError
from storage.files.place import Place
from storage.manifest import Manifest, read_manifest
from storage.store import Store

_READ = ("data", "records", "sequences", "corpus")
"""Roles of the tokens that a set was made from."""
_BEFORE = ("init", "base")
"""Roles of the model that a training started from."""


@dataclass(frozen=True)
class Subject:
    """Tokens, and who says something of them."""

    directory: Place
    """Of sequences or records."""
    manifest: Manifest
    models: Mapping[str, Path]
    """To be run, by the name that is shown, in the order before, after training."""
    values: Mapping[str, HeldOutValues] = field(default_factory=dict[str, HeldOutValues])
    """Of models that need not be run: only sequences that all of them know are shown."""
    split: str | None = None
    """The only one that is shown."""


def subject(directory: Place, models: Mapping[str, Path]) -> Subject:
    """What to show of the set in `directory`.

    Args:
        directory: Of any set but a report.
        models: To be run over its tokens, by name; without any, a model is shown before and after
            its training.

    Raises:
        DataError: a report, a set whose tokens are not in the store, or one made from none.
    """
    manifest = read_manifest(directory)
    if manifest.kind in ("sequences", "records"):
        return Subject(directory, manifest, models)
    if (directory / "report.html").exists():
        raise DataError(
            f"{directory}: a report is a page already. Open {directory / 'report.html'}, or give "
            "one of the evaluations it was made of."
        )
    tokens = _input(directory, manifest, _READ)
    if tokens is None:
        raise DataError(
            f"{directory}: holds {manifest.kind}, and the tokens that it was made from are not in "
            "its store. Give a set of sequences or records, and this one with --model if it is a "
            "model."
        )
    if manifest.kind == "model":
        before = _input(directory, manifest, _BEFORE)
        trained = [local_copy(one) for one in (before, directory) if one is not None]
        return Subject(tokens, read_manifest(tokens), models or named(trained))
    values: dict[str, HeldOutValues] = {}
    if (directory / POSITIONS).exists():
        name = manifest.name.partition(".")[2] or manifest.name
        values[name] = read_positions(directory / POSITIONS)
    elif not models and (evaluated := _input(directory, manifest, ("model",))) is not None:
        models = named([local_copy(evaluated)])
    return Subject(tokens, read_manifest(tokens), models, values, "holdout")


def named(directories: Sequence[Path]) -> dict[str, Path]:
    """Models by the name that is shown: of the node that made them, else of their directory."""
    out: dict[str, Path] = {}
    for directory in directories:
        made_here = manifest_of_model(directory)
        name = made_here.name if made_here else directory.resolve().name
        out[name if name not in out else f"{name} ({len(out) + 1})"] = directory
    return out


def _input(directory: Place, manifest: Manifest, roles: Sequence[str]) -> Place | None:
    """The set that `manifest` has in one of these roles, where it is in the same store."""
    inputs = manifest.payload.get("inputs")
    for role in roles:
        source = inputs.get(role) if isinstance(inputs, Mapping) else None
        key = source.get("key") if isinstance(source, Mapping) else None
        found = next(Store(directory.parent).named(str(key)), None) if key else None
        if found is not None:
            return found
    return None
