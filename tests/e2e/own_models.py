"""A user's own material: two differently shaped models that share a large byte-level BPE."""

import itertools
import json
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.world import write_model

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@lru_cache
def large_byte_bpe(ids: int = 135_000) -> PreTrainedTokenizerFast:
    """Byte-level BPE with all two-byte and many three-byte merges: more ids than 17 bits hold."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = list(itertools.product(letters, letters))
    triples = itertools.islice(itertools.product(pairs, letters), ids - len(pairs) - 256)
    merges = pairs + [("".join(pair), letter) for pair, letter in triples]
    words = letters + ["".join(merge) for merge in merges]
    vocab = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|start|>"]})
    fast.chat_template = TEMPLATE
    return fast


def write_teacher(directory: Path, tokenizer: PreTrainedTokenizerFast) -> int:
    """An untied Llama with grouped-query attention and padded vocabulary rows; returns its V."""
    rows = (len(tokenizer) + 127) // 64 * 64
    write_model(
        directory,
        1,
        words=tokenizer,
        by=1.0,
        vocab_size=rows,
        hidden_size=64,
        intermediate_size=96,
        context=128,
        family="llama",
    )
    return rows


def write_student(directory: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A smaller, tied Qwen3 over the same tokenizer, without padded rows."""
    write_model(
        directory,
        2,
        words=tokenizer,
        by=1.0,
        hidden_size=32,
        intermediate_size=48,
        heads=1,
        context=128,
        tied=True,
    )


def write_prompts(file: Path, count: int, first: int = 0) -> None:
    """Chat prompts with answers, one JSON object a line."""
    with file.open("w") as stream:
        for index in range(first, first + count):
            messages = [{"role": "user", "content": f"What is {index} + 1? Answer briefly."}]
            stream.write(json.dumps({"question": messages, "answer": str(index + 1)}) + "\n")
