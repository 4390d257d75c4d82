"""Several environments as one, in fixed proportions: `env=[math,code] env.weights=[2,1]` on the command line.

Description:       row i belongs to one of the parts, by weighted turns: after any number of rows, each part has had its share
                   of them, less than one row more or less. Everything else is that part's.
Observation space: that of the parts.
Action space:      that of the parts.
Rewards:           the part's own.
Starting state:    row `index` of the split is the next unused row of its part.
Episode end:       the part's own.
Settings:          parts (by name, each with an id and its settings), weights (one for each, above 0).
Version history:   v0.

One row: that of the part whose turn it is; info["env"] says which.

Source: the quota method of Balinski and Young 1975 (The American Mathematical Monthly 82, 701).
"""

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, ClassVar

import gymnasium

from envs.metrics import summarise
from envs.text import Unicode


class MixtureEnv(gymnasium.Env[str, str]):
    """parts: {"math": {"id": "envs:svf/Math-v0", ...settings}, ...}; weights: positive numbers, or None for equal ones."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, parts: Mapping[str, Mapping[str, Any]], weights: Sequence[float] | None = None) -> None:
        self.weights = _weights(parts, weights)
        made = {name: dict(part) for name, part in parts.items()}
        self.parts = {name: gymnasium.make(part.pop("id"), disable_env_checker=True, **part) for name, part in made.items()}
        self.observation_space, self.action_space = Unicode(), Unicode()
        self._turns: list[tuple[str, int]] = []
        self._counts = [0] * len(parts)
        self._now = next(iter(self.parts))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        options = dict(options or {})
        index = options.get("index")
        if index is None:
            index = int(self.np_random.integers(max(1, self.size(options.get("split", "train"), 1000))))
        self._now, options["index"] = self._part(index)
        prompt: str
        prompt, info = self.parts[self._now].reset(seed=seed, options=options)
        return prompt, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.parts[self._now].step(action)
        return observation, float(reward), terminated, truncated, {**info, "env": self._now}

    def size(self, split: str, at_most: int) -> int:
        """Rows until the first part is used up, counting no further than `at_most`."""
        sizes = {name: _size(env, split, at_most) for name, env in self.parts.items()}
        fit = itertools.takewhile(lambda i: self._part(i)[1] < sizes[self._part(i)[0]], range(at_most))
        return sum(1 for _ in fit)

    def prepare(self) -> None:
        """Get every part ready to grade."""
        for env in self.parts.values():
            if hasattr(env.unwrapped, "prepare"):
                env.unwrapped.prepare()

    @property
    def facts(self) -> dict[str, Any]:
        """What the parts say of themselves."""
        return {key: value for env in self.parts.values() for key, value in getattr(env.unwrapped, "facts", {}).items()}

    def summarise(self, infos: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Each part's figures, as <part>_<figure>."""
        of = {name: [info for info in infos if info.get("env") == name] for name in self.parts}
        return {f"{name}_{key}": value for name, found in of.items() for key, value in summarise(found).items()}

    def _part(self, index: int) -> tuple[str, int]:
        """The part of a row, and which of that part's rows it is."""
        names = list(self.parts)
        while len(self._turns) <= index:
            n, total = len(self._turns) + 1, sum(self.weights)
            behind = [k for k in range(len(names)) if self._counts[k] < n * self.weights[k] / total]
            k = min(behind, key=lambda k: (self._counts[k] + 1) / self.weights[k])
            self._turns.append((names[k], self._counts[k]))
            self._counts[k] += 1
        return self._turns[index]


def _weights(parts: Mapping[str, Any], weights: Any) -> list[Fraction]:
    """Exact, so that shares are. ValueError unless there is a positive number for each part."""
    given = [1] * len(parts) if weights is None else weights
    numbers = isinstance(given, Sequence) and all(isinstance(w, int | float) and 0 < w < float("inf") for w in given)
    if len(parts) < 2 or not numbers or len(given) != len(parts):
        raise ValueError(f"expected two parts or more and a weight above 0 for each, found {list(parts)} and weights {weights}")
    return [Fraction(w) for w in given]


def _size(env: Any, split: str, at_most: int) -> int:
    size = getattr(env.unwrapped, "size", None)
    return int(size(split, at_most)) if callable(size) else at_most
