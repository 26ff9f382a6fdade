"""`evaluate`: how good a model is at the task, and how close to the teacher.

Inputs by role:

    model     the model to evaluate
    records   a `teacher-logits` set; its held-out split gives KL and calibration
    text      a set of sequences; its held-out split gives loss, calibration and acceptance
    teacher   run beside the model on `text`, and for the gradients of the whole distribution
    data      the records a student learnt from: their gradients, and their size
    at        the model at whose weights gradients are compared, if not the evaluated one

All but the first may be absent. Output:

    answers.jsonl.zst   every generated answer with its outcome, where there are prompts
    positions.npz       what the model says at positions of held-out records, up to 65,536 tokens
    evaluation.json     `metrics` (flat numbers), the bins of the calibration, and what they rest on

All files are written atomically; a killed run continues after the last one it finished.

Two kinds of figures, kept side by side on purpose: accuracy under a verifier (what is wanted), and
divergence from the teacher on held-out rollouts (what is trained). Over-fitting a fixed data set
shows as the second falling while the first does not rise.
"""

import json
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stages.config.data import Sampling
from stages.config.evaluation import Evaluate
from stages.counter import hash64
from stages.data.prompts import Prompts, load_prompts
from stages.data.verifiers import Check, open_verifier
from stages.engines.base import (
    Completion,
    Generator,
    Request,
    check_finite,
    needed_context,
    sequence_seed,
)
from stages.engines.open import open_generator
from stages.engines.stop_strings import text_before
from stages.evaluation.answers import ANSWERS, Answer, accuracy, read_answers, write_answers
from stages.evaluation.positions import POSITIONS, Seen, write_positions
from stages.job import Job
from stages.models.descent import data_tokenizer, manifest_of_model
from stages.models.facts import model_facts
from stages.models.identity import check_tokenizer, local_directory, tokenizer_of
from stages.models.tokenizer import load_tokenizer
from stages.progress import Progress, advance
from stages.reporting.table import EVALUATION
from storage.errors import EngineError
from storage.files.write import create_once
from storage.manifest import Manifest, build_manifest, read_manifest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def run(job: Job[Evaluate]) -> Manifest:
    """Answer the prompts, measure on what is held out, write both down.

    Raises:
        DataError: model, prompts or records cannot be read, or do not fit each other.
        ConfigError, EngineError: as the engine.
        RetryError: a write failed.
    """
    config, model = job.config, local_directory(job.inputs["model"])
    for role in ("records", "text", "data"):  # figures on another vocabulary would mean nothing
        if role in job.inputs:
            directory = job.inputs[role].directory
            expected = data_tokenizer(directory, read_manifest(directory))
            check_tokenizer(expected, tokenizer_of(model), str(directory), str(model))
    job.directory.mkdir(parents=True, exist_ok=True)
    answers, evaluation = job.directory / ANSWERS, job.directory / EVALUATION
    positions = job.directory / POSITIONS
    made_here = manifest_of_model(model)
    prompts = load_prompts(config.prompts, model) if config.prompts is not None else None
    if prompts is not None and not answers.exists():
        write_answers(answers, _answers(job, model, prompts))
    if not evaluation.exists():
        seen = Seen()
        found: dict[str, object] = dict(accuracy(read_answers(answers))) if answers.exists() else {}
        if set(job.inputs) != {"model"}:
            # Imported here and not above: the engine's settings must precede torch.
            from stages.evaluation.measure import measure

            found |= measure(job, model, seen)
        log.info("%s: %s", job.name, ", ".join(f"{name} {value}" for name, value in found.items()))
        if (kept := seen.positions.result()) is not None:
            write_positions(positions, kept)
        content = {
            "metrics": found,
            "sampling": config.sampling.model_dump(mode="json") if config.prompts else None,
            "n": config.n,
            "guarantee": made_here.meta.get("guarantee") if made_here else None,
            "calibration": seen.calibration,
        }
        create_once(evaluation, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return build_manifest(
        job.directory,
        job.identity(
            "metrics",
            teacher=made_here.teacher if made_here else None,
            meta={
                "metrics": json.loads(evaluation.read_bytes())["metrics"],
                "prompts": prompts.report.to_json() if prompts else None,
                "template": prompts.template if prompts else None,
            },
        ),
        files=[
            EVALUATION,
            *([ANSWERS] if config.prompts is not None else []),
            *([POSITIONS] if positions.exists() else []),
        ],
    )


def _answers(job: Job[Evaluate], model: Path, prompts: Prompts) -> list[Answer]:
    """All answers, sampled ones first, in the order of prompts."""
    config, facts = job.config, model_facts(model)
    prompts.check_context(facts.context)
    longest = config.sampling.max_tokens
    passes = [(config.sampling, config.n)]
    if config.greedy:
        passes.append((config.sampling.greedy, 1))
    with open_verifier(config.verifier) as check:
        total = len(prompts) * sum(n for _, n in passes)
        opened = open_generator(
            model,
            dtype=job.inputs["model"].dtype,
            run=config.run,
            max_model_len=needed_context(facts, prompts.longest, longest, config.run),
            seed=job.seed,
        )
        with opened as generator, Progress(f"{job.name}, answers", total, "answers"):
            drawn = [_draw(generator, prompts, *one, job.seed) for one in passes]
        for completions in drawn:
            for completion in completions:
                check_finite(completion, model, job.inputs["model"].dtype)
        tokenizer = load_tokenizer(model)
        return [
            answer
            for (sampling, n), completions in zip(passes, drawn, strict=True)
            for answer in _verified(completions, prompts, n, sampling, tokenizer, check)
        ]


def _draw(
    generator: Generator, prompts: Prompts, sampling: Sampling, n: int, seed: int
) -> list[Completion]:
    """n completions of every prompt: n for the first prompt, n for the second, ...

    Seeds do not depend on the model, so all models of a table draw with the same random
    numbers, which takes some noise out of their differences.

    Raises:
        EngineError: the engine left a request unanswered.
    """
    own = int(hash64(seed, zlib.crc32(b"evaluate"))[0])
    asked = range(len(prompts) * n)
    requests = (Request(i, prompts[i // n].ids, sequence_seed(own, i)) for i in asked)
    done: dict[int, Completion] = {}
    for answer in generator.generate(requests, sampling):
        done[answer.seq_id] = answer
        advance(tokens=len(answer.tok))
    lost = [i for i in asked if i not in done]
    if lost:
        raise EngineError(
            f"the engine ended with {len(lost)} of {len(asked)} requests unanswered (the first is "
            f"number {lost[0]}); run again"
        )
    return [done[i] for i in asked]


def _verified(
    completions: list[Completion],
    prompts: Prompts,
    n: int,
    sampling: Sampling,
    tokenizer: "PreTrainedTokenizerBase",
    check: Check,
) -> Iterator[Answer]:
    """Decoded and verified answers."""
    texts = [
        text_before(
            str(tokenizer.decode(done.tok.tolist(), skip_special_tokens=True)), sampling.stop
        )
        for done in completions
    ]
    references = [prompts.answers[done.seq_id // n] for done in completions]
    outcomes = check(texts, references, [done.finish == "length" for done in completions]).tolist()
    for done, text, outcome in zip(completions, texts, outcomes, strict=True):
        yield Answer(
            prompt_id=int(prompts.prompt_ids[done.seq_id // n]),
            sample=done.seq_id % n,
            greedy=sampling.temperature == 0,
            tokens=len(done.tok),
            finish=done.finish,
            outcome=outcome,
            text=text,
        )
