"""One optimiser step by what it minimises: records against plain cross-entropy and the full loss.

    python -m benchmarks.train_step

Two sizes: the demo's student, and a small transformer under a vocabulary of 151,936, where almost
all of a step is the head. A step is what `stages.training.loop` makes of one batch: forward and
backward pass, clipping, AdamW. Candidates:

    reverse_kl, forward_kl, jsd   from records, by `stages.head_loss`
    cross_entropy                 of the realised token, by the same code
    plain cross_entropy           `torch.nn.functional.cross_entropy` over all logits at once
    full forward_kl               over all logits at once, of student and teacher (whose logits are
                                  there for nothing: its forward pass is not counted)
    TRL GKD, TRL distillation     where TRL is installed: its two losses, over whole logits and in
                                  chunks. The latter starts from the teacher's hidden states, so the
                                  teacher's head (of the student's size here) is counted

Memory is the peak of the resident memory of a process that runs three steps of one candidate, over
what was resident before the first: gradients and the optimiser's state are in it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks import trl_losses
from benchmarks.harness import ROOT, Goal, Line, Options, Report, Table, cost_line, interleave, main
from benchmarks.memory import resident
from stages.head_loss import head_loss
from stages.models import lm_head, response_hidden
from stages.objectives.f_divergence import JSD
from stages.objectives.likelihood import CrossEntropy, ForwardKL
from stages.objectives.records import ObjectiveFunction, TorchRecords
from stages.objectives.reverse_kl import ReverseKL
from stages.training.optim import clip_gradients
from storage.batch import Batch

FROM_RECORDS: dict[str, ObjectiveFunction] = {
    "reverse_kl": ReverseKL(),
    "forward_kl": ForwardKL(),
    "jsd": JSD(),
    "cross_entropy": CrossEntropy(),
}
PLAIN, FULL = "plain cross_entropy", "full forward_kl"
CANDIDATES = (*FROM_RECORDS, PLAIN, FULL, *trl_losses.installed())
WEIGHED = ("reverse_kl", "cross_entropy", PLAIN, FULL, *trl_losses.installed())
"""Whose memory is taken; other objectives need what `reverse_kl` does."""


@dataclass(frozen=True)
class Size:
    """A student and a batch."""

    vocabulary: int
    hidden: int
    layers: int
    sequences: int
    prompt: int
    response: int
    rows_per_chunk: int
    head: int
    """Ids of the head per position; the demo's, and about the mean at tau = 0.023 on text."""
    tail: int


SIZES = {
    "demo": Size(20, 64, 2, 64, 9, 30, 1024, 4, 1),
    "V = 151,936": Size(151_936, 256, 2, 4, 32, 64, 128, 5, 7),
}
QUICK = {"V = 1,000": Size(1000, 64, 1, 4, 4, 8, 16, 5, 7)}


