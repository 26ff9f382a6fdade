"""Prompts that the target writes itself, for a draft whose domain has no users to ask yet.

A chat model that reads the opening of a user's turn goes on as the user would (Magpie, Xu et al.
2024, arXiv 2406.08464). Two prompts of the domain and their answers stand before that turn, so that
the model stays with the domain. What it writes is a set of `sft-data` like any other: the template
benchmarks/open_turn.jinja leaves the last message open, and the last message is an empty one of the
user.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from benchmarks.teachers import make
from stages.data.tasks import task
from stages.models.tokenizer import load_tokenizer
from storage.errors import DataError
from storage.files.write import replace_file
from storage.stream import read_split

TASK = "reading"
TEMPLATE = Path(__file__).with_name("open_turn.jinja")
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What the target's own template puts before a dialogue without a system message."""
DIALOGUES, SHOWN = 64, 2
"""Dialogues, and how many prompts of the domain each shows to the target: with fewer, or at a
temperature of 1, it wanders off."""
FIRST = 60_000
"""The first prompt shown, beyond those that drafts are trained on."""
TEMPERATURE = 0.7
LONGEST = 48
"""Tokens after which a turn that goes on is given up."""


@dataclass(frozen=True)
class Written:
    """Prompts in a file, one JSON object with the field `prompt` a line."""

    file: Path
    directory: Path
    """The set that they were taken from."""
    turns: int
    """Turns that the target wrote."""
    prompts: int
    """Those that ended, and say something that no earlier one says."""


def write_prompts(
    store: Path,
    wanted: int,
    *recipe: str,
    spare: float = 1.25,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Written:
    """Let the target write prompts, unless it has.

    Args:
        store: Where the target's turns are, or will be.
        wanted: Prompts needed.
        recipe: Arguments that select the recipe; its teacher writes.
        spare: Turns to write for each prompt that is needed.
        environment: As for `benchmarks.teachers.make`.

    Raises:
        DataError: too few turns can be used.
    """
    folder = store.absolute() / ".draft-prompts"
    folder.mkdir(parents=True, exist_ok=True)
    shown = folder / "examples.jsonl"
    replace_file(shown, lines(dialogues(FIRST, DIALOGUES)))
    each = -(-round(spare * wanted) // DIALOGUES)
    settings = (
        f'sft-data.prompts={{path="{shown}", template={{file="{TEMPLATE}"}}}}',
        f"sft-data.n={each}",
        f"sft-data.sampling={{temperature={TEMPERATURE}, max_tokens={LONGEST}}}",
        "sft-data.holdout=0.0",
    )
    overrides = [part for one in settings for part in ("--set", one)]
    made = make(store, ["derive.teacher", "sft-data"], *recipe, *overrides, environment=environment)
    turns = made["sft-data"]
    found = usable(responses(turns), load_tokenizer(made["derive.teacher"]))
    if len(found) < wanted:
        raise DataError(
            f"{turns}: of {each * DIALOGUES} turns that the target wrote, {len(found)} can serve "
            f"as prompts, and {wanted} are needed. Ask for more by a larger `spare`."
        )
    file = folder / f"{turns.name}.jsonl"
    replace_file(file, lines({"prompt": text} for text in found))
    return Written(file, turns, each * DIALOGUES, len(found))


def dialogues(first: int, count: int) -> Iterator[dict[str, Any]]:
    """Dialogues about problems from `first` on, whose next turn is the user's: rows of prompts."""
    problems = task(TASK).problems(first, count * SHOWN, seed=0)
    for start in range(0, len(problems), SHOWN):
        said = [("system", SYSTEM)]
        for problem in problems[start : start + SHOWN]:
            said += [("user", problem.prompt), ("assistant", problem.response)]
        turns = [{"role": role, "content": text} for role, text in [*said, ("user", "")]]
        yield {"prompt": turns}


def responses(directory: Path) -> Iterator[NDArray[Any]]:
    """Token ids of every response of a set."""
    for batch in read_split(directory, "train"):
        for start, end in pairwise(batch.tok_off):
            yield batch.tok[start:end]


def usable(turns: Iterable[NDArray[Any]], tokenizer: Any) -> list[str]:
    """Text of the turns that ended by themselves and hold no other control token; each once."""
    found: dict[str, None] = {}
    special = set(tokenizer.all_special_ids)
    for ids in turns:
        *said, last = ids.tolist()
        text = tokenizer.decode(said).strip()
        if last == tokenizer.eos_token_id and text and not special.intersection(said):
            found.setdefault(text)
    return list(found)


def lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """Rows as a file of JSON lines."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
