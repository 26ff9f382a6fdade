"""The memory that `plan` predicts against the peak of real runs.

    python -m benchmarks.planned_memory [--hidden 512] [--layers 8]

Makes a model from scratch on the sources of Python's standard library, trains it for two steps in
float32, under autocast and with gradient checkpointing, and scores a few sequences with it: each
node by `afterglow run --here` in a process of its own, whose peak of resident memory is compared
with the `memory` of `afterglow plan`. Runs on the CPU; takes a few minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPE = """
seed = 1
store = "{store}"

[teacher]
path = "pretrain:float32"
dtype = "float32"

[corpus]
text = ["{{stdlib}}/json", "{{stdlib}}/email"]
suffix = ".py"
sequence_length = 256
sequences_per_part = 512
tokenizer = {{ kind = "byte_bpe", vocab_size = 8192 }}

[pretrain.float32]
steps = 2
batch_size = 16
architecture = {{ hidden_size = {hidden}, layers = {layers}, heads = 8, max_positions = 256 }}
run = {{ tokens_per_microbatch = {tokens}, device = "cpu" }}

[pretrain.checkpointing]
seed = 1
steps = 2
batch_size = 16
architecture = {{ hidden_size = {hidden}, layers = {layers}, heads = 8, max_positions = 256 }}
run = {{ tokens_per_microbatch = {tokens}, gradient_checkpointing = true, device = "cpu" }}

[pretrain.bfloat16]
seed = 2
steps = 2
batch_size = 16
dtype = "bfloat16"
architecture = {{ hidden_size = {hidden}, layers = {layers}, heads = 8, max_positions = 256 }}
run = {{ tokens_per_microbatch = {tokens}, device = "cpu" }}

[teacher-logits]
source = "corpus"
limit = 32
run = {{ device = "cpu", tokens_per_batch = 2048 }}

[teacher-logits.record]
kind = "head_tail"
candidates = 0

[train]
steps = 2
batch_size = 16
init = "scratch"
objective = {{ name = "forward_kl" }}
architecture = {{ hidden_size = {hidden}, layers = {layers}, heads = 8, max_positions = 256 }}
run = {{ tokens_per_microbatch = {tokens}, device = "cpu" }}
"""
NODES = (
    "pretrain.float32",
    "pretrain.checkpointing",
    "pretrain.bfloat16",
    "teacher-logits",
    "train.forward_kl",
)


def main() -> None:
    """Print one line a node."""
    parser = argparse.ArgumentParser(description="Predicted memory against the peak of real runs.")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=2048)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        recipe = Path(scratch) / "recipe.toml"
        recipe.write_text(RECIPE.format(store=store, **vars(asked)))
        _peak("run", "corpus", recipe)
        sys.stdout.write(f"{'node':24}{'predicted':>12}{'measured':>12}{'ratio':>8}\n")
        for node in NODES:  # what is read is there by then, as the plan of a running chain sees it
            predicted = _planned(node, recipe) / 2**20
            peak = _peak("run", node, recipe) / 2**20
            sys.stdout.write(
                f"{node:24}{predicted:8.0f} MiB{peak:8.0f} MiB{predicted / peak:8.2f}\n"
            )
            sys.stdout.flush()


def _planned(node: str, recipe: Path) -> int:
    command = [sys.executable, "-m", "pipeline", "plan", node, "--config", str(recipe)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])["nodes"]
    return next(one["memory"]["bytes"] for one in found if one["node"] == node)


def _peak(verb: str, node: str, recipe: Path) -> int:
    """Peak of the resident memory of one command, in bytes."""
    command = [sys.executable, "-m", "pipeline", verb, node, "--here", "--config", str(recipe)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            errors.seek(0)
            raise SystemExit(errors.read())
    return usage.ru_maxrss << 10


if __name__ == "__main__":
    main()
