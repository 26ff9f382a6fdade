"""`afterglow demo`: the same recipe over several seeds, and one table of means over them."""

import logging

from pipeline.config import Recipe

log = logging.getLogger(__name__)


def run_seeds(recipe: Recipe, seeds: int, arguments: list[str]) -> dict[str, object]:
    """Run the report of each seed, then print mean and standard deviation over seeds.

    The seeds are consecutive, from the recipe's own on. Models made by `pretrain` have a seed of
    their own, so all runs share the same teacher.

    Args:
        recipe: The recipe of the first seed.
        seeds: Number of seeds.
        arguments: Command-line arguments that select `recipe` in another process.
    """
    raise NotImplementedError
