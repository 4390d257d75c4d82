"""The corpus reads the whole standard library, so it is made once."""

import pytest

from svf_rl.base import corpus


@pytest.fixture(scope="session")
def texts() -> corpus.Corpus:
    return corpus.Corpus()
