"""Share of the reader in a training step: the demo's student on the demo's records.

    python -m benchmarks.reader_share

The step is the product's own training loop, records streamed from the set with batches made ahead
by a thread. The reader alone draws as many batches from a stream of its own. Both figures are CPU
time of the process, the thread's included.
"""

import logging
import statistics
import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from benchmarks.generator import SETS, Teacher, small_world
from benchmarks.harness import Goal, Line, Options, Report, Table, interleave, main, ratios, spread
from benchmarks.records import counts_of, meta_of, write_part, write_set
from benchmarks.teachers import make
from pipeline.planning.config import load_recipe
from stages.config.record_kinds import Counts
from stages.config.training import Student
from stages.job import Job
from stages.losses.head_loss import RecordLoss
from stages.models.model import load_model
from stages.objectives.likelihood import ForwardKL
from stages.objectives.temper import build_objective
from stages.training.loop import Task, train
from storage.manifest import read_manifest
from storage.store import Store
from storage.stream import Stream


def run(options: Options) -> Report:
    """CPU seconds of the reader over those of whole training steps."""
    logging.getLogger("stages").setLevel(logging.WARNING)  # lines of the training log
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            model, directory, config = _toy(Path(scratch))
        else:
            model, directory, config = _demo(options.store)
        steps = 2 if options.quick else 20
        found = _measure(model, directory, config, steps, options.rounds, Path(scratch))
    shares = [100 * share for share in ratios(found, "reader", "step")]
    per_step = {name: 1e3 * statistics.median(s) / steps for name, s in found.items()}
    line = Line(
        what="reader share of the train step, demo student",
        unit="ms per step",
        ours=per_step["reader"],
        against="whole step",
        peer=per_step["step"],
        ratio=statistics.median(shares) / 100,
        goals=(Goal("ratio", "<=", 0.02),),
        spread=spread(shares) / 100,
    )
    table = Table(
        f"{config.objective.name}, {config.batch_size} sequences per step",
        ("", "ms per step"),
        [[name, f"{value:.3f}"] for name, value in per_step.items()],
    )
    return Report("Reader share of a train step", [line], [table], [], {"seconds": found})


def _demo(store: Path) -> tuple[PreTrainedModel, Path, Student]:
    """Where the demo's main student starts, what it reads, and its settings."""
    sets = make(store, ["sft", "teacher-logits"], "--recipe", "demo")
    student = next(iter(load_recipe("demo").train.variants().values()))
    return load_model(sets["sft"], "float32", "cpu"), sets["teacher-logits"], student


def _toy(scratch: Path) -> tuple[PreTrainedModel, Path, Student]:
    of = small_world()
    vocabulary = len(of.unigram_V)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=32,
    )
    meta = meta_of(Counts(), vocabulary)
    rows = counts_of(Teacher(SETS["rl"], 3, of), 1_000).rows()
    directory = scratch / "set"
    write_set(directory, [write_part(directory, 0, rows, meta)], meta)
    student = Student(steps=2, batch_size=2, objective=ForwardKL())
    return Qwen3ForCausalLM(config), directory, student


def _measure(
    model: PreTrainedModel, directory: Path, config: Student, steps: int, rounds: int, scratch: Path
) -> dict[str, list[float]]:
    def stream() -> Stream:
        prefetch = config.run.prefetch
        return Stream(directory, seed=0, batch_size=config.batch_size, prefetch=prefetch)

    with stream() as alone, stream() as trained:
        task = Task(
            job=Job("train", "reader share", "0" * 64, {}, config, 0, {}, Store(scratch)),
            model=model.train(),
            source=trained,
            steps=steps,
            loss=RecordLoss(build_objective(config.objective), config.run.rows_per_chunk),
            data=read_manifest(directory),
            tokenizer_from=scratch,
            dtype=torch.float32,
            limits=config.drift,
        )
        work = task.job.site / ".work"
        work.mkdir(parents=True)
        return interleave(
            {
                "reader": lambda: [next(alone) for _ in range(steps)],
                "step": lambda: train(task, work),
            },
            rounds,
        )


if __name__ == "__main__":
    main(run, __doc__)
