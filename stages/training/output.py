"""The trained model as a Hugging Face directory, and the manifest of its set."""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from stages.job import Job
from stages.models.identity import described_tokenizer
from stages.models.model import load_tokenizer
from stages.models.text_model import processor_files
from stages.models.tokenizer import copy_tokenizer
from storage.files.write import disk_errors, sync_directory
from storage.manifest import Manifest, build_manifest


def write_model(
    model: PreTrainedModel, directory: Path, tokenizer_from: Path, dtype: torch.dtype, work: Path
) -> list[str]:
    """Write weights in `dtype`, configuration and tokenizer into `directory`; returns file names.

    Everything is made in `work` and renamed, so a file under its final name is whole. Tokenizer
    files are copied byte for byte: saving through the tokenizer class reformats them, and their
    digests are what later stages compare. A model with a vision part takes the files of its image
    processor along, without which vLLM does not serve it. The model is converted in place.

    Raises:
        RetryError: the disk refused.
    """
    staging = work / "model"
    shutil.rmtree(staging, ignore_errors=True)
    disable_progress_bar()
    model.generation_config = _generation_config(model, load_tokenizer(tokenizer_from))
    with disk_errors(directory):
        model.to(dtype).save_pretrained(staging)  # type: ignore[reportArgumentType]
        copy_tokenizer(tokenizer_from, staging)
        for file in processor_files(model):
            shutil.copyfile(file, staging / file.name)
        names = sorted(path.name for path in staging.iterdir())
        for name in names:
            with (staging / name).open("rb") as stream:
                os.fsync(stream.fileno())
            (staging / name).rename(directory / name)
        sync_directory(directory)
    return names


def _generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> GenerationConfig:
    """Ends at the tokenizer's end token and at those the model knew before; nothing else is set.

    A base model fine-tuned under an instruct tokenizer needs both. Sampling settings of the model
    it came from are not the student's.
    """
    before = getattr(model.generation_config, "eos_token_id", None)
    known = before if isinstance(before, list) else [before]
    ends = [end for end in dict.fromkeys([tokenizer.eos_token_id, *known]) if end is not None]
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=pad if pad is not None else tokenizer.eos_token_id,
    )


def model_manifest(
    job: Job[Any],
    files: Iterable[str | Path],
    meta: Mapping[str, Any],
    teacher: Mapping[str, Any] | None,
) -> Manifest:
    """Manifest of a trained model; `teacher` is the one its data descends from."""
    directory = job.site
    return build_manifest(
        directory,
        job.identity(
            "model",
            teacher=teacher,
            tokenizer=described_tokenizer(directory),
            meta=meta,
        ),
        files=files,
    )
