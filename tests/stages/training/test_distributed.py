"""Several real processes over gloo against one: the same steps, killed or not, at any number.

Tolerances are some ten times the differences measured (docs/torchrun.md): sums over sequences are
added in another order, and nothing else differs.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from stages import train
from stages.config.training import Student
from stages.models.model import load_model
from stages.ranks import Ranks, here
from stages.training.metrics import Line, read
from storage.errors import ConfigError
from tests.stages.training.distributed_child import Ended, job, run_all
from tests.world import World, make_world, random_model, tokenizer, weights

pytestmark = pytest.mark.timeout(600)  # a dozen runs, each slow where others compute too

LOSS, WEIGHTS = 2e-5, 3e-6
"""Relative and absolute, in float32."""
LOSS_16, WEIGHTS_16 = 2e-3, 2e-2
"""Under bfloat16, whose saved weights are 2e-3 to 8e-3 apart from their neighbours."""
SIXTEEN = {"dtype": "bfloat16", "run": {"gradient_checkpointing": True}}
EMPTY = {"batch_size": 2, "steps": 3}
TWO: dict[str, Any] = {"rounds": 2, "steps": 4}
SECOND = {"second": True}


class Runs:
    """All runs of this module, made in one go."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.world = make_world(root / "world")
        base = {"base": str(self._tied("tied"))}
        ruined = {"base": str(self._tied("ruined", letter=4)), "steps": 2}
        listed: list[tuple[str, int, dict[str, Any]]] = [
            ("one", 1, {}),
            ("two", 2, {}),
            ("rough", 2, {"die": [1, 4]}),
            ("rough", 2, {}),
            ("mixed", 2, {"die": [1, 4]}),
            ("mixed", 1, {"die": [0, 4]}),
            ("mixed", 3, {}),
            ("sixteen-1", 1, {"stage": "sft", "settings": SIXTEEN | base}),
            ("sixteen-2", 2, {"stage": "sft", "settings": SIXTEEN | base}),
            ("rounds-1", 1, {"settings": TWO}),
            ("rounds-1", 1, {"settings": TWO | SECOND}),
            ("rounds-3", 2, {"settings": TWO}),
            ("rounds-3", 3, {"settings": TWO | SECOND}),
            ("empty-1", 1, {"settings": EMPTY}),
            ("empty-3", 3, {"settings": EMPTY}),
            ("ruined-1", 1, {"stage": "sft", "settings": ruined}),
            ("ruined-2", 2, {"stage": "sft", "settings": ruined}),
        ]
        runs = [{"store": str(root / n), "processes": p, **more} for n, p, more in listed]
        self.ended: dict[str, list[Ended]] = {}
        self._jobs: dict[str, tuple[str, dict[str, Any]]] = {}
        for (name, _, more), found in zip(listed, run_all(self.world, runs), strict=True):
            self.ended.setdefault(name, []).append(found)
            self._jobs[name] = more.get("stage", "train"), more.get("settings", {})

    def directory(self, name: str) -> Path:
        """Where a run wrote its set."""
        stage, settings = self._jobs[name]
        return job(self.world, self.root / name, stage, **settings).site

    def lines(self, name: str) -> list[Line]:
        """Metrics without times."""
        found = read(self.directory(name) / "metrics.jsonl")
        times = {"tokens_per_second", "waiting"}
        return [{name: v for name, v in line.items() if name not in times} for line in found]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors a run ended with."""
        return weights(self.directory(name))

    def _tied(self, name: str, letter: int | None = None) -> Path:
        """A base whose head is its embedding, or else one that makes NaN of a letter it reads."""
        model = random_model(7, tied=letter is None)
        if letter is not None:
            with torch.no_grad():
                model.get_input_embeddings().weight[letter] = math.nan  # type: ignore[index]
        model.save_pretrained(self.root / name)
        tokenizer().save_pretrained(self.root / name)
        return self.root / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


def assert_alike(runs: Runs, a: str, b: str, loss: float, weight: float) -> None:
    """The same lines and weights, up to rounding."""
    ours, theirs = runs.lines(b), runs.lines(a)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=loss, abs=1e-4)
    found, expected = runs.weights(b), runs.weights(a)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=weight)


def test_two_processes_follow_the_trajectory_of_one(runs: Runs) -> None:
    assert [ended.codes for ended in runs.ended["two"]] == [[0, 0]]
    losses = [float(line["loss"] or 0) for line in runs.lines("one")]
    assert losses[-1] < 0.7 * losses[0]
    assert_alike(runs, "one", "two", LOSS, WEIGHTS)


def test_the_set_is_the_one_a_single_process_writes(runs: Runs) -> None:
    """Files, configuration and architecture; nothing is left of the workspace."""
    one, two = runs.directory("one"), runs.directory("two")
    assert sorted(path.name for path in two.iterdir()) == sorted(p.name for p in one.iterdir())
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
    assert type(load_model(two, "float32", "cpu")) is type(load_model(one, "float32", "cpu"))


def test_a_killed_process_ends_the_others_and_a_rerun_gives_the_same_bits(runs: Runs) -> None:
    killed, rerun = runs.ended["rough"]
    assert killed.codes == [75, -9], killed.says
    assert "another of the 2 processes ended" in killed.says[0]
    assert rerun.codes == [0, 0]
    ours, theirs = runs.weights("rough"), runs.weights("two")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert runs.lines("rough") == runs.lines("two")


def test_a_run_goes_on_with_another_number_of_processes(runs: Runs) -> None:
    """Begun by two, continued by one, ended by three: checkpoints of both kinds are read."""
    found = runs.ended["mixed"]
    assert [ended.codes for ended in found] == [[75, -9], [-9], [0, 0, 0]], found[0].says
    assert_alike(runs, "one", "mixed", LOSS, WEIGHTS)
    assert not (runs.directory("mixed") / ".work").exists()


def test_a_second_round_goes_on_from_what_other_processes_have_handed_on(runs: Runs) -> None:
    assert [ended.codes for ended in runs.ended["rounds-3"]] == [[0, 0], [0, 0, 0]]
    assert_alike(runs, "rounds-1", "rounds-3", LOSS, WEIGHTS)
    rates = [line["rate"] for line in runs.lines("rounds-3")]
    assert rates[-1] == 0.0
    assert rates[0] == pytest.approx(3e-3 * 0.5 * (1.0 + math.cos(math.pi * 4 / 5)))


def test_bfloat16_with_tied_embeddings_and_recomputed_activations(runs: Runs) -> None:
    assert runs.ended["sixteen-2"][0].codes == [0, 0]
    assert {tensor.dtype for tensor in runs.weights("sixteen-2").values()} == {torch.bfloat16}
    assert_alike(runs, "sixteen-1", "sixteen-2", LOSS_16, WEIGHTS_16)


def test_a_process_without_sequences_takes_part(runs: Runs) -> None:
    """Two sequences a step on three processes."""
    assert runs.ended["empty-3"][0].codes == [0, 0, 0]
    assert_alike(runs, "empty-1", "empty-3", LOSS, WEIGHTS)


def test_all_processes_name_the_same_sequences_of_a_loss_that_is_not_finite(runs: Runs) -> None:
    (alone,), (first, second) = runs.ended["ruined-1"][0].says, runs.ended["ruined-2"][0].says
    assert runs.ended["ruined-2"][0].codes == [65, 65]
    assert "loss nan" in alone
    assert "caused by sequences" in alone
    assert first == second == alone


def test_a_live_teacher_is_refused(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.train.current", lambda: Ranks(0, 2))
    made = job(runs.world, tmp_path)
    config = Student.model_validate(made.config.model_dump() | {"data": "live"})
    with pytest.raises(ConfigError, match="runs in one process"):
        train.run(type(made)(**{**vars(made), "config": config, "inputs": live_inputs(runs.world)}))


def live_inputs(world: World) -> dict[str, Any]:
    return {"init": world.init, "records": world.records}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Ranks()),
        ({"RANK": "0", "WORLD_SIZE": "4"}, Ranks()),
        (
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a"},
            Ranks(),
        ),
        (
            {
                "RANK": "3",
                "WORLD_SIZE": "4",
                "LOCAL_RANK": "1",
                "MASTER_ADDR": "a",
                "MASTER_PORT": "1",
            },
            Ranks(3, 4, 1),
        ),
    ],
)
def test_ranks_are_what_torchrun_says(
    variables: dict[str, str], expected: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its variables, or the process is alone."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert here() == expected


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("x", "2"), ("-1", "2")])
def test_ranks_that_make_no_sense_are_refused(
    rank: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"RANK={rank}"):
        here()
