"""What the files of a model say about running it, read without loading weights or torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.models.tokenizer import load_tokenizer
from storage.errors import DataError


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
        DataError: transformers does not know its configuration, or it has no tokenizer.
    """
    from transformers import AutoConfig

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
    generation = directory / "generation_config.json"
    ends = [tokenizer.eos_token_id, config.eos_token_id]
    if generation.exists():
        ends.append(json.loads(generation.read_text()).get("eos_token_id"))
    flat = [end for found in ends for end in (found if isinstance(found, list) else [found])]
    stop_ids = tuple(sorted({end for end in flat if end is not None and 0 <= end < vocab_size}))
    return ModelFacts(vocab_size, rows, context_limit(config), stop_ids)


def context_limit(config: Any) -> int | None:
    """Most tokens a model of this text configuration takes; None where it sets no limit."""
    limit = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if limit and rope.get("factor") and rope.get("original_max_position_embeddings"):
        limit = max(limit, int(rope["factor"] * rope["original_max_position_embeddings"]))
    return limit