class Steps:
    """One model, one batch, and a step for each candidate."""

    def __init__(self, size: Size) -> None:
        self.size = size
        torch.manual_seed(0)
        heads = max(1, size.hidden // 32)
        config = Qwen3Config(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            intermediate_size=3 * size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=size.hidden // heads,
            tie_word_embeddings=True,
        )
        self.model = Qwen3ForCausalLM(config).train()
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
        self.batch = make_batch(size)
        self.records = TorchRecords.from_batch(self.batch)
        self._teacher_TV: Tensor | None = None
        self._teacher_hidden: tuple[Tensor, Tensor] | None = None

    def run(self, candidate: str) -> None:
        """One optimiser step."""
        self._loss(candidate).backward()
        clip_gradients(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def _loss(self, candidate: str) -> Tensor:
        hidden_TD, head = response_hidden(self.model, self.batch), lm_head(self.model)
        if candidate in FROM_RECORDS:
            return head_loss(
                hidden_TD,
                head,
                self.records,
                FROM_RECORDS[candidate],
                rows_per_chunk=self.size.rows_per_chunk,
                normaliser=self.batch.tokens,
            )[0]
        if candidate == trl_losses.DISTILLATION:
            return trl_losses.distillation()(hidden_TD, head.weight, *self.teacher_hidden())
        logits_TV = functional.linear(hidden_TD, head.weight)
        if candidate == trl_losses.GKD:
            return trl_losses.gkd()(logits_TV, self.teacher())
        if candidate == PLAIN:
            return functional.cross_entropy(logits_TV, self.records.tok_T)
        return functional.kl_div(
            logits_TV.log_softmax(-1), self.teacher(), reduction="batchmean", log_target=True
        )

    def teacher(self) -> Tensor:
        """Log-probabilities of a teacher, made once."""
        if self._teacher_TV is None:
            logits_TV = torch.randn(self.batch.tokens, self.size.vocabulary)
            self._teacher_TV = logits_TV.log_softmax(-1)
        return self._teacher_TV

    def teacher_hidden(self) -> tuple[Tensor, Tensor]:
        """Hidden states of a teacher as wide as the student, and its head; made once."""
        if self._teacher_hidden is None:
            head_VD = torch.randn(self.size.vocabulary, self.size.hidden) / self.size.hidden**0.5
            self._teacher_hidden = torch.randn(self.batch.tokens, self.size.hidden), head_VD
        return self._teacher_hidden

    def prepare(self, candidate: str) -> None:
        """Make what a live teacher would hand over, so that it is not measured."""
        if candidate in (FULL, trl_losses.GKD):
            self.teacher()
        elif candidate == trl_losses.DISTILLATION:
            self.teacher_hidden()


def make_batch(size: Size) -> Batch:
    """Sequences of equal length with head-and-tail records; what the ids are costs nothing."""
    rng = np.random.default_rng(0)
    n, positions = size.sequences, size.sequences * size.response
    head, entries = size.head, size.head + size.tail
    stride = size.vocabulary // entries
    first_T = rng.integers(0, size.vocabulary, positions)
    ids_TE = (first_T[:, None] + stride * np.arange(entries)) % size.vocabulary
    mass_TH = rng.dirichlet(np.full(head + 1, 2.0), positions).astype(np.float32)
    rest_T = mass_TH[:, -1].copy()
    weight_TE = np.repeat(rest_T[:, None] / np.float32(size.tail), entries, axis=1)
    weight_TE[:, :head] = mass_TH[:, :head]
    exact_TE = np.broadcast_to(np.arange(entries) < head, weight_TE.shape)
    logp_T = rng.normal(-1.0, 0.3, positions).astype(np.float32)
    return Batch(
        seq_id=np.arange(n),
        prompt_id=np.arange(n),
        outcome=np.full(n, -1, np.int8),
        prompt=rng.integers(0, size.vocabulary, n * size.prompt),
        prompt_off=np.arange(n + 1) * size.prompt,
        tok=rng.integers(0, size.vocabulary, positions),
        tok_off=np.arange(n + 1) * size.response,
        ref_lp=logp_T,
        lp=logp_T + np.float32(0.1),
        ent=-logp_T,
        entry_off=np.arange(positions + 1) * entries,
        ids=ids_TE.ravel(),
        weight=weight_TE.ravel(),
        # The tail's too, for the objectives that read it.
        logp=np.log(np.maximum(weight_TE, 1e-6)).ravel(),
        exact=exact_TE.ravel().copy(),
        rest=rest_T,
    )


def run(options: Options) -> Report:
    """Time and memory of a step, for every candidate and size."""
    torch.set_num_threads(1)
    lines: list[Line] = []
    tables: list[Table] = []
    raw: dict[str, object] = {}
    for name, size in (QUICK if options.quick else SIZES).items():
        steps = Steps(size)
        repeat = 1 if size.vocabulary > 1000 else 8
        found = interleave(
            {one: _repeated(steps, one, repeat) for one in CANDIDATES}, options.rounds
        )
        memory = _memory(name, options.quick)
        raw[name] = {"seconds": found, "megabytes": memory}
        what = f"train step with reverse_kl, {name}"
        for against in ("cross_entropy", PLAIN):
            goals = (Goal("ratio", "<=", 1.10),)
            lines.append(cost_line(f"{what}: time", "s", found, "reverse_kl", against, goals=goals))
            ours, peer = memory["reverse_kl"], memory[against]
            lines.append(
                Line(
                    what=f"{what}: memory",
                    unit="MB",
                    ours=ours,
                    against=against,
                    peer=peer,
                    ratio=ours / peer,
                    goals=(Goal("ratio", "<=", 1.05),),
                )
            )
        base = statistics.median(found["cross_entropy"])
        rows = [
            [
                one,
                f"{1000 * statistics.median(found[one]) / repeat:.4g}",
                f"{statistics.median(found[one]) / base:.3f}",
                f"{memory[one]:.0f}" if one in memory else "",
            ]
            for one in CANDIDATES
        ]
        header = ("objective", "ms per step", "over cross_entropy", "MB")
        tables.append(Table(f"A train step, {name}, {steps.batch.tokens} positions", header, rows))
    return Report("Train step", lines, tables, [], raw)


def _repeated(steps: Steps, candidate: str, times: int) -> Callable[[], None]:
    def work() -> None:
        for _ in range(times):
            steps.run(candidate)

    return work


def _memory(size: str, quick: bool) -> dict[str, float]:
    """Growth of the peak resident memory over three steps of each candidate, in MB."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--child", size]
    command += ["--quick"] if quick else []
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def _children(size: Size) -> dict[str, float]:
    """Every candidate in a fork of this process: libraries are loaded, nothing else is done."""
    trl_losses.load()
    found: dict[str, float] = {}
    for candidate in WEIGHED:
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, json.dumps(_growth(size, candidate)).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            found[candidate] = json.loads(pipe.read())
        os.wait()
    return found


def _growth(size: Size, candidate: str) -> float:
    torch.set_num_threads(1)
    steps = Steps(size)
    steps.prepare(candidate)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = resident("VmRSS")
    for _ in range(3):
        steps.run(candidate)
    return resident("VmHWM") - before


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--child")
    parser.add_argument("--quick", action="store_true")
    parsed, _ = parser.parse_known_args()
    if parsed.child:
        chosen = (QUICK if parsed.quick else SIZES)[parsed.child]
        sys.stdout.write(json.dumps(_children(chosen)))
    else:
        main(run, __doc__)
