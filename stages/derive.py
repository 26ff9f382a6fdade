"""`derive`: a model set made without training, from a GGUF file or from layers of another model."""

import logging
from pathlib import Path

from stages.config.derive import Derive
from stages.job import Job
from stages.models.gguf import load_gguf
from stages.models.identity import local_directory
from stages.models.prune import prune_directory
from stages.training import checkpoint, remote_checkpoint
from stages.training.output import model_manifest, write_model
from storage.manifest import Manifest

log = logging.getLogger(__name__)


def run(job: Job[Derive]) -> Manifest:
    """Read or prune the model, write it into the set.

    Raises:
        ConfigError: the model cannot be pruned so, or a package is not installed.
        DataError: the file or model is missing, unreadable, or not the one that was asked for.
    """
    config = job.config
    with checkpoint.workspace(job.site) as work:
        if config.gguf is not None:
            tokenizer = work / "tokenizer"
            model, digest = load_gguf(config.gguf, config.sha256, tokenizer)
            meta: dict[str, object] = {"gguf": Path(config.gguf).name, "sha256": digest}
        else:
            tokenizer = local_directory(job.inputs["model"])
            model = prune_directory(tokenizer, config.layers)
            meta = {"layers": list(config.layers)}
        meta |= {"parameters": model.num_parameters(), "dtype": str(model.dtype).split(".")[-1]}
        log.info("%s: %.1f million parameters", job.name, model.num_parameters() / 1e6)
        files = write_model(model, job.site, tokenizer, model.dtype, work)
        manifest = model_manifest(job, files, meta, teacher=None)
        manifest = remote_checkpoint.send_model(job, manifest)
        checkpoint.discard(work)
    return manifest
