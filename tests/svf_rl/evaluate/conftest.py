"""A column of the tiny base's toy environment."""

import pytest

from svf_rl.evaluate.cells import Column, environment_column
from svf_rl.rollout.episodes import EnvConfig


@pytest.fixture
def column() -> Column:
    return environment_column(EnvConfig("letter", "toys:toys/Letter-v0", 3), "test", 20)
