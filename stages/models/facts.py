"""What the files of a model say about running it, read without loading weights or torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from stages.models.tokenizer import load_tokenizer
from storage.errors import DataError
from storage.files.place import Place


@dataclass(frozen=True)
class ModelFacts:
    """What an engine must know of a model to generate with it."""

    vocab_size: int
    """Ids that mean something: one above the tokenizer's highest, at most the number of logits."""
    rows: int
    """Number of logits. Models pad their vocabulary; ids from `vocab_size` on are never drawn, as
    scoring leaves them out too (`stages.models.model.real_vocab_size`)."""
    context: int | None
    """Longest sequence; None where the model sets no limit."""
    stop_ids: tuple[int, ...]
    """Ids that end a response: of the tokenizer, the generation config and the config."""


def model_facts(directory: Path) -> ModelFacts:
    """The facts of the model in `directory`.

    Raises:
        DataError: transformers does not know its configuration, a file is not JSON, or it has no
            tokenizer.
    """
    from transformers import AutoConfig  # imports torch

    tokenizer = load_tokenizer(directory)
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{directory}: config.json cannot be read ({error}). Give a directory written by "
            "`save_pretrained` of an architecture that transformers knows."
        ) from error
    rows = int(config.vocab_size)
    vocab_size = min(rows, max(tokenizer.get_vocab().values()) + 1)
    ends = {*_ids(tokenizer.eos_token_id), *_ids(config.eos_token_id), *_generation_ends(directory)}
    stop_ids = tuple(sorted(end for end in ends if 0 <= end < vocab_size))
    return ModelFacts(vocab_size, rows, context_limit(config), stop_ids)


@dataclass(frozen=True)
class ModelOutline:
    """What `config.json` and `generation_config.json` say literally, without transformers.

    What they leave to the defaults of an architecture is not known here.
    """

    rows: int | None
    """Number of logits."""
    context: int | None
    """Longest sequence; None where the model sets no limit, or leaves it to a default."""
    ends: tuple[int, ...]
    """Ids that end a response, beside the tokenizer's own."""


def model_outline(directory: Path) -> ModelOutline:
    """The outline of the model in `directory`.

    Raises:
        DataError: there is no `config.json`, or one of the files is not JSON.
    """
    config = read_json(directory / "config.json")
    nested = config.get("text_config")
    text = config | (cast("dict[str, Any]", nested) if isinstance(nested, dict) else {})
    # Versions of transformers have called the same table by either name.
    text["rope_parameters"] = text.get("rope_parameters") or text.get("rope_scaling")
    rows = text.get("vocab_size")
    ends = {*_ids(text.get("eos_token_id")), *_generation_ends(directory)}
    return ModelOutline(
        rows=rows if isinstance(rows, int) else None,
        context=context_limit(SimpleNamespace(**text)),
        ends=tuple(sorted(ends)),
    )


def _generation_ends(directory: Path) -> set[int]:
    file = directory / "generation_config.json"
    return _ids(read_json(file).get("eos_token_id")) if file.exists() else set()


def read_json(file: Place) -> dict[str, Any]:
    """The object in a JSON file of a model.

    Raises:
        DataError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: cannot be read ({error}). Give a directory written by `save_pretrained`."
        ) from error


def _ids(found: Any) -> set[int]:
    """One id, a list of ids or none, as configurations have them."""
    several = found if isinstance(found, list) else [found]
    return {end for end in several if isinstance(end, int)}


def context_limit(config: Any) -> int | None:
    """Most tokens a model of this text configuration takes; None where it sets no limit."""
    limit = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if limit and rope.get("factor") and rope.get("original_max_position_embeddings"):
        limit = max(limit, int(rope["factor"] * rope["original_max_position_embeddings"]))
    return limit
