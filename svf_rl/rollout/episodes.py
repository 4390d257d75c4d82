"""Environment x sampler: questions go out as prompts, completions come back as episodes with rewards.

Any gymnasium environment whose observations and actions are text will do. Rows are named (split, index): the environments of
this project understand both; another one is reset with a seed that no other row of any split has.

An environment that raises, or gives a reward that is no finite number, is a fault of the machinery, not a wrong answer: its episode
becomes None, for the caller to drop and count, and the reason is logged.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import gymnasium

from svf_rl.base.load import Base
from svf_rl.errors import FaultyRun, UserError
from svf_rl.rollout.sampler import Sampling, sample
from svf_rl.types import Completion, Episode

_log = logging.getLogger(__name__)


class Split(StrEnum):
    """Questions never belong to two of these."""

    pretrain = "pretrain"
    train = "train"
    valid = "valid"
    test = "test"


@dataclass(frozen=True)
class EnvConfig:
    """Which environment: a short name for folders and files, gymnasium's id, and the longest answer in tokens."""

    name: str = "math"
    id: str = "envs:svf/Math-v0"
    max_tokens: int = 64

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"env.max_tokens must be at least 1, not {self.max_tokens}")


def make_env(config: EnvConfig) -> Any:
    """The gymnasium environment. UserError if there is none of that id."""
    try:
        return gymnasium.make(config.id, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot make the environment {config.id!r}: {reason}; give env.id=module:Name-v0") from error


def split_size(env: Any, split: str, at_most: int) -> int:
    """How many questions of a split to use: `at_most`, or all if it has fewer. UserError if it has none."""
    size = getattr(env.unwrapped, "size", None)
    n = int(size(split, at_most)) if callable(size) else at_most  # an environment that does not say has enough
    if n < 1:
        raise UserError(f"the environment has no question in the split {str(split)!r}; give one that has")
    return n


def play(
    base: Base, env: Any, split: str, indices: Sequence[int], sampling: Sampling, seeds: Sequence[int]
) -> list[Episode | None]:
    """One episode for each row index, in order; seeds[i] decides what is sampled in episode i."""
    prompts = [_ask(env, split, index) for index in indices]
    ids = {prompt: base.codec.prompt(prompt) for prompt in dict.fromkeys(prompts) if prompt is not None}
    asked = [i for i, prompt in enumerate(prompts) if prompt is not None]
    completions = sample(base, [ids[prompts[i]] for i in asked], sampling, [seeds[i] for i in asked])  # type: ignore[index]
    episodes: list[Episode | None] = [None] * len(prompts)
    for i, completion in zip(asked, completions, strict=True):
        prompt, text = str(prompts[i]), base.codec.decode(completion.ids)
        graded = _grade(env, split, indices[i], text)
        episodes[i] = graded and _episode(prompt, ids[prompt], completion, text, *graded)
    return episodes


def graded(episodes: Sequence[Episode | None]) -> list[Episode]:
    """Those that were not lost to a fault. FaultyRun if all were: there is nothing to say of them."""
    found = [e for e in episodes if e is not None]
    if not found:
        raise FaultyRun(f"all {len(episodes)} answers were lost because the environment failed; the reasons are above")
    return found


def _ask(env: Any, split: str, index: int) -> str | None:
    try:
        prompt = _reset(env, split, index)
    except Exception as error:  # whatever an environment raises, it is not the model's fault
        _lost(split, index, error)
        return None
    if not isinstance(prompt, str):
        raise UserError(f"expected an environment whose observations are text, found {type(prompt).__name__}; give another env.id")
    return prompt


def _grade(env: Any, split: str, index: int, text: str) -> tuple[float, str] | None:
    try:
        _reset(env, split, index)
        _, reward, _, _, info = env.step(text)
        if not math.isfinite(reward):
            raise ValueError(f"the reward was {reward}")
        return float(reward), str(info.get("verdict", ""))
    except Exception as error:
        _lost(split, index, error)
        return None


def _reset(env: Any, split: str, index: int) -> Any:
    seed = len(Split) * index + list(Split).index(Split(split))
    return env.reset(seed=seed, options={"split": str(split), "index": index})[0]


def _lost(split: str, index: int, error: Exception) -> None:
    _log.warning("lost an episode: question %d of %s: %s: %s", index, split, type(error).__name__, error)


def _episode(prompt: str, ids: list[int], completion: Completion, text: str, reward: float, verdict: str) -> Episode:
    return Episode(
        ids=ids + completion.ids,
        own=[False] * len(ids) + [True] * len(completion.ids),
        logprobs=completion.logprobs,
        reward=reward,
        verdict=verdict,
        stop=completion.stop,
        prompt=prompt,
        text=text,
    )
