"""The token inspector of a set, as a page of its own or as a part of a report.

The part of a report shows held-out sequences, with what every evaluated model says of them. Those
values are in the evaluations (`stages.evaluation.positions`), so nothing is run. `afterglow
inspect` shows any set, and runs the models it is given; torch is imported only then.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.evaluation.positions import LIKELIEST, HeldOutValues, PositionValues
from stages.inspection.gather import Gathered, Models, gather_set
from stages.inspection.pack import pack
from stages.inspection.pieces import token_bytes
from stages.inspection.subject import subject
from stages.models.descent import TOKENIZER, data_tokenizer
from stages.models.tokenizer import read_tokenizer
from stages.progress import Progress
from stages.reporting.html import document, listed, text
from stages.reporting.page import Section
from storage.batch import Batch
from storage.codec import round_mantissa
from storage.copies import local_copy
from storage.errors import DataError
from storage.files.place import Place
from storage.manifest import Manifest, read_manifest
from storage.rows import offsets_of
from storage.schema import FINISH, OUTCOME
from storage.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

ASSETS = ("inspector.css", "decode.js", "pieces.js", "list.js", "details.js", "inspector.js")
TITLE = "Tokens"
HEAD_SHOWN, TAIL_SHOWN = 16, 12
"""Entries of a record that are in the page: the likeliest of the head, the first of the tail."""
MODEL_LIMIT = 2048
"""Sequences that a model is run over unless more are asked for."""


@dataclass(frozen=True)
class Settings:
    """What of a set is shown."""

    limit: int | None = None
    """Read about this many sequences, at random; None reads all, or `MODEL_LIMIT` for a model."""
    only: Sequence[int] | None = None
    """Numbers of the sequences to read; None reads all."""
    tokens: int = 100_000
    """Response tokens that are in the page."""
    dtype: str = "float32"
    """Numeric type that models run in."""
    device: str = "auto"
    tokens_per_batch: int = 8192


def inspect_set(
    directory: Place, models: Mapping[str, Path], settings: Settings
) -> tuple[str, dict[str, object]]:
    """The page of a set, and what it holds.

    Args:
        directory: Of the set; of one without tokens, those that it was made from are shown
            (`stages.inspection.subject`).
        models: Directories by the name that is shown, in the order before, after training.
        settings: How much of it.

    Raises:
        DataError: not a readable set, none with tokens, or a model that cannot be loaded or has
            another tokenizer.
    """
    shown = subject(directory, models)
    tokens, manifest = shown.directory, shown.manifest
    known: dict[str, Any] = {name: _lookup(found) for name, found in shown.values.items()}
    if shown.models:
        from stages.inspection.student import Student  # torch

        expected = data_tokenizer(tokens, manifest)
        for name, path in shown.models.items():
            known[name] = Student(
                path,
                manifest.meta,
                expected,
                str(tokens),
                dtype=settings.dtype,
                device=settings.device,
                tokens_per_batch=settings.tokens_per_batch,
            )
    limit = settings.limit
    if limit is None and shown.models and settings.only is None:
        limit = MODEL_LIMIT
    with Progress(f"inspect {directory.name}", manifest.totals.tokens, "tokens"):
        found = gather_set(
            tokens,
            manifest,
            models=known,
            limit=limit,
            tokens=settings.tokens,
            split=shown.split,
            only=_common(shown.values, settings.only),
        )
    if found.kept is None:
        raise DataError(f"{directory}: no sequence to show")
    tokenizer = _tokenizer(tokens, manifest, list(shown.models.values()))
    made = inspector_section(tokens.name, manifest, found, list(known), tokenizer)
    figures: dict[str, object] = {
        "sequences": found.total,
        "read": len(found.table.get("seq_id", ())),
        "shown": len(found.kept.batch),
        "quantities": [one.key for one in found.quantities],
    }
    asked = read_manifest(directory)
    title = f"{asked.name} ({asked.key[:12]})"
    return document(title, made.parts, made.assets), figures


def held_out_section(
    directory: Place, values: Mapping[str, HeldOutValues], tokens: int = 30_000
) -> Section:
    """The part of a report: held-out records, with what evaluated models say of them.

    Args:
        directory: A committed set of records.
        values: Of the models, by name, in the order of the table.
        tokens: Response tokens that are in the page.

    Raises:
        DataError: a part is missing or damaged.
    """
    manifest = read_manifest(directory)
    models: Models = {name: _lookup(found) for name, found in values.items()}
    found = gather_set(
        directory,
        manifest,
        models=models,
        limit=None,
        tokens=tokens,
        split="holdout",
        only=_common(values, None),
    )
    tokenizer = _tokenizer(directory, manifest, [])
    return inspector_section(directory.name, manifest, found, list(values), tokenizer)


def _common(
    values: Mapping[str, HeldOutValues], only: Sequence[int] | None
) -> Collection[int] | None:
    """Numbers of the sequences of which all values are known, among `only`; None: any."""
    known = [set(one.seq_id_N.tolist()) for one in values.values()]
    if only is not None:
        known.append(set(only))
    return set.intersection(*known) if known else None


def _lookup(found: HeldOutValues) -> Any:
    def values(batch: Batch) -> PositionValues:
        wanted = found.of(batch.seq_id)
        assert wanted is not None, "only known sequences are read"
        return wanted

    return values


def inspector_section(
    name: str,
    manifest: Manifest,
    found: Gathered,
    models: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase | None",
) -> Section:
    """The inspector of what was gathered; empty without sequences."""
    if found.kept is None or not found.quantities:
        return Section(TITLE, [])
    read, shown = len(found.table["seq_id"]), len(found.kept.batch)
    notes = [
        f"{name}: {found.total:,} sequences"
        + ("" if read == found.total else f", of which {read:,} were read, chosen at random")
        + (
            "."
            if shown == read
            else f"; the tokens of {shown:,} are in this page: those that are "
            "worst by each quantity, and a random sample. The list has a line for every sequence "
            "that was read."
        )
    ]
    copies = int((manifest.meta.get("record") or {}).get("copies", 1))
    if copies > 1:
        notes.append(f"Tails are those of the first of {copies} draws.")
    meta, columns = _content(found, models, tokenizer)
    data = f'<script type="text/plain" id="inspector-data">{pack(meta, columns)}</script>'
    frame = (
        '<div id="inspector"><noscript>The inspector needs a browser with scripts.</noscript></div>'
    )
    return Section(TITLE, [listed([text(note) for note in notes]), frame, data], ASSETS)


def _content(
    found: Gathered, models: Sequence[str], tokenizer: "PreTrainedTokenizerBase | None"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and columns of the page's data."""
    kept = found.kept
    assert kept is not None, "the caller has looked"
    batch = kept.batch
    line_of = np.full(len(found.table["seq_id"]), -1, np.int64)
    line_of[kept.number_N] = np.arange(len(batch))
    ids = [batch.prompt, batch.tok, batch.ids]
    ids += [kept.columns[f"top:{name}"].reshape(-1) for name in models]
    ids += [kept.columns["cand"].reshape(-1)] if "cand" in kept.columns else []
    used = np.unique(np.concatenate(ids)).astype(np.int64)
    pieces = [b""] * len(used) if tokenizer is None else token_bytes(tokenizer, used.tolist())
    special = set() if tokenizer is None else set(tokenizer.added_tokens_decoder)

    def word(values: Any) -> Any:
        return np.searchsorted(used, values)

    # float32, so that what is packed has three digits; ids of sequences may be large.
    columns: dict[str, Any] = {
        name: values.astype(np.float64) if name.endswith("_id") else values
        for name, values in found.table.items()
    }
    columns |= {
        "kept": line_of + 1,
        "vocabulary": used,
        "piece_off": offsets_of([len(piece) for piece in pieces]),
        "pieces": np.frombuffer(b"".join(pieces), np.uint8),
        "special": np.array([int(number) in special for number in used], np.uint8),
        "prompt_off": batch.prompt_off,
        "prompt": word(batch.prompt),
        "tok_off": batch.tok_off,
        "tok": word(batch.tok),
        **_entries(batch, word),
    }
    for one in found.quantities:
        columns[one.key] = kept.columns[one.key].astype(np.float32)
    for name in models:
        columns[f"top:{name}"] = word(kept.columns[f"top:{name}"])
        columns[f"top_lp:{name}"] = kept.columns[f"top_lp:{name}"].astype(np.float32)
    if "cand" in kept.columns:
        columns["cand"] = word(kept.columns["cand"])
    meta = {
        "quantities": [
            {
                "key": one.key,
                "title": one.title,
                "short": one.title.removeprefix(f"{one.model}: "),
                "about": one.about,
                "worst": one.worst,
                "signed": one.signed,
                "model": one.model,
                "scale": _scale(kept.columns[one.key]),
            }
            for one in found.quantities
        ],
        "models": list(models),
        "likeliest": LIKELIEST,
        "outcomes": {str(code): name for name, code in OUTCOME.items()},
        "finish": {str(code): name for name, code in FINISH.items()},
        "records": batch.lp is not None,
    }
    return meta, columns


