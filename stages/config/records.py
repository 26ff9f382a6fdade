"""Tables of the stages that make records: `teacher-logits` and `residualize`."""

from collections.abc import Callable, Mapping
from string import Formatter
from typing import Annotated, Literal, Self

from pydantic import Field, SerializeAsAny, field_validator

from stages.config.candidates import Candidates
from stages.config.data import PromptSource
from stages.config.execution import Workers
from stages.config.merge import merge
from stages.config.record_kinds import HeadTail, Record, Sampled
from stages.config.stage import Expected, SkipsBad, StageTable
from stages.table import BY_CONTENT, NOT_IN_KEY, Fraction, Positive, Table


class TeacherPrompt(Table):
    """What the teacher reads in place of the student's prompt; the responses stay what they are."""

    template: str = "{prompt}"
    """Text with fields in braces: `{prompt}` and any column of the prompt's row, such as a
    reference solution the student does not see. In a prompt that is a list of chat messages it
    replaces the last user message. Write literal braces doubled."""
    prompts: PromptSource | None = None
    """File of the rows; default: the prompts of `rollouts` or `sft-data`, if `source` is one of
    them."""

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
    """vLLM for teachers that transformers runs slowly or that do not fit on one GPU; the two agree
    within the tolerances of docs/scoring-engines.md."""
    tokens_per_batch: Positive = 8192
    """Tokens in one teacher forward pass, padding included."""
    rows_per_chunk: Positive = 256
    """Positions whose logits exist at the same time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`transformers`: where it runs; vLLM runs on the device it was built for."""
    memory_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.85
    """`vllm`: share of GPU memory the engine may use."""
    kv_cache_mib: Positive = 256
    """`vllm`: size of the key-value cache on a CPU, in MiB."""
    tensor_parallel: Positive = 1
    """`vllm`: GPUs that the teacher is spread over."""


class TeacherLogits(StageTable, SkipsBad):
    """The teacher scores every position of a set of sequences."""

    presence = "implied"

    source: Annotated[str | None, BY_CONTENT] = None
    """`rollouts`, `sft-data`, `corpus`, or the directory of a set made elsewhere. Default: the
    rollouts, as the stages before this one pass them on."""
    limit: Positive | None = None
    """Score at most this many training sequences, in order; default all. Held-out sequences are
    always scored."""
    record: SerializeAsAny[Record] = HeadTail()
    """What is kept of the teacher's distribution at each position."""
    layout: Literal["open", "packed"] = "open"
    """`packed` stores the same records in about three quarters of the bytes, but only Afterglow can
    then read the records (storage/FORMAT.md)."""
    teacher_prompt: TeacherPrompt | None = None
    """Default: the teacher reads the prompts as the student read them, token by token."""
    consistency: Annotated[Literal["refuse", "warn"], NOT_IN_KEY] = "refuse"
    """What to do when the sequences descend from another teacher. A set that `[residualize]` reads
    may always be scored by another one."""
    run: ScoreRun = ScoreRun()
    """Execution; never part of a key."""

    def unused(self) -> frozenset[str]:
        """`layout`, where a record has no entries to pack."""
        return frozenset() if self.record.stores.entries else frozenset({"layout"})

    def sources(self) -> Mapping[str, str | None]:
        """The sequences are those of `source`."""
        return {"sequences": self.source} if self.source else {}

    def prompt_source(self) -> PromptSource | None:
        """The prompts that the teacher's are made from."""
        return self.teacher_prompt.prompts if self.teacher_prompt else None

    def with_prompts(self, prompts: PromptSource) -> Self:
        """Other prompts that the teacher's are made from."""
        assert self.teacher_prompt is not None, "it has no prompts otherwise"
        filled = self.teacher_prompt.model_copy(update={"prompts": prompts})
        return self.model_copy(update={"teacher_prompt": filled})

    def completed(self, origin: StageTable | None) -> Self:
        """`teacher_prompt.prompts` filled in; `rollouts` must have kept enough candidates."""
        kept: Candidates | None = getattr(origin, "candidates", None)
        if kept is not None:
            self.record.check_candidates(kept, "rollouts")
        if self.teacher_prompt is None or self.teacher_prompt.prompts is not None:
            return self
        prompts = origin.prompt_source() if origin else None
        if prompts is None:
            raise ValueError(
                f'source = "{self.source}" does not say where its prompts came from: set '
                "teacher-logits.teacher_prompt.prompts"
            )
        return self.with_prompts(prompts)

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
    """Number of folds of the prompts; each fold is corrected by means over the others."""
    token_share: Fraction = 0.5
    """Weight of the mean by token id; the mean by position and surprisal has the rest."""
    pseudo_count: Annotated[float, Field(ge=0.0)] = 20.0
    """Every mean is shrunk towards the overall mean as if by this many tokens."""
    position_bins: Positive = 16
    """Positions are binned by powers of two, the last bin takes all that follow."""
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
        return read._replace(record=Sampled(), entries=0.0) if read else None
