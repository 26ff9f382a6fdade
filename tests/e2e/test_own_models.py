"""The README's recipe for a user's own teacher, student and prompts, on other shapes than ours."""

from pathlib import Path

import pytest

from storage.manifest import read_manifest
from storage.stream import read_split
from tests.command import Outcome, afterglow
from tests.e2e.own_models import large_byte_bpe, write_prompts, write_student, write_teacher

CONFIG = """
[teacher]
path = "{folder}/teacher"
dtype = "float32"

[student]
path = "{folder}/student"
dtype = "float32"

[sft-data]
prompts = {{ path = "{folder}/sft.jsonl", field = "question" }}
sampling = {{ max_tokens = 6 }}

[sft]
epochs = 1
batch_size = 4
learning_rate = 1e-3

[rollouts]
prompts = {{ path = "{folder}/opd.jsonl", field = "question" }}
sampling = {{ max_tokens = 6 }}
n = 2
holdout = 0.2

[train]
epochs = 1
batch_size = 4
learning_rate = 1e-3

[evaluate]
prompts = {{ path = "{folder}/eval.jsonl", field = "question" }}
sampling = {{ max_tokens = 6 }}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    tokenizer = large_byte_bpe()
    assert len(tokenizer) > 1 << 17
    write_teacher(folder / "teacher", tokenizer)
    write_student(folder / "student", tokenizer)
    write_prompts(folder / "sft.jsonl", 8)
    write_prompts(folder / "opd.jsonl", 10, first=100)
    write_prompts(folder / "eval.jsonl", 4, first=200)
    (folder / "my.toml").write_text(CONFIG.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def chain(folder: Path) -> Outcome:
    done = afterglow(
        "run", "train", "report", "--config", folder / "my.toml", store=folder / "store"
    )
    assert done.code == 0, done.err
    return done


def test_the_chain_ends_with_the_table(chain: Outcome) -> None:
    assert "reverse_kl" in chain.out


def test_records_hold_ids_beyond_17_bits_and_sum_to_one(chain: Outcome, folder: Path) -> None:
    directory = next((folder / "store").glob("teacher-logits-*"))
    vocabulary = len(large_byte_bpe())
    largest = 0
    for batch in read_split(directory, "train"):
        largest = max(largest, int(batch.ids.max()))
        starts = batch.entry_off[:-1]
        totals = [
            float(batch.weight[a:b].sum()) for a, b in zip(starts, batch.entry_off[1:], strict=True)
        ]
        assert totals == pytest.approx([1.0] * len(totals), abs=1e-5)
    assert 1 << 17 < largest < vocabulary


def test_the_students_prompts_were_rendered_with_the_chat_template(
    chain: Outcome, folder: Path
) -> None:
    directory = next((folder / "store").glob("rollouts-*"))
    batch = next(iter(read_split(directory, "train")))
    prompt = batch.prompt[batch.prompt_off[0] : batch.prompt_off[1]]
    text = str(large_byte_bpe().decode(prompt.tolist()))
    assert text.startswith("<|start|>user\nWhat is ")
    assert text.endswith("<|end|><|start|>assistant\n")


def test_the_students_directory_is_a_hugging_face_model(chain: Outcome, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = Path(chain.result["sets"]["train.reverse_kl"])
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert model.config.model_type == "qwen3"
    assert tokenizer.chat_template
    assert read_manifest(directory).teacher is not None
