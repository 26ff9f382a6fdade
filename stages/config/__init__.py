"""The configuration tables of every stage: frozen, closed (`extra="forbid"`), documented in place.

Each table has two kinds of fields. Plain fields decide what the output *means* and enter the key of
the set; fields of the nested `run` table only say how the work is executed and never do. No field
is called plain `temperature` at top level: `sampling.temperature`, `record.temperature` and
`objective.temperature` are three different things.
"""

from stages.config.corpus import Corpus, Tokenizer
from stages.config.data import ModelRef, PromptSource, Sampling, Verifier
from stages.config.evaluation import Evaluate, EvaluateRun, GradientCheck, HeldOutText, Report
from stages.config.execution import Workers
from stages.config.generation import EngineRun, Generate, GenerateRun, Rollouts, SftData
from stages.config.merge import merge
from stages.config.objectives import Drift, of_manifest
from stages.config.record_kinds import (
    Counts,
    Drawn,
    HeadTail,
    Record,
    Sampled,
    TopK,
    make_record,
    stored_record,
)
from stages.config.records import (
    RecordSets,
    Residualize,
    ScoreRun,
    TeacherLogits,
    TeacherPrompt,
    template_fields,
)
from stages.config.stage import Expected, StageTable
from stages.config.training import Architecture, Pretrain, Sft, Student, Train, Training, TrainRun
from stages.objectives.objective import Objective
from stages.table import BY_CONTENT, ByContent, Fraction, Named, Positive, Table

__all__ = [
    "BY_CONTENT",
    "Architecture",
    "ByContent",
    "Corpus",
    "Counts",
    "Drawn",
    "Drift",
    "EngineRun",
    "Evaluate",
    "EvaluateRun",
    "Expected",
    "Fraction",
    "Generate",
    "GenerateRun",
    "GradientCheck",
    "HeadTail",
    "HeldOutText",
    "ModelRef",
    "Named",
    "Objective",
    "Positive",
    "Pretrain",
    "PromptSource",
    "Record",
    "RecordSets",
    "Report",
    "Residualize",
    "Rollouts",
    "Sampled",
    "Sampling",
    "ScoreRun",
    "Sft",
    "SftData",
    "StageTable",
    "Student",
    "Table",
    "TeacherLogits",
    "TeacherPrompt",
    "Tokenizer",
    "TopK",
    "Train",
    "TrainRun",
    "Training",
    "Verifier",
    "Workers",
    "make_record",
    "merge",
    "of_manifest",
    "stored_record",
    "template_fields",
]
