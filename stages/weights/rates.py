"""What compares the responses to a prompt, read from the set before training, by column."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from stages.weights.base import GroupSums, PassRates, Responses, Weight
from storage.batch import Ints
from storage.errors import DataError
from storage.files.place import Place
from storage.manifest import read_manifest
from storage.schema import OUTCOME
from storage.shard import PartFile


def read_rates(directory: Place) -> PassRates:
    """Share of right responses of every prompt in the `train` split; one part in memory at a time.

    Raises:
        DataError: a prompt has no response that a verifier has checked, or no prompt has two.
    """
    counted = np.zeros((0, 3), np.int64)
    for part in read_manifest(directory).parts:
        if part.split != "train":
            continue
        with PartFile(directory / part.file, part.bytes) as file:
            rows = [
                file.read(group, ["prompt_id", "outcome"]) for group in range(len(part.row_groups))
            ]
        prompt_id_N = np.concatenate([one["prompt_id"] for one in rows])
        outcome_N = np.concatenate([one["outcome"] for one in rows])
        right_N, known_N = outcome_N == OUTCOME["right"], outcome_N != OUTCOME["unknown"]
        counted = _sum_by_prompt(
            np.concatenate([counted, np.stack([prompt_id_N, right_N, known_N], axis=1)])
        )
    prompt_id_P, right_P, known_P = counted.T
    if not known_P.all():
        raise DataError(
            f"{directory}: {int((known_P == 0).sum())} of {len(known_P)} prompts have no response "
            "with a known outcome, so they have no pass rate. Give the rollouts a verifier and "
            "prompts with answers, or remove the weight."
        )
    if known_P.max(initial=0) < 2:
        raise DataError(
            f"{directory}: every prompt has one response, so its pass rate is its outcome. Set "
            "rollouts.n to 4 or more, or remove the weight."
        )
    return PassRates(prompt_id_P, right_P / known_P)


def read_groups(directory: Place, weights: Sequence[Weight]) -> dict[str, GroupSums]:
    """What weights that say `reads_groups` compare responses of the `train` split by; by name.

    Raises:
        DataError: no prompt has two responses.
    """
    readers = [weight for weight in weights if weight.reads_groups]
    if not readers:
        return {}
    found: list[Responses] = []
    for part in read_manifest(directory).parts:
        if part.split == "train":
            with PartFile(directory / part.file, part.bytes) as file:
                found += [_responses(file, group) for group in range(len(part.row_groups))]
    every = Responses(
        *(
            np.concatenate([getattr(one, field.name) for one in found])
            for field in fields(Responses)
        )
    )
    prompt_id_P, place_N = np.unique(every.prompt_id_N, return_inverse=True)
    if np.bincount(place_N).max(initial=0) < 2:
        raise DataError(
            f"{directory}: every prompt has one response, so `{readers[0].name}` has nothing to "
            "compare it with. Set rollouts.n to 4 or more, or remove the weight."
        )
    sums: dict[str, GroupSums] = {}
    for weight in readers:
        score_N = weight.group_score(every)
        right_P, wrong_P = (np.full(len(prompt_id_P), -np.inf) for _ in range(2))
        np.logaddexp.at(right_P, place_N[every.right_N], score_N[every.right_N])
        np.logaddexp.at(wrong_P, place_N[every.wrong_N], score_N[every.wrong_N])
        sums[weight.name] = GroupSums(prompt_id_P, right_P, wrong_P)
    return sums


def _responses(file: PartFile, group: int) -> Responses:
    """The responses of a row group, with the mean of what is stored of each token."""
    rows = file.read(group, ["prompt_id", "outcome", "lp", "ref_lp"])
    length_N = np.maximum(1, rows.lengths("position"))
    row_T = np.repeat(np.arange(len(rows)), rows.lengths("position"))
    means = (
        np.bincount(row_T, weights=rows[name], minlength=len(rows)) / length_N
        for name in ("lp", "ref_lp")
    )
    return Responses(rows["prompt_id"], rows["outcome"], *means)


def has_outcomes(directory: Place) -> bool:
    """Whether any sequence of the `train` split has a known outcome; reads up to the first."""
    for part in read_manifest(directory).parts:
        if part.split == "train":
            with PartFile(directory / part.file, part.bytes) as file:
                for group in range(len(part.row_groups)):
                    if (file.read(group, ["outcome"])["outcome"] != OUTCOME["unknown"]).any():
                        return True
    return False


def _sum_by_prompt(counted_R3: Ints) -> Ints:
    """One row [prompt, right, known] per prompt, by rising prompt."""
    prompt_id_P, place_R = np.unique(counted_R3[:, 0], return_inverse=True)
    sums_P2 = np.zeros((len(prompt_id_P), 2), np.int64)
    np.add.at(sums_P2, place_R, counted_R3[:, 1:])
    return np.concatenate([prompt_id_P[:, None], sums_P2], axis=1)
