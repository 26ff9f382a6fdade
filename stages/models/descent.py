"""Which tokenizer and which models a set descends from, by its manifest. Imports no torch."""

from pathlib import Path
from typing import cast

from stages.models.identity import recorded_tokenizer, tokenizer_of
from stages.models.tokenizer_identity import TokenizerIdentity
from storage.copies import local_copy
from storage.errors import DataError
from storage.files.place import Place
from storage.manifest import FILE_NAME, Manifest, read_manifest

TOKENIZER = "tokenizer"
"""Sub-directory of a data set that holds the tokenizer its ids were made with."""


def data_tokenizer(directory: Place, manifest: Manifest) -> TokenizerIdentity:
    """The tokenizer whose ids a data set holds: of its own copy, else as the manifest describes it.

    Raises:
        DataError: the set does not name one.
    """
    if (directory / TOKENIZER).is_dir():
        return tokenizer_of(directory / TOKENIZER)
    for source in (manifest.tokenizer, manifest.teacher):
        if source is not None and source.get("tokenizer"):
            return recorded_tokenizer(source)
    raise DataError(
        f"{directory}: the manifest names no tokenizer, so its token ids may be those of any "
        "model. Make the set again with this version."
    )


def tokenizer_directory(directory: Place, fallback: Path | None) -> Path:
    """Where to copy a student's tokenizer from: the data set's own copy, else `fallback`.

    Raises:
        DataError: neither has one.
    """
    if (directory / TOKENIZER).is_dir():
        return local_copy(directory, TOKENIZER)
    if fallback is None:
        raise DataError(
            f"{directory}: keeps no tokenizer, which a model from scratch needs. Start from a "
            "model that has one, or train on a corpus made by this version."
        )
    return fallback


def check_prompts_shared(directory: Place, manifest: Manifest) -> None:
    """Raise if the teacher read other prompts than those stored, so that it cannot be run again.

    Raises:
        DataError: the records were made with a `teacher_prompt`.
    """
    if manifest.meta.get("teacher_prompt"):
        raise DataError(
            f"{directory}: the teacher read prompts of its own here (teacher_prompt), which the "
            "set does not hold, so it cannot be run again on what is stored. Use records made "
            "without teacher_prompt."
        )


def manifest_of_model(directory: Place) -> Manifest | None:
    """Manifest of a model set, or None for a model from elsewhere."""
    return read_manifest(directory) if (directory / FILE_NAME).exists() else None


def generator_weights(manifest: Manifest) -> str | None:
    """Digest of the weights that wrote the sequences of a set; None where unknown."""
    generator = manifest.meta.get("generator")
    if not isinstance(generator, dict):
        return None
    weights = cast(dict[str, object], generator).get("weights")
    return None if weights is None else str(weights)
