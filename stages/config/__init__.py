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
from stages.config.records import (
    Record,
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
    "Drift",
    "EngineRun",
    "Evaluate",
    "EvaluateRun",
    "Expected",
    "Fraction",
    "Generate",
    "GenerateRun",
    "GradientCheck",
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
    "Train",
    "TrainRun",
    "Training",
    "Verifier",
    "Workers",
    "merge",
    "of_manifest",
    "template_fields",
]
