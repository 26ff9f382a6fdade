"""How the tokenizers in this folder were made: by other versions of transformers, TRL and peft.

    python make.py original             by hand, as repositories of 2023 have it
    python make.py save saved-4.46      what `save_pretrained` makes of `original`
    python make.py pad pad-4.46         the same after a padding token was added
    python make.py chat chat-4.46       after a padding token and 3 tokens, and a larger head
    python make.py sft trl-0.12         what TRL's SFTTrainer saves after a step
    python make.py lora peft-0.13       what is saved after a LoRA adapter was merged

The last argument names the directory after the version that the environment has:

    4.46   transformers 4.46.3, tokenizers 0.20.3, TRL 0.12.2, peft 0.13.2
    4.57   transformers 4.57.1, tokenizers 0.22.2, TRL 0.24.0
    5.19   transformers 5.19.0, tokenizers 0.23.3, TRL 1.16.0, peft 0.21.2

Weights are thrown away; tests make their own.
"""

import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FAMILIES = ("qwen", "llama")
KEPT = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)
TEXT = (
    "the cat sat on the mat and the dog ran to the other hat that they had then there is a ",
    "one two three 123 456 789 sum = 12 + 30 = 42, and so it is that the rest of them are here",
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] "
    "+ ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}\n"
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen():
    """Byte-level BPE with NFC and the regular expression of Qwen2, ChatML, ends at <|im_end|>."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made.add_special_tokens(special)
    made.add_tokens(["<think>", "</think>"])
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 64,
        "chat_template": CHATML,
    }
    return made, config


def llama():
    """BPE over characters with byte fallback, spaces as in sentencepiece, begins with <s>."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    made.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=[*special, *fallback], show_progress=False
        ),
    )
    content = json.loads(made.to_str())
    content["added_tokens"] = content["added_tokens"][:3]  # bytes are ordinary tokens
    made = Tokenizer.from_str(json.dumps(content))
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": None,
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 64,
        "chat_template": INSTRUCT,
    }
    return made, config


def write_original(family):
    """As repositories of 2023 have it: merges as strings, defaults left out, template in JSON."""
    made, config = {"qwen": qwen, "llama": llama}[family]()
    content = json.loads(made.to_str())
    model = content["model"]
    model["merges"] = [" ".join(pair) for pair in model["merges"]]
    for name in ("byte_fallback", "ignore_merges"):
        if not model.get(name):
            model.pop(name, None)
    directory = HERE / family / "original"
    directory.mkdir(parents=True, exist_ok=True)
    shown = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    (directory / "tokenizer.json").write_text(shown)
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def tiny(tokenizer):
    """A model that is fine-tuned for one step."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
        )
    )


def write(how, family, directory):
    """What a version makes of the original, below `directory`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(HERE / family / "original")
    if how in ("pad", "chat"):
        tokenizer.add_special_tokens({"pad_token": "<|added_pad|>"})
    if how == "chat":
        tokenizer.add_tokens(["<tool_call>", "</tool_call>", "<note>"])
        tiny(tokenizer).resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    if how == "sft":
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer  # type: ignore[reportMissingImports]

        if tokenizer.pad_token is None:  # as TRL's own examples do
            tokenizer.pad_token = tokenizer.eos_token
        options = {"max_steps": 1, "report_to": "none", "use_cpu": True, "save_strategy": "no"}
        options |= {"dataset_text_field": "text", "per_device_train_batch_size": 2}
        trainer = SFTTrainer(
            model=tiny(tokenizer),
            args=SFTConfig(output_dir=str(directory), **options),
            train_dataset=Dataset.from_dict({"text": list(TEXT)}),
            processing_class=tokenizer,
        )
        trainer.train()
        trainer.save_model(str(directory))
    elif how == "lora":
        from peft import LoraConfig, get_peft_model  # type: ignore[reportMissingImports]

        adapted = get_peft_model(tiny(tokenizer), LoraConfig(task_type="CAUSAL_LM", r=2))
        adapted.merge_and_unload().save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    else:
        tokenizer.save_pretrained(directory)


def main():
    """Make one directory for each family."""
    how = sys.argv[1]
    for family in FAMILIES:
        if how == "original":
            write_original(family)
            continue
        target = HERE / family / sys.argv[2]
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as work:
            write(how, family, Path(work))
            for name in KEPT:
                if (Path(work) / name).exists():
                    (target / name).write_bytes((Path(work) / name).read_bytes())


if __name__ == "__main__":
    main()
