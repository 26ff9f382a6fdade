"""`corpus`: tokenises text files, or a built-in task, once into sequences.

Text: documents are encoded in the order of the files, each followed by the end token, and the
stream is split into windows; the prompt of a window is the begin token, its response the rest.
Task: each problem gives one sequence, its worked solution followed by the end token. No model
sampled these sequences, so there is no `ref_lp` and there are no candidates.

Sequences are shuffled; the last `holdout` of them form split `holdout`. The set keeps its tokenizer
in `tokenizer/`. `plan` needs the number of tokens, so the first process makes tokenizer and token
ids in `.work/prepared`. The directory gets its name only when complete, so racing processes agree
on one.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.config.corpus import FORMER_PART, Corpus
from stages.counter import shuffled
from stages.data.sources import corpus_files
from stages.data.tasks import task
from stages.generation import held_out_count
from stages.job import Job, ShardSpec
from stages.models.descent import TOKENIZER
from stages.models.identity import described_tokenizer, in_footer
from stages.models.tokenizer import copy_tokenizer, load_tokenizer, make_tokenizer
from stages.parts import check_split, plan_parts
from stages.progress import Progress, advance
from storage.errors import DataError
from storage.files.write import disk_errors, sync_directory, temporary_name
from storage.manifest import Manifest, Part, SetMeta
from storage.rows import Rows, offsets_of
from storage.schema import FINISH, OUTCOME
from storage.sets import commit_parts
from storage.shard import PartWriter

log = logging.getLogger(__name__)

_TOKENS, _OFFSETS, _FACTS = "tokens.u32", "offsets.i64", "facts.json"
_BLOCK = 256
"""Problems encoded, and sequences written, at a time."""
READ_BYTES = 1 << 20
"""Bytes of a text file read at a time."""


@dataclass(frozen=True)
class Prepared:
    """The tokenised corpus: S sequences, of which sequence i is `tokens[bounds[2i]:bounds[2i+2]]`.

    For a task, `bounds[2i+1]` is the first token of the response. For text, the prompt is `begin`
    alone and `bounds` is empty: sequence i is the i-th window.
    """

    directory: Path
    tokens: NDArray[np.uint32]
    bounds: NDArray[np.int64]
    vocab_size: int
    begin: int
    end: int
    window: int
    """Response tokens of a window of text; 0 for a task."""

    @property
    def tokenizer(self) -> dict[str, Any]:
        """Digests of the tokenizer and its chat template."""
        return described_tokenizer(self.directory / TOKENIZER)

    def __len__(self) -> int:
        return -(-len(self.tokens) // self.window) if self.window else len(self.bounds) // 2

    def sequence(self, index: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Prompt and response of one sequence."""
        if self.window:
            response = self.tokens[index * self.window : (index + 1) * self.window]
            return np.array([self.begin], np.uint32), response
        start, middle, stop = self.bounds[2 * index : 2 * index + 3]
        return self.tokens[start:middle], self.tokens[middle:stop]


def plan(job: Job[Corpus]) -> list[ShardSpec]:
    """The parts of the set, those held out last. Tokenises the corpus first if necessary.

    Raises:
        DataError: a file is missing, empty or not UTF-8, or a tokenizer lacks what is needed.
        RetryError: a write failed.
    """
    prepared = _prepare(job)
    count = len(prepared)
    return plan_parts(
        job,
        count - held_out_count(count, job.config.holdout),
        count,
        fixed=job.config.sequences_per_part,
        former=FORMER_PART,
        tokens=len(prepared.tokens),
    )


@contextmanager
def open_engine(job: Job[Corpus]) -> Iterator[Prepared]:
    """The tokenised corpus, memory-mapped."""
    yield _prepare(job)


def run_shard(job: Job[Corpus], spec: ShardSpec, engine: Prepared) -> Part:
    """Write one part."""
    index = shuffled(np.arange(spec.first, spec.first + spec.count), len(engine), job.config.seed)
    meta = SetMeta(
        stage=job.stage,
        key=job.key,
        kind="sequences",
        vocab_size=engine.vocab_size,
        tokenizer=in_footer(engine.tokenizer),
    )
    with PartWriter(job.directory, spec.index, meta, spec.split) as writer:
        for start in range(0, spec.count, _BLOCK):
            rows = _rows(engine, index[start : start + _BLOCK], bool(job.config.task))
            writer.write(rows)
            advance(len(rows), tokens=rows.tokens)
    return writer.part


def commit(job: Job[Corpus]) -> Manifest:
    """The manifest, with the tokenizer copied into the set.

    Raises:
        RetryError: parts are missing.
    """
    prepared, specs = _prepare(job), plan(job)
    manifest = commit_parts(
        job.directory,
        job.identity(
            "sequences",
            tokenizer=prepared.tokenizer,
            meta={
                "candidates": 0,
                "vocab_size": prepared.vocab_size,
                "full_support": False,
                "generator": None,
            },
        ),
        len(specs),
        files=copy_tokenizer(prepared.directory / TOKENIZER, job.directory / TOKENIZER),
    )
    check_split(job.directory, manifest.parts, specs)
    return manifest


