"""The loop itself, on real tiny models and real sets."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from stages.config.objectives import Drift
from stages.config.training import Training
from stages.job import Input
from stages.losses.head_loss import RecordLoss
from stages.models.model import load_model
from stages.objectives.objective import Objective
from stages.objectives.taid import TAID
from stages.objectives.temper import build_objective
from stages.training import checkpoint
from stages.training.drift import ratio_sums, summary
from stages.training.loop import RunOutcome, Task, train
from stages.training.metrics import read
from storage.batch import Batch
from storage.errors import DataError, EngineError
from storage.manifest import read_manifest
from storage.stream import Stream
from tests.world import VOCABULARY, World, make_job

Make = Callable[..., Task]


@pytest.fixture
def make(world: World, tmp_path: Path) -> Make:
    """Makes tasks that start at pi_ref; on the records, or answers for `cross_entropy`."""

    def build(objective: str = "reverse_kl", **changes: Any) -> Task:
        run = {"log_every": 1, **changes.pop("run", {})}
        settings = {"steps": 6, "batch_size": 16, "learning_rate": 3e-3, "schedule": "constant"}
        config = Training.model_validate(settings | changes | {"run": run})
        chosen = world.sequences if objective == "cross_entropy" else world.records
        source = Stream(
            chosen.directory,
            seed=0,
            batch_size=config.batch_size,
            max_length=config.max_length,
        )
        assert config.steps is not None
        return Task(
            job=make_job(tmp_path, "train", config, {}),
            model=load_model(world.reference, "float32", "cpu").train(),
            source=source,
            steps=config.steps,
            loss=RecordLoss(
                build_objective(Objective.model_validate({"name": objective})),
                config.run.rows_per_chunk,
            ),
            data=read_manifest(chosen.directory),
            tokenizer_from=world.reference,
            dtype=torch.float32,
            limits=Drift(),
        )

    return build


def run(task: Task) -> RunOutcome:
    """Train in a workspace of its own."""
    with checkpoint.workspace(task.job.site) as work:
        outcome = train(task, work)
        checkpoint.discard(work)
    return outcome


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize(
    "objective", ["cross_entropy", "forward_kl", "ghost_kl", "jsd", "lightning", "reverse_kl"]
)
def test_the_loss_falls(make: Make, objective: str) -> None:
    task = make(objective, steps=24, run={"log_every": 4})
    run(task)
    losses = [line["loss"] for line in read(task.job.site / "metrics.jsonl")]
    assert len(losses) == 6
    assert float(losses[-1] or 0) < 0.7 * float(losses[0] or 0)


def test_the_objective_of_each_step_is_that_of_its_progress(make: Make) -> None:
    task = replace(make("jsd", steps=5), loss=RecordLoss(TAID(start=0.2), 64))
    run(task)
    shares = [line["teacher_share"] for line in read(task.job.site / "metrics.jsonl")]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("objective", ["cross_entropy", "reverse_kl"])
def test_microbatches_accumulate_to_the_whole_batch(make: Make, objective: str) -> None:
    """The gradient is normalised over the positions of the step, however it is cut."""
    start = weights(make(objective).model)
    whole = make(objective, learning_rate=1e-4)
    cut = make(objective, learning_rate=1e-4, run={"tokens_per_microbatch": 17})
    for task in (whole, cut):
        run(task)
    assert largest_difference(weights(whole.model), start) > 1e-4
    assert largest_difference(weights(whole.model), weights(cut.model)) < 1e-6


def test_execution_options_do_not_change_the_result(make: Make) -> None:
    plain = make()
    chunked = make(run={"rows_per_chunk": 7, "prefetch": 1})
    saving = make()
    saving.model.gradient_checkpointing_enable({"use_reentrant": False})
    for task in (plain, chunked, saving):
        run(task)
    assert largest_difference(weights(plain.model), weights(chunked.model)) < 2e-5
    assert largest_difference(weights(plain.model), weights(saving.model)) < 2e-5


def test_a_step_is_the_step_of_plain_cross_entropy(world: World, make: Make) -> None:
    """Against `model(...).logits`, `cross_entropy` and AdamW written out."""
    task = make("cross_entropy", steps=3, grad_clip=0.5, weight_decay=0.1)
    model = load_model(world.reference, "float32", "cpu").train()
    decayed = [weight for weight in model.parameters() if weight.ndim >= 2]
    kept = [weight for weight in model.parameters() if weight.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}],
        lr=3e-3,
        betas=(0.9, 0.98),
    )
    for step in range(3):
        batch = nth_batch(world.sequences, step)
        losses = [plain_loss(model, batch, index) for index in range(len(batch))]
        (torch.cat(losses).sum() / batch.tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimiser.step()
        optimiser.zero_grad()
    run(task)
    assert largest_difference(weights(task.model), weights(model)) < 1e-6


def plain_loss(model: torch.nn.Module, batch: Batch, index: int) -> torch.Tensor:
    """Cross-entropy of each response token of one sequence, nothing padded."""
    prompt = batch.prompt[batch.prompt_off[index] : batch.prompt_off[index + 1]].tolist()
    tok = batch.tok[batch.tok_off[index] : batch.tok_off[index + 1]].tolist()
    logits = model(input_ids=torch.tensor([prompt + tok])).logits[0, len(prompt) - 1 : -1]
    return cross_entropy(logits, torch.tensor(tok), reduction="none")


def test_drift_starts_at_the_policy_and_is_that_of_the_weights(world: World, make: Make) -> None:
    """The first line describes pi_ref itself; the second the model after one step."""
    task = make(steps=2)
    run(task)
    lines = read(task.job.site / "metrics.jsonl")
    assert lines[0]["drift_chi2"] == pytest.approx(0.0, abs=1e-3)
    assert lines[0]["drift_ess"] == pytest.approx(1.0, abs=1e-3)

    after_one = make(steps=1)
    run(after_one)
    second = nth_batch(world.records, 1)
    assert second.ref_lp is not None
    with torch.no_grad():
        logq = -torch.cat([plain_loss(after_one.model, second, i) for i in range(len(second))])
    expected = summary(*ratio_sums(logq, torch.from_numpy(second.ref_lp)).tolist())
    assert {name: lines[1][name] for name in expected} == pytest.approx(expected, rel=1e-3)


def nth_batch(source: Input, step: int) -> Batch:
    """The batch the tasks of this module read at a step."""
    with Stream(source.directory, seed=0, batch_size=16) as stream:
        return [next(stream) for _ in range(step + 1)][-1]


def test_without_limits_drift_is_not_computed(make: Make) -> None:
    outcome = run(replace(make("cross_entropy", steps=1), limits=None))
    assert "drift_chi2" not in outcome.last


@pytest.mark.parametrize("log_every", [1, 7])
def test_training_stops_at_the_drift_limit_however_often_it_logs(
    make: Make, log_every: int
) -> None:
    limits = Drift(warn_chi2=1e-6, stop_chi2=0.05)
    task = make(learning_rate=0.05, steps=30, run={"log_every": log_every, "checkpoint_every": 5})
    outcome = run(replace(task, limits=limits))
    assert (outcome.steps, outcome.stopped) == (10, True)
    assert outcome.last["step"] == 10
    assert float(outcome.last["drift_chi2"] or 0) > 0.05


@pytest.mark.parametrize(("learning_rate", "warns"), [(1e-4, False), (0.05, True)])
def test_a_collapsing_run_warns_and_a_healthy_one_does_not(
    make: Make, learning_rate: float, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    task = make(learning_rate=learning_rate, steps=20)
    outcome = run(replace(task, limits=Drift()))
    lines = read(task.job.site / "metrics.jsonl")
    falls = float(lines[-1]["loss"] or 0) < float(lines[0]["loss"] or 0)
    assert falls != warns
    found = [one.getMessage() for one in caplog.records if "no longer writes" in one.getMessage()]
    assert bool(found) == warns
    assert (outcome.drifted, outcome.stopped) == (warns, False)


def test_a_loss_that_is_not_finite_names_the_step_and_the_sequences(
    world: World, make: Make
) -> None:
    """The embedding of one letter is ruined; the sequences that feed it are the ones named."""
    task = make("cross_entropy")
    batch = nth_batch(world.sequences, 0)
    letter = min(range(2, VOCABULARY), key=lambda letter: len(holders(batch, letter)) or 99)
    guilty = holders(batch, letter)
    assert 0 < len(guilty) < len(batch)
    with torch.no_grad():
        task.model.get_input_embeddings().weight[letter] = math.nan  # type: ignore[index]
    before = weights(task.model)
    with pytest.raises(EngineError, match="step 1: loss nan") as caught:
        run(task)
    shown = ", ".join(map(str, guilty[:8]))
    assert f"caused by sequences {shown}" in str(caught.value)
    after = weights(task.model)
    assert all(torch.equal(before[n].nan_to_num(), after[n].nan_to_num()) for n in before)


def holders(batch: Batch, letter: int) -> list[int]:
    """Ids of the sequences in which `letter` is fed to the model (the last token is not)."""
    found: list[int] = []
    for row in range(len(batch)):
        one = batch.select([row])
        if letter in [*one.prompt, *one.tok[:-1]]:
            found.append(int(one.seq_id[0]))
    return found


def test_a_batch_without_positions_is_refused(make: Make) -> None:
    with pytest.raises(DataError, match="Raise `max_length`"):
        run(make(max_length=1))


def test_bfloat16_trains_under_autocast_with_float32_weights(make: Make) -> None:
    task = replace(make(steps=12, run={"log_every": 3}), dtype=torch.bfloat16)
    run(task)
    losses = [float(line["loss"] or 0) for line in read(task.job.site / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    assert {weight.dtype for weight in task.model.parameters()} == {torch.float32}
