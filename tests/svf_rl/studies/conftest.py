"""A small corpus of words, and models of a few thousand numbers."""

import random
from pathlib import Path

import pytest

from svf_rl.studies.scratch import Shape, Text, read_text


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 000 characters; 100 different words."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(100)]
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text("\n".join(" ".join(rng.choices(words, k=12)) for _ in range(1000)))
    return path


@pytest.fixture(scope="session")
def text(corpus: Path) -> Text:
    return read_text(str(corpus), "characters", 16, print)


@pytest.fixture(scope="session")
def shape(text: Text) -> Shape:
    return Shape(text.vocabulary, 16, 2, 2, 24, 16)
