"""The contract of every environment: a prompt goes out, a completion comes in, a reward in [0, 1] goes back.

A *task* holds the questions and the grader; `TextEnv` wraps one as a gymnasium environment. A *generated* task makes its
questions by program. Each question has a `key`, its content stripped of wording (the sum without the story), and the
hash of the key puts it in exactly one split:

    pretrain 60 %   train 20 %   valid 8 %   test 12 %

so no wording of a test question can have been seen in training, by construction.

Differs from the source (Farama-Foundation/Gymnasium gymnasium/spaces/text.py, gymnasium/core.py):
1. `Text` of gymnasium rejects blanks and punctuation by default; `Unicode` here accepts every string up to a length.
2. `reset` takes `options={"split": ..., "index": ...}`: row `index` of a split, the same text in every process.
"""

import bisect
import hashlib
import importlib
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import gymnasium

from envs import isolated
from envs.metrics import summarise
from envs.sandbox import Sandbox

SPLITS = {"pretrain": 60, "train": 20, "valid": 8, "test": 12}


@dataclass(frozen=True)
class Item:
    """One question: the prompt the model reads, an answer that scores 1.0, its content key, and what the grader needs."""

    prompt: str
    gold: str
    key: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """What a completion earned: reward in [0, 1], the verdict's name, the answer read from the text, and more measurements."""

    reward: float
    verdict: str
    answer: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """Questions in splits, and a grader.

    A task may also have `guests`, what its grader needs the sandbox for (`isolated.PROGRAMS`, or modules of scorers): the sandbox
    is then started, and refused where it is too weak, before the first question. And a task of several turns has
    `turn(item, said) -> str | Score`: a reply to what the model has said so far, or the score that ends the episode.
    """

    name: str

    def row(self, split: str, index: int) -> Item:
        """Question `index` of a split; IndexError past the last one."""
        ...

    def score(self, item: Item, completion: str) -> Score:
        """The reward of one completion. Never raises for anything a model can write."""
        ...


def split_of(key: str, shares: Mapping[str, int] = SPLITS) -> str:
    """The one split that a question with this content key belongs to, of splits with these shares."""
    point = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % sum(shares.values())
    for split, share in shares.items():
        point -= share
        if point < 0:
            return split
    raise AssertionError("the point lies below the sum of the shares")


