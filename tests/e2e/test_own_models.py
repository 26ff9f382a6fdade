"""A user's own teacher, student and prompts, shaped unlike ours, from `afterglow init` on."""

from pathlib import Path

import pytest

from storage.manifest import read_manifest
from storage.stream import read_split
from tests.command import Outcome, afterglow
from tests.e2e.own_models import large_byte_bpe, write_prompts, write_student, write_teacher

SMALL = ("sft.batch_size=4", "rollouts.n=2", "rollouts.holdout=0.2", "train.batch_size=4")
RATES = ("sft.learning_rate=1e-3", "train.learning_rate=1e-3")


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
    models = ("--teacher", folder / "teacher", "--student", folder / "student")
    prompts = ("--sft-prompts", folder / "sft.jsonl", "--prompts", folder / "opd.jsonl")
    more = ("--eval-prompts", folder / "eval.jsonl", "--max-tokens", "6", "--dtype", "float32")
    made = afterglow("init", *models, *prompts, *more, "--into", folder / "my.toml")
    assert made.code == 0, made.err
    return folder


@pytest.fixture(scope="module")
def chain(folder: Path) -> Outcome:
    small = [part for override in (*SMALL, *RATES) for part in ("--set", override)]
    recipe = ("--config", folder / "my.toml", *small)
    done = afterglow("run", "train", "report", *recipe, store=folder / "store")
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


def test_no_text_comes_between_the_stages(chain: Outcome, folder: Path) -> None:
    """The teacher scores the ids that were drawn, also where the text has another encoding."""
    drawn, scored = (
        {
            int(batch.seq_id[i]): batch.tok[batch.tok_off[i] : batch.tok_off[i + 1]].tolist()
            for directory in (folder / "store").glob(f"{stage}-*")
            for batch in read_split(directory, "train")
            for i in range(len(batch))
        }
        for stage in ("rollouts", "teacher-logits")
    )
    assert drawn
    assert scored == drawn
    words = large_byte_bpe()
    assert any(words(words.decode(ids))["input_ids"] != ids for ids in drawn.values())


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
