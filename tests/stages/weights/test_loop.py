"""Weights in the training loop, on real tiny models: against a dense reference, cut and resumed."""

import itertools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch

from stages.config.training import Training
from stages.counter import uniform
from stages.losses.head_loss import RecordLoss
from stages.models.model import load_model
from stages.objectives.lightning import Lightning
from stages.training import checkpoint
from stages.training.drift import Guard
from stages.training.loop import Task, _forward_backward, train  # pyright: ignore[reportPrivateUsage]
from stages.training.metrics import Window, read
from stages.weights.base import Doubles, Positions, Reads, Weight
from stages.weights.entropy import Entropy
from stages.weights.entropy_gap import EntropyGap
from stages.weights.pass_rate import PassRate
from stages.weights.prefix import Prefix
from stages.weights.random_share import Random
from stages.weights.rates import read_groups, read_rates
from stages.weights.scope import Scope
from stages.weights.step import Weighting
from stages.weights.tip import Tip
from storage.batch import Batch
from storage.errors import DataError
from storage.files.place import Place
from storage.manifest import read_manifest
from storage.stream import Stream, read_split
from tests.stages.weights.cases import SAMPLES, graded_world
from tests.world import World, make_job

CPU = torch.device("cpu")
SEED = 5
Make = Callable[..., Task]


class Unsure(Weight):
    """A weight that reads the student at one position at a time."""

    name: Literal["unsure"] = "unsure"

    reads: ClassVar[Reads] = "context"
    reason: ClassVar[str] = "positions weighted by one minus the student's confidence"
    reads_student: ClassVar[bool] = True

    def score(self, at: Positions) -> Doubles:
        """1 - confidence."""
        assert at.student is not None
        return 1.0 - at.student.confidence_T.astype(np.float64)


class Broken(Weight):
    """A weight that is not a number in one sequence."""

    name: Literal["broken"] = "broken"
    value: float = float("nan")

    reads: ClassVar[Reads] = "context"
    reason: ClassVar[str] = "wrong on purpose"

    def score(self, at: Positions) -> Doubles:
        """Wrong where the sequence is number 7."""
        return np.where(at.batch.seq_id[at.row_T] == 7, self.value, 0.0)


WEIGHTS: dict[str, tuple[Weight, ...]] = {
    "random": (Random(keep=0.3),),
    "entropy": (Entropy(keep=0.3),),
    "pass_rate": (PassRate(a=0.5, b=2.0),),
    "unsure": (Unsure(),),
    "tip": (Tip(keep=0.3),),
    "gap": (EntropyGap(),),
    "scope": (Scope(tau=0.5),),
    "prefix": (Prefix(cap=1.2),),
    "all": (Random(keep=0.8), Entropy(keep=0.6), PassRate(), Unsure()),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return graded_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def make(world: World, tmp_path: Path) -> Make:
    """Makes tasks of three steps that start at pi_ref, on the records."""

    def build(
        weights: tuple[Weight, ...],
        normalise: Literal["weights", "count"] = "weights",
        batch_size: int = 16,
        name: str = "run",
        **run: Any,
    ) -> Task:
        settings = {"steps": 3, "learning_rate": 3e-3, "schedule": "constant", "grad_clip": 0.5}
        config = Training.model_validate(
            {**settings, "batch_size": batch_size, "run": {"log_every": 1, **run}}
        )
        rates = read_rates(world.records.directory)
        groups = read_groups(world.records.directory, weights)
        return Task(
            job=make_job(tmp_path / name, "train", config, {}, seed=SEED),
            model=load_model(world.reference, "float32", "cpu").train(),
            source=Stream(world.records.directory, seed=0, batch_size=batch_size),
            steps=3,
            loss=RecordLoss(Lightning(), config.run.rows_per_chunk),
            weighting=Weighting(weights, normalise, SEED, rates, groups) if weights else None,
            data=read_manifest(world.records.directory),
            tokenizer_from=world.reference,
            dtype=torch.float32,
        )

    return build


def run(task: Task) -> dict[str, torch.Tensor]:
    """Train in a workspace of its own; the weights at the end."""
    with checkpoint.workspace(task.job.site) as work:
        train(task, work)
        checkpoint.discard(work)
    return {name: weight.detach().clone() for name, weight in task.model.named_parameters()}


def assert_close(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float
) -> None:
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=atol, msg=name)


# ---------------------------------------------------------------------------------------------
# Against a computation that holds everything at once


def dense_logits(task: Task, batch: Batch) -> torch.Tensor:
    """[T, V], sequence by sequence."""
    found: list[torch.Tensor] = []
    for row in range(len(batch)):
        one = batch.select([row])
        ids = torch.from_numpy(np.concatenate([one.prompt, one.tok]))
        found.append(task.model(input_ids=ids[None]).logits[0, len(one.prompt) - 1 : -1])
    return torch.cat(found)


