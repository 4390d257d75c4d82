"""Environments small enough to reason about; tests make them by "toys:toys/<Name>-v0", in this process or another."""

import math
from typing import Any

import gymnasium
from gymnasium.spaces import Text

SPACE = Text(1000)


class Letter(gymnasium.Env[str, str]):
    """Reward 1 if the answer begins with an ASCII letter. Knows splits, rows and their number, as envs.text.TextEnv does."""

    def __init__(self, rows: int = 100_000) -> None:
        self.rows, self.observation_space, self.action_space = rows, SPACE, SPACE
        self.prompt = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        chosen = options or {}
        if chosen["index"] >= self.rows:
            raise IndexError(f"only {self.rows} rows")
        self.prompt = f"{chosen['split']} {chosen['index']}:"
        return self.prompt, {}

    def size(self, split: str, at_most: int) -> int:
        return min(self.rows, at_most)

    def reward(self, text: str) -> float:
        return float(text[:1].isascii() and text[:1].isalpha())

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        reward = self.reward(action)
        return "", reward, True, False, {"verdict": "pass" if reward == 1 else "wrong"}


class Plain(gymnasium.Env[str, str]):
    """A text environment of someone else: its seed decides the question, it knows neither splits nor rows, and says no verdict."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = SPACE, SPACE

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.number = int(self.np_random.integers(1_000_000))
        return f"say {self.number}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", float(self.number % 10) / 10, True, False, {}


class Constant(Letter):
    """The same reward for everything."""

    def reward(self, text: str) -> float:
        return 0.5


class Unscorable(Letter):
    """A reward that is no number on some rows of the training split."""

    def __init__(self, every: int = 1) -> None:
        super().__init__()
        self.every = every

    def reward(self, text: str) -> float:
        split, row = self.prompt.rstrip(":").split()
        return math.nan if split == "train" and int(row) % self.every == 0 else super().reward(text)


class Broken(Letter):
    """Raises when it grades, or already when it asks, on every n-th row of a split."""

    def __init__(self, every: int = 3, split: str = "train", when: str = "step") -> None:
        super().__init__()
        self.every, self.split, self.when = every, split, when

    def breaks(self) -> bool:
        split, row = self.prompt.rstrip(":").split()
        return self.split in (split, "all") and int(row) % self.every == 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        asked = super().reset(seed=seed, options=options)
        if self.when == "reset" and self.breaks():
            raise ConnectionError("the question server is gone")
        return asked

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.when == "step" and self.breaks():
            raise ConnectionError("the grader is gone")
        return super().step(action)


class NoText(gymnasium.Env[int, str]):
    """Its observations are numbers."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        return 3, {}


for _kind in (Letter, Plain, Constant, Unscorable, Broken, NoText):
    gymnasium.register(f"toys/{_kind.__name__}-v0", entry_point=_kind)