class Generated:
    """A task whose questions are drawn by a program.

    draw: makes any question from a random generator.  score: grades.  write: answers a question in one of the ways that
    people do, good and bad; the embedded base learns its habits from it.  guests: see `Task`.  shares: of the splits, all above 0.
    """

    def __init__(
        self,
        name: str,
        draw: Callable[[random.Random], Item],
        score: Callable[[Item, str], Score],
        write: Callable[[Item, random.Random], str],
        guests: Sequence[str] = (),
        shares: Mapping[str, int] = SPLITS,
    ) -> None:
        self.name, self.draw_any, self.score, self.write, self.guests = name, draw, score, write, tuple(guests)
        self.shares = shares
        self._rows: dict[str, list[Item]] = {}
        self._seen: dict[str, set[str]] = {}
        self._random: dict[str, random.Random] = {}
        self._exhausted: set[str] = set()

    def draw(self, split: str, rng: random.Random) -> Item:
        """A random question of a split; repeats are possible."""
        while split_of((item := self.draw_any(rng)).key, self.shares) != split:
            pass
        return item

    def row(self, split: str, index: int) -> Item:
        """Question number `index` of a split, no two alike, the same in every process; IndexError when there are no more."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        rows = self._rows.setdefault(split, [])
        while len(rows) <= index:
            rows.append(self._next(split))
        return rows[index]

    def _next(self, split: str) -> Item:
        seen = self._seen.setdefault(split, set())
        if split in self._exhausted:
            raise IndexError(f"{self.name} has only {len(seen)} distinct questions in {split}")
        rng = self._random.setdefault(split, random.Random(f"{self.name} {split}"))
        for _ in range(2_000):
            item = self.draw(split, rng)
            if item.prompt not in seen:
                seen.add(item.prompt)
                return item
        self._exhausted.add(split)
        return self._next(split)


class Unicode(gymnasium.Space[str]):
    """Every string of at most `max_length` characters."""

    def __init__(self, max_length: int = 1_000_000, seed: int | None = None) -> None:
        super().__init__(shape=None, dtype=str, seed=seed)
        self.max_length = max_length

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        codes = self.np_random.integers(1, 0xD800, size=self.np_random.integers(0, 20))
        return "".join(map(chr, codes))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unicode) and other.max_length == self.max_length


class TextEnv(gymnasium.Env[str, str]):
    """One question an episode: `reset` shows the prompt, `step` takes the completion and ends the episode.

    reset(seed=, options={"split": "train", "index": 7}): without an index, the seed chooses among the first thousand rows.
    step(text) returns ("", reward, True, False, {"verdict": ..., "answer": ..., "gold": ..., and what else the grader measured}).
    A task of several turns may reply instead: (reply, 0.0, False, False, {"verdict": "reply"}).

    task: a task, or "module:name" of one, or of a function that makes one from `settings`.  isolation: the weakest tier of the
    sandbox to accept, "strong", "degraded" or "none".
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, task: Task | str, split: str = "train", isolation: str = "strong", **settings: Any) -> None:
        self.isolation = isolation
        isolated.require(isolation)
        self.task: Any = load_task(task, **settings) if isinstance(task, str) else task
        self.split = split
        self.said: list[str] = []
        self.observation_space, self.action_space = Unicode(), Unicode()
        self.item: Item | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        options = options or {}
        split, index = options.get("split", self.split), options.get("index")
        if index is None:
            index = int(self.np_random.integers(max(1, self.size(split, 1000))))
        self.item, self.said = self.task.row(split, index), []
        return self.item.prompt, {}

    def prepare(self) -> None:
        """Start what the grader needs. SandboxUnavailable if this machine is too weak for it."""
        for guest in getattr(self.task, "guests", ()):
            self._sandbox(guest)

    @property
    def facts(self) -> dict[str, Any]:
        """For the records: the tier of isolation, of a task that needs the sandbox."""
        guests = getattr(self.task, "guests", ())
        return {"isolation": self._sandbox(guests[0]).tier} if guests else {}

    def _sandbox(self, guest: str) -> Sandbox:
        isolated.require(self.isolation)
        return isolated.sandbox(guest)

    def summarise(self, infos: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """What the infos of many answers amount to: the means of all they measured, and macro-F1 for labels."""
        return summarise(infos)

    def size(self, split: str, at_most: int) -> int:
        """How many distinct questions a split has, counting no further than `at_most`."""
        try:
            self.task.row(split, at_most - 1)
        except IndexError:
            return bisect.bisect_left(range(at_most), True, key=lambda i: not self._has(split, i))
        return at_most

    def _has(self, split: str, index: int) -> bool:
        try:
            return bool(self.task.row(split, index))
        except IndexError:
            return False

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.item is None:
            raise gymnasium.error.ResetNeeded("call reset before step")
        item, self.item = self.item, None
        score = self._outcome(item, action)
        if isinstance(score, str):
            self.item = item
            return score, 0.0, False, False, {"verdict": "reply"}
        info = {"verdict": score.verdict, "answer": score.answer, "gold": item.gold}
        return "", score.reward, True, False, info | dict(score.info)

    def _outcome(self, item: Item, action: str) -> Score | str:
        self.said.append(action)
        isolated.require(self.isolation)  # another environment of this process may accept less
        turn = getattr(self.task, "turn", None)
        outcome: Score | str = turn(item, self.said) if turn else self.task.score(item, action)
        return outcome


def load_task(name: str, **settings: Any) -> Task:
    """The task that "module:attribute" names, or that the function of that name makes from settings."""
    module, _, attribute = name.partition(":")
    found: Any = getattr(importlib.import_module(module), attribute)
    if not callable(found):
        if settings:
            raise ValueError(f"{name} takes no settings; found {', '.join(settings)}")
        task: Task = found
        return task
    signature = inspect.signature(found)
    try:
        signature.bind(**settings)
    except TypeError as error:
        raise ValueError(f"{name}: {error}; its settings are {', '.join(signature.parameters)}") from None
    made: Task = found(**settings)
    return made
