"""Write `docs/contract.md` from the legality contract in `stages.objectives`.

    python tools/contract_page.py            write the page
    python tools/contract_page.py --check    exit 1 if the page in the repository is another one

A test makes the same comparison, so the page cannot drift from the code.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import stages.weights.catalogue  # noqa: F401  (makes all weights known)
from pipeline.planning.document import write_or_check
from stages.config.record_kinds import stored_record
from stages.objectives.contract import COLUMNS, NO_TEACHER, RULES, all_rows, guarantee, variants
from stages.objectives.objective import Guarantee, Objective
from stages.weights.base import Weight
from storage.errors import ConfigError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "contract.md"

COMMON = {
    "head_tail": "`head_tail`, the default",
    "head_tail+logp": "with `logp = true`",
    "counts": "`counts`",
    "sampled": "`sampled`",
    NO_TEACHER: "no teacher",
}
"""Columns of the table that opens the page, and how they are headed."""

INTRODUCTION = """\
# Which objective may be trained from which records

| objective | {columns} |
{rows}

An objective trained from records that cannot carry it does not fail; it converges to something
else. Afterglow therefore checks `[train.objective]` against the manifest of the data before a model
is loaded, prints what the combination is, and stores that with the student. The table shows default
options on rollouts that were sampled from the whole distribution, at the temperature of the record.
*exact*: the objective as defined. *unbiased*: its expected gradient, over the draws of record and
token, is that of the full loss. *lower bound*: exact gradient of something that is never above the
full loss. *biased*: trainable, but not what its name says. *refused*: an error that names the
records and the objectives that would do. What changes a cell is listed under [Rules](#rules).

An unbiased estimate of a divergence may be negative, although the divergence is not: losses in the
log and, over few tokens, figures of the report go below zero by chance. Their mean is right.

Every cell that claims something has its proof in `tests/stages/objectives/test_proofs.py`: a sum
over all outcomes on a small vocabulary, of value and gradient, against the loss over the full
vocabulary. This page is written by `python tools/contract_page.py` from what the check itself uses.

## Every kind of record

`+logp` marks records that keep log p of the drawn ids too (`record.logp = true`); `sequences` are
sets without a teacher. All statements are about the contexts in the data, those that pi_ref
visited, and about a first pass over them; they hold up to the rounding of what is stored (log p of
ids is float16). Live training averages the same loss over the contexts of the student, so even an
exact loss has another gradient here once the student writes otherwise than pi_ref: training watches
that as [drift](drift.md).
"""

CANDIDATES = """\
The head of a `head_tail` record holds ids that pi_ref itself finds likely: a number of them, or as
many as cover a share of its mass (`record.candidates`). Which ids these are follows from pi_ref's
distribution at the context and from nothing else, so every statement above holds for every number
and every mass: at a fixed set, the mean of the residual over the realised token is what the set
leaves out. `tests/stages/objectives/test_candidates.py` sums over all outcomes for sets of every
size, and shows that a set which reaches down to the realised token would be biased: it would leave
no position to the residual.
"""

TEMPERATURES = """\
Divergences between the tempered distributions, teacher and student both at `objective.temperature`.
"""

PASSES = """\
A stored draw is frozen noise. `unbiased` speaks of the expectation over draws; a second pass over
the same draw adds no new one. With `record.copies = m`, pass e reads draw e mod m, and the
statement holds for the first m passes. Objectives that weigh the realised token read the same token
in every pass. The guarantee of a run says so in its note when it reads the data more often.
"""

SAMPLING = """\
Three objectives read b, the distribution from which the realised token was drawn. A set stores log
b of that token as `ref_lp`, after all that the sampler did, in both engines alike: penalties on the
logits, then temperature, `min_p`, `top_k`, `top_p`, renormalised.

| option of `sampling` | b at a position | full support |
|---|---|---|
| `temperature` above 0 | pi_ref at that temperature | yes |
| `temperature = 0` | nothing is drawn; the log-probability at temperature 1 is stored | no |
| `top_p`, `top_k`, `min_p` | pi_ref without the ids cut off, renormalised | no |
| `repetition_penalty`, `presence_penalty`, `frequency_penalty` | pi_ref with the logits of tokens \
already there changed: depends on the tokens before, as every distribution here does | yes |
| `stop` | as without: whether a position is in the set depends on the tokens before it | yes |

The correction q / b is unbiased for any b with full support at the context, so every objective
accepts penalties. What they change is which contexts are visited: those of the penalised policy,
as with a sampling temperature. Where pi_ref itself is meant, a set sampled with penalties has no
log-probability of it: the trainer is not compared with the engine before the first step, drift is
above 0 from the start, `residualize` warns, and `afterglow verify` does not say who drew it.

The tokens of a stop string are part of the response, up to the one that completes it, whole even
where it holds more than the string; `finish` is `stop`, and the teacher scores these positions like
all others. Cutting the string off would let later tokens decide whether an earlier position counts,
and would teach the student to stop without a sign.
"""

CONTEXTS = """\
Every statement so far is about the contexts that pi_ref visited. `[[train.weights]]` with
`name = "prefix"` weighs each position by q / b of all tokens before it, which makes of a mean over
those contexts one over the contexts of the student. At a context the weight is a number, so levels
stay what they are, for the loss weighted so.

- With `cap = "none"`, `each_place = false` and `train.normalise = "count"`, on tokens drawn with
  full support, the expected gradient of a step, a sum over its positions, is that of live training:
  `tests/stages/weights/test_prefix.py` sums over all responses. Each weight is then a product of as
  many ratios as there are tokens before, and a few responses decide a step.
- The cap holds back contexts that the student visits more often than pi_ref, and dividing by the
  mean of a place (or by the sum of the weights of the step) is a ratio of estimates: both bring a
  bias towards the contexts of pi_ref, the second less of it the more sequences a step has.
- It is refused where nobody drew the tokens, or at another temperature than the objective's.
"""

WEIGHTS = """\
`[[train.weights]]` says how much each position counts; several weights multiply, and no gradient
flows through them. What a weight looks at decides what is left of a level:

| looks at | level |
|---|---|
| the context: student and teacher there, the place in the response, the tokens before | as it is, \
for the weighted loss |
| the token: what was realised, so the length and the outcome of the response too | another \
objective, as that decides which contexts count; biased where the loss corrects by the token |
| the draw: ids or counts drawn for the record | refused beside a loss that reads them too |

`tests/stages/weights/test_contract.py` sums over all outcomes for each of these weights, that it
looks at no more than it says and leaves what is said here. What a weight needs and a set does not
have is an error before a model is loaded.

"""

Cells = Mapping[str, Mapping[str, Guarantee]]


def page() -> str:
    """The whole document."""
    table = all_rows()
    reasons = list(dict.fromkeys(cell for row in table.values() for cell in row.values()))
    numbers = {cell: index + 1 for index, cell in enumerate(reasons)}
    mixed = "A mixture is what its weakest term is; all terms share the temperature."
    return "\n".join(
        [
            _introduction(),
            _table(table, numbers),
            "## Reasons\n",
            _listed(f"{cell.level.replace('_', ' ')}: {cell.reason}." for cell in reasons),
            "## Rules\n",
            _listed([*(rule.sentence for rule in RULES), mixed]),
            "## Candidates\n",
            CANDIDATES,
            "## How the tokens were drawn\n",
            SAMPLING,
            "## At another temperature\n",
            TEMPERATURES,
            "At `record.loss_temperature`, whose normaliser the record keeps:\n",
            _table(_cells(2.0, {"loss_temperature": 2.0}, truncation=None)),
            "At any other:\n",
            _table(_cells(2.0, {}, truncation=None)),
            "## Weights\n",
            WEIGHTS + _weights(),
            "## More than one pass\n",
            PASSES,
            "## Contexts of the student\n",
            CONTEXTS,
        ]
    )


def _weights() -> str:
    """One line for each weight that ships."""
    lines = [_line(["weight", "looks at", "needs", "counts a position by"]), "|---|---|---|---|"]
    for name, weight in sorted(Weight.known.items()):
        if weight.__module__.startswith("stages."):
            one: Weight = weight.model_validate({"name": name})
            needs = ", ".join(text for text, needed in _needs(one).items() if needed) or "nothing"
            lines.append(_line([f"`{name}`", one.reads, needs, one.reason]))
    return "\n".join([*lines, ""])


def _needs(weight: Weight) -> dict[str, bool]:
    """What a set or a step must have for a weight."""
    return {
        "the student's distribution": weight.reads_student,
        "the teacher's entropy": weight.reads_record == "entropy",
        "the head of the record": weight.reads_record == "head",
        "outcomes": weight.reads_outcome or weight.reads_rates,
        "log p of the token": weight.reads_record == "token",
        "several responses to a prompt": weight.reads_rates or weight.reads_groups,
        "tokens drawn at the objective's temperature": weight.reads_policy,
        "all positions of the step": weight.whole_step,
    }


def _introduction() -> str:
    """The one screen: rows that agree in every common case share a line."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for label, cells in _cells(1.0, {}).items():
        levels = tuple(_level(cells[kind]) for kind in COMMON)
        alike.setdefault(levels, []).append(f"`{label}`")
    lines = ["---|" * (len(COMMON) + 1), *(_line([", ".join(alike[x]), *x]) for x in alike)]
    return INTRODUCTION.format(columns=" | ".join(COMMON.values()), rows="|" + "\n".join(lines))


def _cells(temperature: float, fields: dict[str, object], **options: object) -> Cells:
    """What the contract says of records made at temperature 1, read at `temperature`.

    Args:
        temperature: Of the objective.
        fields: Of the record, beside its kind.
        options: Of those objectives that have them.
    """

    def cell(objective: Objective, kind: str) -> Guarantee:
        given = {"temperature": temperature, **options}
        own = {name: value for name, value in given.items() if name in type(objective).model_fields}
        meta: dict[str, object] = {"sampling": {"temperature": 1.0}, "full_support": True}
        if kept := COLUMNS[kind]:
            record = {"kind": kept.kind, "logp": kept.logp, **fields}
            meta["record"] = stored_record(record).model_dump()
        try:
            return guarantee(objective.model_copy(update=own), meta)
        except ConfigError as refusal:
            return Guarantee("refused", str(refusal))

    return {one.label: {kind: cell(one, kind) for kind in COLUMNS} for one in variants()}


def _table(cells: Cells, numbers: Mapping[Guarantee, int] | None = None) -> str:
    """Markdown; with `numbers`, each cell refers to its reason."""

    def shown(cell: Guarantee) -> str:
        return f"{_level(cell)} [{numbers[cell]}]" if numbers else _level(cell)

    header = [_line(["objective", *(f"`{kind}`" for kind in COLUMNS)]), "|---" * (len(COLUMNS) + 1)]
    rows = [_line([f"`{row}`", *map(shown, own.values())]) for row, own in cells.items()]
    return "\n".join([header[0], header[1] + "|", *rows, ""])


def _level(cell: Guarantee) -> str:
    return cell.level.replace("_", " ")


def _line(columns: list[str]) -> str:
    return f"| {' | '.join(columns)} |"


def _listed(items: Iterable[str]) -> str:
    return "".join(f"{index}. {item}\n" for index, item in enumerate(items, start=1))


def main(arguments: list[str]) -> int:
    """Write or check the page; returns the exit code."""
    return write_or_check(PAGE, page(), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