def _entries(batch: Batch, word: Callable[[Any], Any]) -> dict[str, Any]:
    """The likeliest of the head, the first of the tail, and how many of each there are.

    `share` is log p of an exact entry, the weight of a drawn one, with 7 bits after the first.
    """
    row_E = np.repeat(np.arange(batch.tokens), np.diff(batch.entry_off))
    head_T = np.bincount(row_E[batch.exact], minlength=batch.tokens)
    rank_E = np.arange(len(row_E)) - batch.entry_off[row_E]
    kept_E = np.where(
        batch.exact,
        (rank_E < HEAD_SHOWN) | (batch.ids == batch.tok[row_E]),
        rank_E - head_T[row_E] < TAIL_SHOWN,
    )
    share_E = np.where(batch.exact, batch.logp, batch.weight)[kept_E]
    out: dict[str, Any] = {
        "entries": np.bincount(row_E[kept_E], minlength=batch.tokens),
        "heads": np.bincount(row_E[kept_E & batch.exact], minlength=batch.tokens),
        "head_left": head_T - np.bincount(row_E[kept_E & batch.exact], minlength=batch.tokens),
        "tail_left": np.bincount(row_E[~kept_E & ~batch.exact], minlength=batch.tokens),
        "ids": word(batch.ids[kept_E]),
        "share": round_mantissa(share_E, 7),
        "rest": batch.rest,
    }
    drawn_E = kept_E & ~batch.exact
    if drawn_E.any() and not np.isnan(batch.logp[drawn_E]).any():
        out["tail_logp"] = batch.logp[drawn_E]
    return out


def _scale(values_T: Any) -> float:
    """The value that has the strongest colour: few tokens are beyond it."""
    return max(1e-6, float(np.quantile(np.abs(values_T), 0.98))) if len(values_T) else 1.0


def _tokenizer(
    directory: Place, manifest: Manifest, models: Sequence[Path]
) -> "PreTrainedTokenizerBase | None":
    """Of the set's own copy, else of a set it was made from, else of a model; None without any."""
    found = [local_copy(directory, TOKENIZER)] if (directory / TOKENIZER).is_dir() else []
    inputs = manifest.payload.get("inputs")
    if not found and isinstance(inputs, Mapping):
        store = Store(directory.parent)
        keys = [source.get("key") for source in inputs.values() if isinstance(source, Mapping)]
        for key in filter(None, keys):
            for place in store.named(key):
                own = place / TOKENIZER if (place / TOKENIZER).is_dir() else place
                if isinstance(own, Path):
                    found.append(own)
    for place in [*found, *models]:
        if (place / "tokenizer.json").exists():
            return read_tokenizer(place)
    log.warning("%s: no tokenizer was found beside it, so tokens are shown by id", directory)
    return None
