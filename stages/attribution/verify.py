"""`afterglow verify --teacher MODEL SET`: was it this model that sampled, or scored, this set?

A set of sequences holds tokens that some model drew. MODEL runs over a bounded sample of them, on
the prompts as stored, and the two tests of `stages.attribution.evidence` judge model, temperature
and prompt rendering together; nothing in the set but its token ids need be trusted. Where the set
also keeps the log-probability each token was drawn with, the model's own is held against it.

Where top-p or top-k cut the distribution, the same cut is made to MODEL's, and tokens outside of it
count against MODEL; of the tail nothing can be said. At temperature 0 nothing is left to chance:
every token must be MODEL's likeliest, and that is all.

A set of records holds what a teacher said of each token; MODEL says it again, and log p and entropy
must agree.

What MODEL is asked is a sample: sequences in a fixed pseudo-random order until a budget of tokens
is reached. Choosing them does not look at what they say, so tests stay valid, and the budget keeps
the rounding of two engines from being told apart as if they were two models.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.attribution.judge import (
    DRAWN_TOLERANCE,
    RECORD_TOLERANCE,
    DrawnJudge,
    Judge,
    Judgement,
    RecordJudge,
)
from stages.attribution.witness import SLACK, Witness
from stages.config import Sampling
from stages.job import Input
from stages.models.descent import check_prompts_shared, data_tokenizer
from stages.models.identity import (
    DigestCache,
    chat_template_hash,
    check_tokenizer,
    local_directory,
    model_identity,
    tokenizer_hash,
)
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
class Question:
    """What is asked of every set."""

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
    judgement: Judgement

    @property
    def rejected(self) -> bool:
        """Whether the set is not this model's."""
        return self.judgement.verdict == "rejected"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary, the figures on one level with the rest."""
        judged = asdict(self.judgement)
        sampling = self.sampling.model_dump(include={"temperature", "top_p", "top_k"})
        own = {name: value for name, value in vars(self).items() if name != "judgement"}
        return own | {"sampling": sampling} | judged.pop("figures") | judged

    def lines(self) -> list[str]:
        """For people."""
        judged = self.judgement
        why = f": {'; '.join(judged.reasons)}" if judged.reasons else ""
        figures = [f"{name} {_short(value)}" for name, value in judged.figures.items()]
        return [
            f"{self.set}: {judged.verdict}{why}",
            f"  {self.kind}, temperature {self.sampling.temperature:g}, {self.dtype}, "
            f"{self.tokens:,} tokens of {self.sequences:,} sequences, level {self.level:g}",
            f"  {', '.join(figures)}",
        ]


def verify_teacher(source: Input, sets: Sequence[Place], question: Question) -> list[Finding]:
    """Hold each of `sets` against one model.

    Raises:
        DataError: no such model; a set that holds no tokens, does not say how they were drawn, is
            of another tokenizer, or has ids or lengths the model cannot take.
        EngineError: an architecture whose head is not understood.
    """
    directory = local_directory(source)
    manifests = {path: _readable(directory, path, question) for path in sets}
    found: dict[Place, Finding] = {}
    types = {path: question.dtype or _dtype(manifest) for path, manifest in manifests.items()}
    for dtype in sorted(set(types.values())):
        witness = Witness.load(directory, dtype, question.device)
        for path in (path for path in manifests if types[path] == dtype):
            found[path] = _hold(witness, path, manifests[path], question)
    return [found[path] for path in sets]


# ---------------------------------------------------------------------------------------------
# Before a model is loaded


def _readable(directory: Path, path: Place, question: Question) -> Manifest:
    manifest = read_manifest(path)
    if manifest.kind not in ("sequences", "records"):
        raise DataError(f"{path}: holds {manifest.kind}, not sequences or records")
    if "correction" in _record(manifest):
        raise DataError(
            f"{path}: its scores were corrected after scoring, so they are no model's. Verify the "
            "set of records they were made from."
        )
    check_prompts_shared(path, manifest)
    _sampling(path, manifest, question)
    own = tokenizer_hash(directory)
    check_tokenizer(data_tokenizer(path, manifest), own, str(path), str(directory))
    template = (manifest.tokenizer or {}).get("chat_template")
    if template and template != chat_template_hash(directory):
        log.warning(
            "%s: its prompts were rendered with another chat template than %s has; they are taken "
            "as they are stored",
            path,
            directory,
        )
    return manifest


def _sampling(path: Place, manifest: Manifest, question: Question) -> Sampling:
    """How the tokens were drawn; of records, the temperature they were made at."""
    asked = question.temperature
    if manifest.kind == "records":
        stated = {"temperature": _record(manifest).get("temperature", 1.0)}
    else:
        stated = manifest.meta.get("sampling")
    if stated is None and asked is None:
        raise DataError(
            f"{path}: does not say how its tokens were drawn (a text corpus was not drawn at all). "
            "Give the temperature to test with --temperature."
        )
    sampling = Sampling.model_validate(stated or {})
    return sampling if asked is None else sampling.model_copy(update={"temperature": asked})


def _record(manifest: Manifest) -> Mapping[str, Any]:
    return manifest.meta.get("record") or {}


def _role(manifest: Manifest) -> Mapping[str, Any]:
    """Identity of the model that drew the tokens, or that scored them, as the set says."""
    generator = manifest.meta.get("generator") if manifest.kind == "sequences" else None
    return generator or manifest.teacher or {}


def _dtype(manifest: Manifest) -> str:
    named = str(_role(manifest).get("dtype"))
    return named if named in SLACK else "float32"


# ---------------------------------------------------------------------------------------------
# With the model


def _hold(witness: Witness, path: Place, manifest: Manifest, question: Question) -> Finding:
    sampling = _sampling(path, manifest, question)
    judge = _judge(witness, manifest, question)
    sequences = tokens = 0
    for batch in _sample(path, manifest, question.tokens):
        sequences, tokens = sequences + len(batch), tokens + batch.tokens
        witness.check(batch, str(path))
        for part in batch.microbatches(question.tokens_per_batch):
            for chunk, seen in witness.ask(part, sampling, question.rows_per_chunk):
                judge.add(part, chunk, seen)
    digests = Store(path.parent if not isinstance(path, Path) else path.resolve().parent).digests
    cache = DigestCache(digests if digests.exists() else None)
    weights = model_identity(witness.directory, witness.dtype, cache).weights
    return Finding(
        set=str(path),
        kind=manifest.kind,
        model=str(witness.directory),
        dtype=witness.dtype,
        named=weights == _role(manifest).get("weights"),
        sampling=sampling,
        level=question.level,
        sequences=sequences,
        tokens=tokens,
        judgement=judge.decide(),
    )


def _judge(witness: Witness, manifest: Manifest, question: Question) -> Judge:
    if manifest.kind == "records":
        return RecordJudge(RECORD_TOLERANCE[witness.dtype])
    return DrawnJudge(
        class_V=witness.class_V,
        level=question.level,
        compare=question.temperature is None,
        tolerance=DRAWN_TOLERANCE[witness.dtype],
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