def top(score_T: np.ndarray, share: float) -> np.ndarray:
    """1 at the highest round(share T), by NumPy's own partition."""
    kept = round(share * len(score_T))
    return (score_T >= np.partition(score_T, -kept)[-kept]).astype(float)


@torch.no_grad()
def move(model: torch.nn.Module) -> None:
    """Away from pi_ref."""
    noise = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight += 0.1 * torch.randn(weight.shape, generator=noise)


def expected_weights(
    directory: Place, name: str, batch: Batch, logq_TV: torch.Tensor, step: int
) -> np.ndarray:
    """The weights written out again, from the logits of the whole step."""
    q_TV = logq_TV.detach().exp()
    length_N = np.diff(batch.tok_off)
    index_T = np.concatenate([np.arange(length) for length in length_N])
    seq_id_T = np.repeat(batch.seq_id, length_N)
    entropy_T = torch.special.entr(q_TV).sum(-1).double().numpy()
    rate_T = np.minimum(seq_id_T // SAMPLES % (SAMPLES + 1), SAMPLES) / SAMPLES
    drawn_T = uniform(SEED, zlib.crc32(b"weights/random"), step, seq_id_T, index_T)
    unsure_T = 1.0 - q_TV.amax(-1).double().numpy()
    match name:
        case "random":
            return top(drawn_T, 0.3)
        case "entropy":
            return top(np.round(entropy_T * 2**14), 0.3)
        case "pass_rate":
            return rate_T**0.5 * (1 - rate_T) ** 2
        case "unsure":
            return unsure_T
        case "tip":
            h_T, d_T = share_below(entropy_T), share_below(coarse_kl(batch, q_TV))
            return top(h_T + d_T - h_T * d_T, 0.3)
        case "gap":
            assert batch.ent is not None
            return 1 / (1 + np.exp(batch.ent - entropy_T))
        case "scope":
            return scope_weights(directory, batch, 0.5)
        case "prefix":
            return prefix_weights(batch, logq_TV, index_T, 1.2)
        case _:
            chosen_T = top(drawn_T, 0.8) * top(np.round(entropy_T * 2**14), 0.6)
            return chosen_T * rate_T * (1 - rate_T) * unsure_T


def scope_weights(directory: Place, batch: Batch, tau: float) -> np.ndarray:
    """Response by response, among all of its prompt and outcome in the set."""
    powers: dict[tuple[int, bool], dict[int, float]] = {}
    for every in read_split(directory, "train"):
        assert every.lp is not None
        assert every.ref_lp is not None
        for row, (start, stop) in enumerate(itertools.pairwise(every.tok_off.tolist())):
            right = bool(every.outcome[row] == 1)
            log_T = -every.ref_lp[start:stop] if right else every.lp[start:stop]
            group = powers.setdefault((int(every.prompt_id[row]), right), {})
            group[int(every.seq_id[row])] = float(np.exp(log_T.mean(dtype=np.float64) / tau))
    keys = zip(batch.prompt_id.tolist(), (batch.outcome == 1).tolist(), strict=True)
    groups = [powers[key] for key in keys]
    names = batch.seq_id.tolist()
    share_N = [of[name] / sum(of.values()) for of, name in zip(groups, names, strict=True)]
    return np.repeat(share_N, np.diff(batch.tok_off))


def share_below(value_T: np.ndarray) -> np.ndarray:
    """Of all others, equal ones counted half; in units in which rounding does not show."""
    value_T = np.round(value_T * 2**14)
    return np.array([(value_T < v).mean() + 0.5 * (value_T == v).mean() for v in value_T])


def coarse_kl(batch: Batch, q_TV: torch.Tensor) -> np.ndarray:
    """KL(q || p) over the head and the rest, position by position."""
    found: list[float] = []
    for t, (start, stop) in enumerate(itertools.pairwise(batch.entry_off.tolist())):
        head = [e for e in range(start, stop) if batch.exact[e]]
        q = [float(q_TV[t, batch.ids[e]]) for e in head]
        p = [float(np.exp(batch.logp[e])) for e in head]
        q, p = [*q, 1 - sum(q)], [*p, float(batch.rest[t])]
        found.append(sum(a * np.log(a / b) for a, b in zip(q, p, strict=True)))
    return np.array(found)


def prefix_weights(
    batch: Batch, logq_TV: torch.Tensor, index_T: np.ndarray, cap: float
) -> np.ndarray:
    """Response by response, then place by place."""
    assert batch.ref_lp is not None
    logq_T = logq_TV.detach().gather(1, torch.from_numpy(batch.tok)[:, None])[:, 0]
    ratio_T = np.exp(logq_T.double().numpy() - batch.ref_lp)
    found = [
        np.prod(ratio_T[start : start + index])
        for start, stop in itertools.pairwise(batch.tok_off.tolist())
        for index in range(stop - start)
    ]
    w_T = np.minimum(found, cap)
    for place in range(index_T.max() + 1):
        w_T[index_T == place] /= w_T[index_T == place].mean()
    return w_T


@pytest.mark.parametrize("normalise", ["weights", "count"])
@pytest.mark.parametrize("budget", [4096, 40])
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_gradient_is_that_of_the_dense_weighted_mean(
    world: World, make: Make, name: str, budget: int, normalise: str
) -> None:
    """With one micro-batch, and with several of a few sequences each."""
    task = make(WEIGHTS[name], normalise, tokens_per_microbatch=budget)
    move(task.model)
    batch, step = next(task.source), 2
    mean = _forward_backward(task, task.loss, step, batch, Window(), Guard("x", None))
    found = {name: weight.grad for name, weight in task.model.named_parameters()}
    task.model.zero_grad()

    logq_TV = dense_logits(task, batch).log_softmax(-1)
    logq_T = logq_TV.gather(1, torch.from_numpy(batch.tok)[:, None])[:, 0]
    assert batch.lp is not None
    advantage_T = torch.from_numpy(batch.lp) - logq_T
    loss_T = torch.nn.functional.huber_loss(
        advantage_T, torch.zeros_like(advantage_T), reduction="none", delta=10.0
    )
    weight_T = torch.from_numpy(
        expected_weights(world.records.directory, name, batch, logq_TV, step)
    )
    divisor = weight_T.sum() if normalise == "weights" else batch.tokens
    expected = (weight_T * loss_T).sum() / divisor
    expected.backward()
    torch.testing.assert_close(mean.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    for name, weight in task.model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_weights_of_one_change_nothing(make: Make) -> None:
    """To the last bit: scaling by count / sum of weights is scaling by 1."""
    plain, weighted = run(make((), name="plain")), run(make((Random(keep=1.0),), name="ones"))
    assert all(torch.equal(plain[name], weighted[name]) for name in plain)


# ---------------------------------------------------------------------------------------------
# Cutting, resuming, logging, refusing


@pytest.mark.parametrize("name", ["entropy", "tip", "prefix", "all"])
def test_how_a_step_is_cut_does_not_change_it(make: Make, name: str) -> None:
    whole = run(make(WEIGHTS[name], name="whole"))
    cut = run(make(WEIGHTS[name], name="cut", tokens_per_microbatch=17, rows_per_chunk=5))
    assert_close(cut, whole, 2e-6)


def test_a_killed_run_resumes_bit_for_bit(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = run(make(WEIGHTS["all"], name="calm", tokens_per_microbatch=40))
    rough = make(WEIGHTS["all"], name="rough", tokens_per_microbatch=40, checkpoint_every=1)
    step, left = torch.optim.AdamW.step, 2

    def killed(self: Any, *args: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return step(self, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            run(rough)
    again = make(WEIGHTS["all"], name="rough", tokens_per_microbatch=40, checkpoint_every=1)
    found = run(again)
    assert all(torch.equal(found[name], calm[name]) for name in calm)
    lines = [read(again.job.site / "metrics.jsonl")]
    assert [line["step"] for line in lines[0]] == [1, 2, 3]


def test_the_log_tells_the_share_kept_and_weighted_means(world: World, make: Make) -> None:
    task = make(WEIGHTS["pass_rate"], tokens_per_microbatch=40)
    first = next(task.source)
    task.source.load_state_dict(dict(task.source.state_dict()) | {"step": 0})
    with torch.no_grad():
        logq_TV = dense_logits(task, first).log_softmax(-1)
    logq_T = logq_TV.gather(1, torch.from_numpy(first.tok)[:, None])[:, 0].numpy()
    assert first.lp is not None
    weight_T = expected_weights(world.records.directory, "pass_rate", first, logq_TV, 0)
    run(task)
    line = read(task.job.site / "metrics.jsonl")[0]
    assert line["kept"] == pytest.approx((weight_T > 0).mean())
    assert line["advantage"] == pytest.approx(
        np.average(first.lp - logq_T, weights=weight_T), rel=1e-4
    )


def test_a_step_without_weight_is_refused(make: Make) -> None:
    task = make((Broken(value=0.0),))
    with pytest.raises(DataError, match="step 1: every position has weight zero"):
        run(task)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_weight_that_is_none_names_its_sequence(make: Make, value: float) -> None:
    with pytest.raises(DataError, match=r"a weight of (nan|inf|-1) in sequence 7: .*\(broken\)"):
        run(make((Broken(value=value),), batch_size=64))
