"""The text the embedded base is pretrained on: generated documents of every task family, and human text.

Human text is what every Python installation carries: the language documentation (pydoc's topics), and the docstrings and
source of the standard library. A document is one task's prompt with an answer written in one of the ways that people do,
or a passage of human text of at most MAX_CHARACTERS. `HELD_OUT` per cent of the human passages, chosen by the hash of their
content, are never trained on. Human text repeats itself (a docstring is also in its source, a task shows pieces of the topics), so
of these only the ones count as held out that share no OVERLAP words in a row with anything trained on.

A batch is a pure function of (seed, step), so a resumed run sees what an uninterrupted one would.
"""

import ast
import hashlib
import pydoc_data.topics
import random
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import gymnasium
import torch
from torch import Tensor

from svf_rl.base.tokenizer import TextCodec

# Documents of each kind, by weight. A sum has 12 tokens, a question and answer about 50, a human passage about 100.
MIX = {
    "envs:svf/Sums-v0": 40,
    "envs:svf/Math-v0": 36,
    "envs:svf/Code-v0": 14,
    "envs:svf/Topic-v0": 13,
    "envs:svf/HardMath-v0": 6,
    "envs:svf/ListCode-v0": 4,
    "envs:svf/WordCode-v0": 4,
    "envs:svf/NewTopic-v0": 3,
    "envs:svf/WhichTask-v0": 3,
    "human": 11,
}
MAX_CHARACTERS = 320
HELD_OUT, OVERLAP = 3, 8


class Corpus:
    """An endless supply of documents, as (prompt, answer) pairs; human passages have an empty answer."""

    def __init__(self) -> None:
        kinds = [kind for kind in MIX if kind != "human"]
        self._tasks = {kind: gymnasium.make(kind, disable_env_checker=True).unwrapped.task for kind in kinds}
        self._human = human_text(held_out=False)

    def document(self, rng: random.Random) -> tuple[str, str]:
        kind = rng.choices(list(MIX), list(MIX.values()))[0]
        if kind == "human":
            return rng.choice(self._human), ""
        task = self._tasks[kind]
        item = task.draw("pretrain", rng)
        return item.prompt, task.write(item, rng)

    def sample(self, seed: int, count: int) -> Iterator[str]:
        """Documents to learn tokens from."""
        rng = random.Random(seed)
        return ("".join(self.document(rng)) for _ in range(count))

    def batch(self, codec: TextCodec, seed: int, step: int, rows: int, length: int) -> Tensor:
        """Token ids [rows, length + 1], documents packed one after another, each row from the start of a document."""
        rng = random.Random(f"{seed} {step}")
        return torch.tensor([_row(lambda: self.document(rng), codec, length + 1) for _ in range(rows)])


def _row(document: Callable[[], tuple[str, str]], codec: TextCodec, length: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < length:
        prompt, answer = document()
        ids += codec.prompt(prompt) + codec.encode(answer)
    return ids[:length]


def human_text(held_out: bool) -> list[str]:
    """The passages of human text that are trained on, or the held-out ones; in a fixed order for one Python version."""
    trained = [piece for piece in _passages() if _percent(piece) >= HELD_OUT]
    if not held_out:
        return trained
    kept = {piece: _runs(piece) for piece in _passages() if _percent(piece) < HELD_OUT}
    wanted = set().union(*kept.values())
    seen = set().union(*(wanted & _runs(text) for text in [*trained, *pydoc_data.topics.topics.values()]))
    return [piece for piece, runs in kept.items() if seen.isdisjoint(runs)]


@cache
def _passages() -> tuple[str, ...]:
    return tuple(dict.fromkeys(piece for text in _texts() for piece in _pieces(text)))


def _runs(text: str) -> set[tuple[str, ...]]:
    """Every OVERLAP words in a row; all the words of a shorter text."""
    words = text.split()
    return {tuple(words[i : i + OVERLAP]) for i in range(max(1, len(words) - OVERLAP + 1))}


def _percent(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big") % 100


def _texts() -> Iterator[str]:
    yield from (text for _, text in sorted(pydoc_data.topics.topics.items()))
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        source = path.read_text(encoding="utf-8", errors="replace")
        yield from _docstrings(source)
        yield source


def _docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) > 80:
                yield text


def _pieces(text: str) -> Iterator[str]:
    """Consecutive whole lines, up to MAX_CHARACTERS together."""
    piece = ""
    for line in text.splitlines(keepends=True):
        if piece and len(piece) + len(line) > MAX_CHARACTERS:
            yield piece
            piece = ""
        piece += line[:MAX_CHARACTERS]
    if piece.strip():
        yield piece
