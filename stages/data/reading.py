"""The task `reading`: comprehension of a sentence in plain English."""

import re

import numpy as np

from stages.counter import hash64, shuffled
from stages.data.problem import Problem, check_range

_PROMPT = (
    "{name}'s {colour} {thing} is in the {place}. Where is the {thing}? Answer with one sentence."
)
_SOLUTIONS = ("The {thing} is in the {place}.", "The {colour} {thing} is in the {place}.")
_LISTS = {
    "name": "Anna Ben Clara David Emma Frank Grace Henry Ivy Jack Kate Liam Mary Noah Olivia Paul "
    "Rose Sam Tom Zoe",
    "colour": "red blue green yellow white black brown pink grey purple silver golden",
    "thing": "ball book bottle brush candle chair clock coat cup drum flute glove hat kettle key "
    "kite lamp map mirror pencil plate radio ring rope scarf spoon sword ticket umbrella violin",
    "place": "kitchen garden garage bedroom bathroom attic cellar office school park forest "
    "library barn tent car hall",
}
_WORDS = {kind: words.split() for kind, words in _LISTS.items()}
_COUNTS = tuple(len(words) for words in _WORDS.values())


class Reading:
    """Reading comprehension: what is where?

    For example `Emma's white brush is in the garden. Where is the brush? Answer with one sentence.`
    The answer is the place, `garden`, and a verifier should take the last place that a response
    names. There are two solutions, with and without the colour.
    """

    name = "reading"
    version = 1
    size = int(np.prod(_COUNTS))
    characters = "".join(
        sorted(
            set(re.sub(r"\{\w+\}", "", "".join((_PROMPT, *_SOLUTIONS))))
            | {letter for words in _WORDS.values() for letter in "".join(words)}
        )
    )

    def problems(self, first: int, count: int, seed: int) -> list[Problem]:
        """As `PromptTask.problems`."""
        check_range(self.name, self.size, first, count)
        indices = np.arange(first, first + count)
        chosen_4N = np.unravel_index(shuffled(indices, self.size, seed=0), _COUNTS)
        solution_N = hash64(seed, indices) % np.uint64(len(_SOLUTIONS))
        problems: list[Problem] = []
        for *chosen, solution in zip(*chosen_4N, solution_N, strict=True):
            words = {kind: _WORDS[kind][one] for kind, one in zip(_WORDS, chosen, strict=True)}
            written = _SOLUTIONS[int(solution)].format(**words)
            problems.append(Problem(_PROMPT.format(**words), words["place"], written))
        return problems
