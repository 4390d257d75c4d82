"""Environment x sampler: questions go out as prompts, completions come back as episodes with rewards.

Any gymnasium environment whose observations and actions are text will do. Rows are named (split, index): the environments of
this project understand both; another one is reset with the index as its seed.

An environment that raises is a fault of the machinery, not a wrong answer: its episode becomes None, for the caller to drop and
count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium

from svf_rl.base.load import Base
from svf_rl.errors import UserError
from svf_rl.rollout.sampler import Sampling, sample
from svf_rl.types import Completion, Episode


@dataclass(frozen=True)
class EnvConfig:
    """Which environment: a short name for folders and files, gymnasium's id, and the longest answer in tokens."""

    name: str = "math"
    id: str = "envs:svf/Math-v0"
    max_tokens: int = 64


def make_env(config: EnvConfig) -> Any:
    """The gymnasium environment. UserError if there is none of that id."""
    try:
        return gymnasium.make(config.id, disable_env_checker=True)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise UserError(f"cannot make the environment {config.id!r}: {error}") from error


def play(
    base: Base, env: Any, split: str, indices: Sequence[int], sampling: Sampling, seeds: Sequence[int]
) -> list[Episode | None]:
    """One episode for each row index, in order; seeds[i] decides what is sampled in episode i."""
    prompts = [_ask(env, split, index) for index in indices]
    ids = {prompt: base.codec.prompt(prompt) for prompt in dict.fromkeys(prompts)}
    completions = sample(base, [ids[prompt] for prompt in prompts], sampling, seeds)
    return [
        _answer(env, split, index, prompt, ids[prompt], completion, base.codec.decode(completion.ids))
        for index, prompt, completion in zip(indices, prompts, completions, strict=True)
    ]


def _ask(env: Any, split: str, index: int) -> str:
    prompt: str = env.reset(seed=index, options={"split": split, "index": index})[0]
    return prompt


def _answer(env: Any, split: str, index: int, prompt: str, ids: list[int], completion: Completion, text: str) -> Episode | None:
    try:
        _ask(env, split, index)
        _, reward, _, _, info = env.step(text)
    except Exception:  # whatever an environment raises, it is not the model's fault
        return None
    return Episode(
        ids=ids + completion.ids,
        own=[False] * len(ids) + [True] * len(completion.ids),
        logprobs=completion.logprobs,
        reward=float(reward),
        verdict=str(info.get("verdict", "")),
        stop=completion.stop,
        prompt=prompt,
        text=text,
    )
