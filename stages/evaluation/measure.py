"""The figures that need no generation: passes of the model, and of the teacher, over held-out data.

Which ones follows from the inputs of the job; the roles are those of `stages.evaluate`. Imports
torch, so `stages.evaluate` loads this module late.
"""

from pathlib import Path

from stages.config.evaluation import Evaluate
from stages.config.objectives import of_manifest
from stages.evaluation.gradients import Measured, compare_gradients
from stages.evaluation.held_out import score_held_out
from stages.evaluation.positions import Seen
from stages.evaluation.text import score_text
from stages.job import Job
from stages.losses.full_teacher import FullTeacher
from stages.models.descent import check_prompts_shared, manifest_of_model
from stages.models.identity import local_directory
from stages.models.model import load_model, pick_device
from stages.objectives.objective import Objective
from stages.objectives.temper import build_objective
from stages.progress import Progress
from storage.files.place import Place
from storage.manifest import read_manifest
from storage.sets import position_bytes


def measure(job: Job[Evaluate], directory: Path, seen: Seen) -> dict[str, object]:
    """Figures of the model in `directory`, by name; `seen` collects what diagrams need.

    Raises:
        DataError: a set or a model cannot be read, or holds nothing out.
        EngineError: a model whose head is not understood.
    """
    inputs, config = job.inputs, job.config
    device = pick_device("auto")
    model = load_model(directory, inputs["model"].dtype, device)
    teacher = None
    if "teacher" in inputs:
        source = inputs["teacher"]
        teacher = FullTeacher.load(local_directory(source), source.dtype, device)
    out: dict[str, object] = {}
    budget = config.run.tokens_per_batch
    if "records" in inputs:
        where = inputs["records"].directory
        with Progress(f"{job.name}, held-out records", _held_out(where), "tokens"):
            out |= score_held_out(model, where, tokens_per_batch=budget, seen=seen)
    if "text" in inputs and config.text is not None:
        limit, where = config.text.sequences, inputs["text"].directory
        with Progress(f"{job.name}, held-out text", _held_out(where), "tokens"):
            out |= score_text(
                model, where, teacher, sequences=limit, tokens_per_batch=budget, seen=seen
            )
    objective = _objective(directory)
    if "data" in inputs and objective is not None:
        if config.gradient is not None and teacher is not None and objective.aims_at_forward_kl:
            with Progress(f"{job.name}, gradients", config.gradient.batches, "batches"):
                out |= _gradient(job, directory, teacher, objective)
        if config.record_bytes and objective.reads_teacher:
            one = position_bytes(inputs["data"].directory)
            out |= {"bytes": one.part, "record_bytes": one.record}
    return out


def _held_out(directory: Place) -> int:
    """Tokens of the split `holdout`."""
    return sum(part.tokens for part in read_manifest(directory).parts if part.split == "holdout")


def _objective(directory: Path) -> Objective | None:
    """What a student made here was trained on; None for other models."""
    made_here = manifest_of_model(directory)
    table = made_here.meta.get("objective") if made_here else None
    return of_manifest(table) if table else None


def _gradient(
    job: Job[Evaluate], directory: Path, teacher: FullTeacher, objective: Objective
) -> dict[str, object]:
    """The student's objective on its records, at its own weights or those of the one named."""
    table = job.config.gradient
    assert table is not None, "the caller has looked"
    at = local_directory(job.inputs["at"]) if "at" in job.inputs else directory
    setting = Measured(
        model=load_model(at, "float32", teacher.model.device),
        teacher=teacher,
        batch_size=table.batch_size,
        batches=table.batches,
        tokens_per_batch=job.config.run.tokens_per_batch,
    )
    data = job.inputs["data"].directory
    check_prompts_shared(data, read_manifest(data))
    return compare_gradients(setting, data, build_objective(objective), job.seed)
