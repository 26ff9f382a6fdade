"""Tables of the stages that make records: `teacher-logits` and `residualize`."""

from collections.abc import Callable, Mapping
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.config.data import PromptSource
from stages.config.execution import Workers
from stages.config.merge import merge
from stages.config.stage import Expected, StageTable
from stages.table import BY_CONTENT, Fraction, Positive, Table

TAIL_FLOOR = 0.5**0.5
"""`Record.tail_floor` over tau. To keep the one id of a tail of mass r with probability s costs s
entries and, at most, 2 r^2 / s of squared error (its own and that of the head, which takes what is
left). At tau^2 of error per entry, the rate at which tau trades them everywhere else, the cost is
least at s = r / (tau sqrt(1/2))."""


class Record(Table):
    """What is kept of the teacher's distribution at each position."""

    kind: Literal["sampled", "counts", "head_tail", "top_k"] = "head_tail"
    """`sampled`: log p of the realised token only; `counts`: ids and counts of `draws` draws;
    `head_tail`: every id with p >= tau exactly plus a systematic sample of the rest; `top_k`: the
    `k` likeliest ids exactly and nothing of the rest but its mass (biased, for comparison)."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """The teacher's logits are divided by this before anything is recorded."""
    tau: Annotated[float, Field(ge=1 / 128, lt=1.0)] | None = 0.023
    """`head_tail`: probability from which an id is stored exactly; also bounds tail weights."""
    entries: Annotated[float, Field(ge=1.0)] | None = None
    """`head_tail`, instead of `tau`: the mean number of ids a position shall keep. tau is found on
    a sample of the positions to be scored, once, and then holds for all of them."""
    candidates: Annotated[int, Field(ge=0, le=64)] = 4
    """`head_tail`: how many of pi_ref's own top ids are forced into the head; 0 is off."""
    draws: Annotated[int, Field(ge=1, le=255)] = 50
    """`counts`: number of draws N."""
    sampler: Literal["systematic", "multinomial"] = "systematic"
    """`counts`: `multinomial` is RS-KD as published; `systematic` has a third of its variance."""
    k: Annotated[int, Field(ge=1, le=200)] = 50
    """`top_k`: number of ids."""
    copies: Annotated[int, Field(ge=1, le=16)] = 1
    """`counts`, `head_tail`: independent draws kept per position; epoch e of a reader takes draw
    e modulo `copies`, so that several epochs do not see one frozen draw."""
    logp: bool = False
    """`counts`, `head_tail`: keep log p of the drawn ids too, which divergences other than the
    forward KL need."""
    loss_temperature: Annotated[float, Field(gt=0.0)] | None = None
    """A second temperature at which objectives may read the record; its normaliser is kept."""

    @model_validator(mode="before")
    @classmethod
    def _tau_or_entries(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("entries") is not None:
            if values.get("tau") is not None:
                raise ValueError(
                    "`tau` and `entries` exclude each other: give `tau`, or the mean number of "
                    "`entries` from which it is calibrated"
                )
            return {**values, "tau": None}
        return values

    @model_validator(mode="after")
    def _some_tau(self) -> Self:
        if self.kind == "head_tail" and self.tau is None and self.entries is None:
            raise ValueError("`head_tail` needs `tau`, or `entries` from which it is calibrated")
        return self

    @property
    def wanted_entries(self) -> float | None:
        """The mean number of entries that tau is still to be found for, or None."""
        return self.entries if self.kind == "head_tail" and self.tau is None else None

    def calibrated(self, tau: float) -> Self:
        """The record as it is drawn and stored: `tau` filled in, `entries` left to tell why."""
        return self.model_copy(update={"tau": tau})

    @property
    def tail_floor(self) -> float:
        """`head_tail`: a tail of less mass keeps its one id with probability mass / `tail_floor`.

        It then weighs `tail_floor`; with log p of drawn ids no tail is left out, and this is 0. So
        positions at which the teacher is sure cost hardly more than their head.
        """
        if self.kind != "head_tail" or self.logp or self.tau is None:
            return 0.0
        return self.tau * TAIL_FLOOR

    def described(self) -> dict[str, Any]:
        """The `record` object of a manifest or a footer: all that a reader needs, and more."""
        return self.model_dump() | ({"tail_floor": self.tail_floor} if self.tail_floor else {})

    @classmethod
    def stored(cls, table: Mapping[str, object]) -> Self:
        """The record of a set from the `record` object of its manifest or footer.

        A calibrated tau is kept there beside the `entries` that asked for it, and counts alone;
        `tail_floor` follows from it.
        """
        dropped = {"tail_floor", *(["entries"] if table.get("tau") is not None else [])}
        return cls.model_validate({name: v for name, v in table.items() if name not in dropped})

    def unused(self) -> frozenset[str]:
        """Parameters of other kinds."""
        own = {
            "counts": {"draws", "sampler", "copies", "logp"},
            "head_tail": {"tau", "entries", "candidates", "copies", "logp"},
            "top_k": {"k"},
        }
        return frozenset(set[str]().union(*own.values()) - own.get(self.kind, set()))


class TeacherPrompt(Table):
    """What the teacher reads in place of the student's prompt; the responses stay what they are."""

    template: str = "{prompt}"
    """Text with fields in braces: `{prompt}` and any column of the prompt's row, such as a
    reference solution the student does not see. Of a prompt that is a list of chat messages it
    becomes the last message of the user. Braces themselves are doubled."""
    prompts: PromptSource | None = None
    """Where the rows come from; default the prompts of `rollouts` or `sft-data`, if `source` names
    one of these."""

    @field_validator("template")
    @classmethod
    def _has_fields(cls, value: str) -> str:
        fields = template_fields(value)
        odd = [name for name in fields if not name.isidentifier()]
        if odd or not fields:
            found = f"has the field `{{{odd[0]}}}`" if odd else "has no fields"
            raise ValueError(
                f"the template {found}; fields are written {{name}}, with the name of a column, "
                "and braces themselves doubled"
            )
        return value


def template_fields(template: str) -> tuple[str, ...]:
    """Names of the fields of a template, in order; whatever else stands in braces with them.

    Raises:
        ValueError: a brace without its partner.
    """
    parsed = Formatter().parse(template)
    return tuple(
        name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
        for _, name, form, conversion in parsed
        if name is not None
    )


class ScoreRun(Workers):
    """Execution of teacher scoring."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """vLLM for teachers that transformers runs slowly or one GPU does not hold; the two agree
    within the tolerances of docs/scoring-engines.md."""
    tokens_per_batch: Positive = 8192
    """Tokens in one teacher forward pass, padding included."""
    rows_per_chunk: Positive = 256
    """Positions whose logits exist at the same time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`transformers`: where it runs; vLLM runs where it was built for."""
    memory_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.85
    """`vllm`: share of GPU memory the engine may take."""
    kv_cache_mib: Positive = 256
    """`vllm`: size of the key-value cache on a CPU, in MiB."""
    tensor_parallel: Positive = 1
    """`vllm`: GPUs that hold the teacher together."""


class TeacherLogits(StageTable):
    """The teacher scores every position of a set of sequences."""

    presence = "implied"

    source: Annotated[str | None, BY_CONTENT] = None
    """`rollouts`, `sft-data`, `corpus`, or the directory of a set made elsewhere. Default: the
    rollouts, as the stages before this one pass them on."""
    limit: Positive | None = None
    """Training sequences that are scored, from the first on; default all. What the source holds
    out is scored in any case."""
    record: Record = Record()
    layout: Literal["open", "packed"] = "open"
    """`packed` stores the same records in about three quarters of the bytes; other programs can
    then read everything but the records (storage/FORMAT.md)."""
    teacher_prompt: TeacherPrompt | None = None
    """Default: the teacher reads the prompts as the student read them, token by token."""
    consistency: Literal["refuse", "warn"] = "refuse"
    """What to do when the sequences descend from another teacher. A set that `[residualize]` reads
    may be scored by another one in any case."""
    run: ScoreRun = ScoreRun()

    def unused(self) -> frozenset[str]:
        """A check decides whether there is a set, not what is in it; some have nothing to pack."""
        return frozenset({"consistency", *(["layout"] if self.record.kind == "sampled" else [])})

    def sources(self) -> Mapping[str, str | None]:
        """The sequences are those of `source`."""
        return {"sequences": self.source} if self.source else {}

    def prompt_source(self) -> PromptSource | None:
        """The prompts that the teacher's are made from."""
        return self.teacher_prompt.prompts if self.teacher_prompt else None

    def completed(self, origin: StageTable | None) -> Self:
        """`teacher_prompt.prompts` filled in; `rollouts` must have kept enough candidates."""
        kept = getattr(origin, "candidates", None)
        if self.record.kind == "head_tail" and kept is not None and self.record.candidates > kept:
            raise ValueError(
                f"record.candidates is {self.record.candidates}, but rollouts keep {kept} per "
                "position: raise rollouts.candidates"
            )
        if self.teacher_prompt is None or self.teacher_prompt.prompts is not None:
            return self
        prompts = origin.prompt_source() if origin else None
        if prompts is None:
            raise ValueError(
                f'source = "{self.source}" does not say where its prompts came from: set '
                "teacher-logits.teacher_prompt.prompts"
            )
        filled = self.teacher_prompt.model_copy(update={"prompts": prompts})
        return self.model_copy(update={"teacher_prompt": filled})

    def expected(
        self, count: Callable[[PromptSource], int | None], read: Expected | None
    ) -> Expected | None:
        """One record for each token that is read."""
        return read._replace(record=self.record) if read else None


class RecordSets(TeacherLogits):
    """The record set, and others made beside it for comparison."""

    compare: dict[str, dict[str, object]] = Field(default_factory=dict)
    """Further sets by name: each table overrides fields of this one. A student reads one of them
    by `data = "teacher-logits:<name>"`."""

    def variants(self) -> dict[str, TeacherLogits]:
        """All sets by name; the main one, which is called "", comes first.

        Raises:
            ValueError: a comparison table has an unknown field or an impossible value.
        """
        own = self.model_dump(exclude={"compare"})
        tables = {name: merge(own, table) for name, table in self.compare.items()}
        return {name: TeacherLogits.model_validate(t) for name, t in {"": own, **tables}.items()}


class Residualize(StageTable):
    """Cross-teacher correction of a record set (arXiv 2607.28449); absent: no such set is made.

    A student reads it by `data = "residualize"`.
    """

    source: Annotated[str | None, BY_CONTENT] = None
    """`teacher-logits` (the default), `teacher-logits:<name>`, or the directory of a set of
    records."""
    folds: Annotated[int, Field(ge=2, le=64)] = 5
    """Prompts are split into so many folds; each is corrected by what the others show."""
    token_share: Fraction = 0.5
    """Weight of the mean by token id; the rest is that of the mean by position and surprisal."""
    pseudo_count: Annotated[float, Field(ge=0.0)] = 20.0
    """Tokens' worth of the overall mean mixed into every mean."""
    position_bins: Positive = 16
    """Positions are binned by powers of two, the last bin taking all that follow."""
    surprisal_bins: Positive = 8
    """pi_ref's surprisals are binned by quantiles."""

    def sources(self) -> Mapping[str, str | None]:
        """The records are those of `source`."""
        return {"records": self.source} if self.source else {}

    def adapted(self, name: str, read: StageTable) -> StageTable:
        """Another teacher may score what is corrected here."""
        if name == (self.source or "teacher-logits"):
            return read.model_copy(update={"consistency": "warn"})
        return read

    def expected(
        self, count: Callable[[PromptSource], int | None], read: Expected | None
    ) -> Expected | None:
        """Of the records, the realised token alone is kept."""
        return read._replace(record=Record(kind="sampled"), entries=0.0) if read else None
