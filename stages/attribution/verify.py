"""`afterglow verify --teacher MODEL SET`: was it this model that sampled, or scored, this set?

A set of sequences holds tokens that some model drew. MODEL runs over a bounded sample of them, on
the prompts as stored, and the two tests of `stages.attribution.evidence` check model, temperature
and prompt rendering together; they trust nothing in the set but its token ids. Where the set also
keeps the log-probability each token was drawn with, MODEL's own is compared with it.

Where min-p, top-p or top-k truncated the distribution, MODEL's is truncated alike, and tokens
outside of it count against MODEL; nothing can be said of the tail. Sets sampled with penalties are
refused: what they were drawn from is no distribution of MODEL's. At temperature 0 nothing is
random: every token must be MODEL's likeliest, and there is no other test.

A set of records holds what a teacher said of each token; MODEL is run again, and log p and entropy
must agree.

The sample is sequences in a fixed pseudo-random order until a budget of tokens is reached. Choosing
them does not look at their tokens, so the tests stay valid, and the budget is small enough that the
rounding of two engines is not mistaken for two models.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.attribution.checks import (
    DRAWN_TOLERANCE,
    RECORD_TOLERANCE,
    DrawnCheck,
    RecordCheck,
    Verdict,
)
from stages.attribution.observe import SLACK, LoadedModel
from stages.config.data import Sampling
from stages.job import Input
from stages.models.chat_template import same_template
from stages.models.descent import check_prompts_shared, data_tokenizer
from stages.models.identity import (
    DigestCache,
    check_tokenizer,
    described_tokenizer,
    local_directory,
    model_identity,
    tokenizer_of,
)
from stages.progress import Progress
from storage.batch import Batch
from storage.errors import DataError
from storage.files.place import Place
from storage.manifest import Manifest, read_manifest
from storage.store import Store
from storage.stream import Stream

log = logging.getLogger(__name__)

_SEQUENCES = 32
"""Read at a time."""


@dataclass(frozen=True)
class Settings:
    """How every set is tested."""

    tokens: int = 65536
    """Response tokens after which no further sequences are read."""
    level: float = 1e-4
    """Probability of rejecting a set that the model did sample, both tests together."""
    temperature: float | None = None
    """Temperature to test in place of the one the set states."""
    dtype: str | None = None
    """Numeric type to run the model in; default what the set names, else float32."""
    tokens_per_batch: int = 8192
    rows_per_chunk: int = 64
    device: str = "auto"


@dataclass(frozen=True)
class Finding:
    """The answer for one set."""

    set: str
    kind: str
    model: str
    dtype: str
    named: bool
    """Whether the set names a model of the same weights as the one that drew or scored it."""
    sampling: Sampling
    level: float
    sequences: int
    tokens: int
    verdict: Verdict
    reasons: tuple[str, ...]
    figures: Mapping[str, float | int | None]
    """Statistics of the tests; None where one does not apply."""

    @property
    def rejected(self) -> bool:
        """Whether the set is not this model's."""
        return self.verdict == "rejected"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary, the figures on one level with the rest."""
        own = {name: value for name, value in vars(self).items() if name != "figures"}
        sampling = self.sampling.model_dump(include={"temperature", "top_p", "top_k", "min_p"})
        return own | {"sampling": sampling} | dict(self.figures)

    def lines(self) -> list[str]:
        """The finding as text."""
        why = f": {'; '.join(self.reasons)}" if self.reasons else ""
        figures = [f"{name} {_short(value)}" for name, value in self.figures.items()]
        return [
            f"{self.set}: {self.verdict}{why}",
            f"  {self.kind}, temperature {self.sampling.temperature:g}, {self.dtype}, "
            f"{self.tokens:,} tokens of {self.sequences:,} sequences, level {self.level:g}",
            f"  {', '.join(figures)}",
        ]


def verify_teacher(source: Input, sets: Sequence[Place], settings: Settings) -> list[Finding]:
    """Check whether one model made each of `sets`.

    Raises:
        DataError: no such model; a set that holds no tokens, does not say how they were drawn, is
            of another tokenizer, or has ids or lengths the model cannot take.
        EngineError: an architecture whose head is not understood.
    """
    directory = local_directory(source)
    manifests = {path: _checked_manifest(directory, path, settings) for path in sets}
    found: dict[Place, Finding] = {}
    types = {path: settings.dtype or _dtype(manifest) for path, manifest in manifests.items()}
    for dtype in sorted(set(types.values())):
        model = LoadedModel.load(directory, dtype, settings.device)
        for path in (path for path in manifests if types[path] == dtype):
            found[path] = _find(model, path, manifests[path], settings)
    return [found[path] for path in sets]


def _checked_manifest(directory: Path, path: Place, settings: Settings) -> Manifest:
    manifest = read_manifest(path)
    if manifest.kind not in ("sequences", "records"):
        raise DataError(f"{path}: holds {manifest.kind}, not sequences or records")
    if "correction" in _record(manifest):
        raise DataError(
            f"{path}: its scores were corrected after scoring, so no model gives them. Verify the "
            "set of records they were made from."
        )
    check_prompts_shared(path, manifest)
    _sampling(path, manifest, settings)
    own = tokenizer_of(directory)
    check_tokenizer(data_tokenizer(path, manifest), own, str(path), str(directory))
    rendered = manifest.tokenizer or {}
    if rendered.get("chat_template") and not same_template(
        rendered, described_tokenizer(directory)
    ):
        log.warning(
            "%s: its prompts were rendered with another chat template than %s has; they are used "
            "as stored",
            path,
            directory,
        )
    return manifest


def _sampling(path: Place, manifest: Manifest, settings: Settings) -> Sampling:
    """How the tokens were drawn; of records, the temperature they were made at."""
    given = settings.temperature
    if manifest.kind == "records":
        stated = {"temperature": _record(manifest).get("temperature", 1.0)}
    else:
        stated = manifest.meta.get("sampling")
    if stated is None and given is None:
        raise DataError(
            f"{path}: does not say how its tokens were drawn (a text corpus was not drawn at all). "
            "Give the temperature to test with --temperature."
        )
    sampling = Sampling.model_validate(stated or {})
    if sampling.penalised:
        raise DataError(
            f"{path}: its tokens were drawn with penalties, so not from the distribution of any "
            "model alone. Verify a set sampled without them, or the records of this one."
        )
    return sampling if given is None else sampling.model_copy(update={"temperature": given})


def _record(manifest: Manifest) -> Mapping[str, Any]:
    return manifest.meta.get("record") or {}


def _role(manifest: Manifest) -> Mapping[str, Any]:
    """Identity of the model that drew or scored the tokens, from the manifest."""
    generator = manifest.meta.get("generator") if manifest.kind == "sequences" else None
    return generator or manifest.teacher or {}


def _dtype(manifest: Manifest) -> str:
    named = str(_role(manifest).get("dtype"))
    return named if named in SLACK else "float32"


def _find(model: LoadedModel, path: Place, manifest: Manifest, settings: Settings) -> Finding:
    sampling = _sampling(path, manifest, settings)
    check: DrawnCheck | RecordCheck = RecordCheck(RECORD_TOLERANCE[model.dtype])
    if manifest.kind == "sequences":
        tolerance = DRAWN_TOLERANCE[model.dtype]
        check = DrawnCheck(model.class_V, settings.level, settings.temperature is None, tolerance)
    sequences = tokens = 0
    budget = min(settings.tokens, manifest.totals.tokens)
    with Progress(f"verify {path}", budget, "tokens") as progress:
        for batch in _sample(path, manifest, settings.tokens):
            sequences, tokens = sequences + len(batch), tokens + batch.tokens
            model.check_fits(batch, str(path))
            for part in batch.microbatches(settings.tokens_per_batch):
                for chunk, seen in model.observe(part, sampling, settings.rows_per_chunk):
                    check.add(part, chunk, seen)
                progress.advance(part.tokens)
    outcome = check.decide()
    digests = Store(path.parent if not isinstance(path, Path) else path.resolve().parent).digests
    cache = DigestCache(digests if digests.exists() else None)
    weights = model_identity(model.directory, model.dtype, cache).weights
    return Finding(
        set=str(path),
        kind=manifest.kind,
        model=str(model.directory),
        dtype=model.dtype,
        named=weights == _role(manifest).get("weights"),
        sampling=sampling,
        level=settings.level,
        sequences=sequences,
        tokens=tokens,
        verdict=outcome.verdict,
        reasons=outcome.reasons,
        figures=outcome.figures,
    )


def _sample(path: Place, manifest: Manifest, budget: int) -> Iterator[Batch]:
    """Sequences in a fixed pseudo-random order until they hold `budget` tokens, or all of them."""
    splits = [part.split for part in manifest.parts if part.sequences]
    split = "train" if "train" in splits or not splits else splits[0]
    with closing(Stream(path, seed=0, batch_size=_SEQUENCES, split=split, prefetch=1)) as stream:
        left = stream.sequences
        while left > 0 and budget > 0:
            batch = next(stream)
            if left < len(batch):  # the step runs over the end of the epoch
                batch = batch.select(range(left))
            yield batch
            left, budget = left - len(batch), budget - batch.tokens


def _short(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
