"""What the tests of several stages start from."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> "World":
    """Models, rollouts and records, made once for each module of tests."""
    from tests.world import make_world  # torch: not every test below needs it

    return make_world(tmp_path_factory.mktemp("world"))
