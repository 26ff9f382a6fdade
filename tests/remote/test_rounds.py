"""Rounds of training whose students, and what they hand on, lie on an object store."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stages.config.training import Student
from stages.job import Input, Job
from storage.copies import local_copy
from storage.files.remote import Remote
from storage.store import Store
from tests.world import World, make_job, make_world, run, weights


def job(world: World, store: Store, init: Input) -> Job[Any]:
    values = {"steps": 3, "batch_size": 8, "learning_rate": 3e-3, "rounds": 2}
    config = Student.model_validate(values)
    made = make_job(Path("anywhere"), "train", config, {"init": init, "data": world.records})
    return replace(made, store=store)


def test_the_second_round_fetches_what_the_first_has_handed_on_and_nobody_else_does(
    prefix: Remote, tmp_path: Path
) -> None:
    world = make_world(tmp_path / "world")
    found: list[dict[str, torch.Tensor]] = []
    for store in (Store(tmp_path / "store"), Store(prefix)):
        first = job(world, store, world.init)
        run(first)
        copy = local_copy(first.directory)
        assert (copy / "next-round").exists() == (store.root != prefix)
        second = job(world, store, Input(str(first.directory), first.key, store=store))
        run(second)
        assert (copy / "next-round" / "checkpoint.pt").exists()
        found.append(weights(local_copy(second.directory)))
    here, there = found
    assert all(torch.equal(here[name], there[name]) for name in here)