def _rows(prepared: Prepared, indices: NDArray[np.int64], right: bool) -> Rows:
    """Sequences of the corpus; `right`: a task's, whose solutions are right."""
    pairs = [prepared.sequence(int(index)) for index in indices]
    ended = np.array([response[-1] == prepared.end for _, response in pairs])
    columns = {
        "seq_id": indices,
        "prompt_id": indices,
        "sample": np.zeros(len(pairs), np.int32),
        "finish": np.where(ended, FINISH["stop"], FINISH["length"]),
        "outcome": np.full(len(pairs), OUTCOME["right" if right else "unknown"]),
        "prompt": np.concatenate([prompt for prompt, _ in pairs]),
        "tok": np.concatenate([response for _, response in pairs]),
    }
    offsets = {
        "prompt": offsets_of([len(prompt) for prompt, _ in pairs]),
        "position": offsets_of([len(response) for _, response in pairs]),
    }
    return Rows.from_columns(columns, offsets)


# ---------------------------------------------------------------------------------------------
# Tokenising, once


def _prepare(job: Job[Corpus]) -> Prepared:
    """The tokenised corpus; the first process makes it."""
    directory = job.site / ".work" / "prepared"
    if not directory.is_dir():
        temporary = temporary_name(directory.parent, "prepared")
        try:
            with disk_errors(directory):
                temporary.mkdir(parents=True)
            _tokenise(job.config, temporary)
            with disk_errors(directory):
                for file in temporary.rglob("*.*"):
                    with file.open("rb") as stream:
                        os.fsync(stream.fileno())
                try:
                    temporary.rename(directory)
                except OSError:
                    if not directory.is_dir():
                        raise
                    log.info("%s: another process made it first", directory)
                sync_directory(directory.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    facts = json.loads((directory / _FACTS).read_text())
    return Prepared(
        directory=directory,
        tokens=np.memmap(directory / _TOKENS, np.uint32, "r"),
        bounds=np.fromfile(directory / _OFFSETS, np.int64),
        **facts,
    )


def _tokenise(config: Corpus, directory: Path) -> None:
    """Make tokenizer, token ids, bounds and facts in `directory`."""
    make_tokenizer(config.tokenizer, _documents(config), directory / TOKENIZER)
    tokenizer = load_tokenizer(directory / TOKENIZER)
    end = tokenizer.eos_token_id
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end
    if not isinstance(begin, int) or not isinstance(end, int):
        raise DataError(
            f"{config.tokenizer.path}: the tokenizer has no end token, which separates documents. "
            "Set its `eos_token`."
        )
    make_pieces = _text_pieces if config.task is None else _task_pieces
    lengths: list[int] = []
    with (directory / _TOKENS).open("wb") as stream, _told(config):
        for piece in make_pieces(config, tokenizer, end):
            with disk_errors(directory / _TOKENS):
                stream.write(np.array(piece, np.uint32).tobytes())
            lengths.append(len(piece))
    if not lengths:
        raise DataError(f"{', '.join(config.text)}: no text in these files")
    bounds = offsets_of(lengths) if config.task is not None else np.zeros(0, np.int64)
    bounds.tofile(directory / _OFFSETS)
    facts = {
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,
        "begin": begin,
        "end": end,
        "window": 0 if config.task is not None else max(config.sequence_length - 1, 1),
    }
    (directory / _FACTS).write_text(json.dumps(facts))


def _told(config: Corpus) -> Progress:
    if config.task is not None:
        return Progress("corpus, tokenising", config.count, "problems")
    size = sum(file.stat().st_size for file in corpus_files(config))
    return Progress("corpus, tokenising", size, "bytes")


def _text_pieces(config: Corpus, tokenizer: Any, end: int) -> Iterator[list[int]]:
    """Token ids of the files, with the end token after each file that is not empty."""
    for file in corpus_files(config):
        empty = True
        for text in file_pieces(file):
            yield tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            advance(len(text.encode()))
            empty = False
        if not empty:
            yield [end]


def _task_pieces(config: Corpus, tokenizer: Any, end: int) -> Iterator[list[int]]:
    """Prompt and response of each problem, alternating."""
    chat = bool(tokenizer.chat_template)
    problems = iter(task(config.task or "").problems(0, config.count, config.seed))
    while block := list(islice(problems, _BLOCK)):
        prompts = [problem.prompt for problem in block]
        if chat:
            messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
            prompts = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        responses = [problem.response for problem in block]
        starts = tokenizer(prompts, add_special_tokens=not chat)["input_ids"]
        rests = tokenizer(responses, add_special_tokens=False)["input_ids"]
        for start, rest in zip(starts, rests, strict=True):
            yield start
            yield [*rest, end]
            advance()


def _documents(config: Corpus) -> Iterator[str]:
    """Training text of a tokenizer: the files, or a task's characters, problems and solutions."""
    if config.task is not None:
        yield task(config.task).characters
        for problem in task(config.task).problems(0, config.count, config.seed):
            yield problem.prompt + problem.response
        return
    for file in corpus_files(config):
        yield from file_pieces(file)


def file_pieces(file: Path) -> Iterator[str]:
    """Content of a text file, in pieces of whole lines or words that fit into memory.

    Raises:
        DataError: it is not UTF-8; file and offset are named.
    """
    offset, rest = 0, b""
    with file.open("rb") as stream:
        while block := stream.read(READ_BYTES):
            content = rest + block
            cut = content.rfind(b"\n") + 1 or max(content.rfind(b" "), 0)
            if cut:
                yield _decoded(file, offset, content[:cut])
            offset, rest = offset + cut, content[cut:]
    if rest:
        yield _decoded(file, offset, rest)


def _decoded(file: Path, offset: int, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}, byte {offset + error.start}: not UTF-8 ({error.reason}). Convert the file, "
            "for example with `iconv -t UTF-8`, or remove it from the list."
        ) from error
