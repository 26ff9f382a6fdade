"""Generated answers: one zstd-compressed JSON object a line, and what they say about accuracy.

The figures come from the file alone, so every figure can be checked against its answers.
Imports no torch.
"""

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import zstandard

from stages.reporting.table import PASS
from storage.errors import DataError
from storage.files.place import Place
from storage.files.write import create_once
from storage.schema import OUTCOME

ANSWERS = "answers.jsonl.zst"
"""In an `evaluate` set: every generated answer with its outcome."""
RIGHT, UNKNOWN = OUTCOME["right"], OUTCOME["unknown"]


@dataclass(frozen=True)
class Answer:
    """One answer of the model to one prompt."""

    prompt_id: int
    """Row of the prompt in its file or task."""
    sample: int
    """0 to n - 1; 0 for the greedy answer."""
    greedy: bool
    tokens: int
    """Length of the response, the end token included."""
    finish: str
    """`stop` or `length`."""
    outcome: int
    """A code of `storage.schema.OUTCOME`; unknown where the prompt has no reference answer."""
    text: str


def write_answers(path: Place, answers: Iterable[Answer]) -> None:
    """Write the file atomically; an existing one is kept.

    Raises:
        RetryError: a write failed.
    """
    lines = "".join(json.dumps(asdict(answer)) + "\n" for answer in answers)
    create_once(path, zstandard.ZstdCompressor(write_checksum=True).compress(lines.encode()))


def read_answers(path: Place) -> list[Answer]:
    """The answers in a file made by `write_answers`.

    Raises:
        DataError: it is damaged.
    """
    try:
        plain = zstandard.ZstdDecompressor().decompress(path.read_bytes())
        return [Answer(**json.loads(line)) for line in plain.splitlines()]
    except (zstandard.ZstdError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: damaged ({error}). Delete it and run `evaluate` again to make "
            "the answers again."
        ) from error


def accuracy(answers: Iterable[Answer]) -> dict[str, float | None]:
    """Figures over sampled and greedy answers; shares are of 1.

    Returns:
        `accuracy` with `accuracy_se` and `pass@k` over prompts with a reference answer, `greedy`,
        `tokens` (mean length of sampled responses) and `truncated` (share that hit the limit).
        `unparsed` and `cut` are the shares of sampled answers that are not right because there was
        no answer to read, or not before the limit. What there are no answers for is absent.
    """
    everything = list(answers)
    sampled = [answer for answer in everything if not answer.greedy]
    greedy = [a.outcome == RIGHT for a in everything if a.greedy and a.outcome != UNKNOWN]
    by_prompt: dict[int, list[bool]] = {}
    for answer in sampled:
        if answer.outcome != UNKNOWN:
            by_prompt.setdefault(answer.prompt_id, []).append(answer.outcome == RIGHT)
    out: dict[str, float | None] = {}
    if by_prompt:
        # Prompts are the independent observations: the standard error is that of their means.
        means = [statistics.fmean(right) for right in by_prompt.values()]
        several = len(means) > 1
        out["accuracy"] = statistics.fmean(means)
        out["accuracy_se"] = statistics.stdev(means) / math.sqrt(len(means)) if several else None
        for k in ks_up_to(min(map(len, by_prompt.values()))):
            out[f"{PASS}{k}"] = statistics.fmean(
                pass_at_k(len(right), sum(right), k) for right in by_prompt.values()
            )
        judged = [a.outcome for a in sampled if a.outcome != UNKNOWN]
        for name in ("unparsed", "cut"):
            out[name] = judged.count(OUTCOME[name]) / len(judged)
    if greedy:
        out["greedy"] = statistics.fmean(greedy)
    if sampled:
        out["tokens"] = statistics.fmean(a.tokens for a in sampled)
        out["truncated"] = statistics.fmean(a.finish == "length" for a in sampled)
    return out


def right_by_prompt(answers: Iterable[Answer]) -> dict[int, float]:
    """Share of right ones among the judged sampled answers to each prompt."""
    found: dict[int, list[bool]] = {}
    for answer in answers:
        if not answer.greedy and answer.outcome != UNKNOWN:
            found.setdefault(answer.prompt_id, []).append(answer.outcome == RIGHT)
    return {prompt: statistics.fmean(right) for prompt, right in found.items()}


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that one of k answers is right, unbiased from n of which `right` were right.

    1 - C(n - right, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1).
    """
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def ks_up_to(n: int) -> list[int]:
    """1, 2, 4, ... and n itself."""
    return sorted({1 << i for i in range(n.bit_length())} | {n})
