"""Environment x sampler: questions go out as prompts, completions come back as episodes with rewards.

Any gymnasium environment whose observations and actions are text will do. Rows are named (split, index): the environments of
this project understand both; another one is reset with a seed that no other row of any split has.

An environment may answer a completion with a further observation instead of ending the episode. Its text is appended to the ids,
not marked as the model's own, and the model writes on. The reward of an episode is the sum over its turns. Since one environment
grades many episodes, each turn is graded by a replay: reset to the row, then every completion of the episode so far.

An environment that raises, or gives a reward that is no finite number, is a fault of the machinery, not a wrong answer: its episode
becomes None, for the caller to drop and count, and the reason is logged.
"""

import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import gymnasium

from svf_rl.base.load import Base
from svf_rl.errors import FaultyRun, UserError
from svf_rl.rollout.sampler import Sampling, draw_seed, sample
from svf_rl.types import Completion, Episode

MAX_TURNS = 8
_log = logging.getLogger(__name__)


class Split(StrEnum):
    """Questions never belong to two of these."""

    pretrain = "pretrain"
    train = "train"
    valid = "valid"
    test = "test"


@dataclass(frozen=True)
class EnvConfig:
    """Which environment: a short name for folders and files, gymnasium's id, the longest answer in tokens, its own settings."""

    name: str = "math"
    id: str = "envs:svf/Math-v0"
    max_tokens: int = 64
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"env.max_tokens must be at least 1, not {self.max_tokens}")


def make_env(config: EnvConfig) -> Any:
    """The gymnasium environment, ready to grade. UserError if there is none of that id, or it cannot work here.

    Its module may lie in the current folder.
    """
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        env = gymnasium.make(config.id, disable_env_checker=True, **config.settings)
        prepare = getattr(env.unwrapped, "prepare", None)
        if callable(prepare):
            prepare()
    except Exception as error:  # a missing file, a bad setting, no sandbox: whatever it is, the user chose it
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot make the environment {config.id!r}: {reason}") from error
    return env


def env_facts(env: Any) -> dict[str, Any]:
    """What the environment says of itself for the records, such as the isolation of its sandbox; {} from one that says nothing."""
    return dict(getattr(env.unwrapped, "facts", {}))


def split_size(env: Any, split: str, at_most: int) -> int:
    """How many questions of a split to use: `at_most`, or all if it has fewer. UserError if it has none."""
    size = getattr(env.unwrapped, "size", None)
    n = int(size(split, at_most)) if callable(size) else at_most  # an environment that does not say has enough
    if n < 1:
        raise UserError(f"the environment has no question in the split {str(split)!r}; give one that has")
    return n


def prompts_of(env: Any, split: str, indices: Sequence[int]) -> list[str]:
    """The prompts of rows, without those that the environment failed to give."""
    asked = [_ask(env, split, index) for index in indices]
    return [prompt for prompt in asked if prompt is not None]


def play(
    base: Base,
    env: Any,
    split: str,
    indices: Sequence[int],
    sampling: Sampling,
    seeds: Sequence[int],
    done: Callable[[int], None] | None = None,
    **rows: Any,
) -> list[Episode | None]:
    """One episode for each row index, in order; seeds[i] decides what is sampled in episode i.

    done: told how many more first turns are written.  rows: `kinds` and `choose` of `sample`, for an expert of its own in each row.
    """
    episodes = _begin(base, env, split, indices)
    going = [i for i, episode in enumerate(episodes) if episode is not None]
    for turn in range(MAX_TURNS):
        if not going:
            break
        of_turn = {**rows, "kinds": [rows["kinds"][i] for i in going]} if rows.get("kinds") is not None else rows
        turn_seeds = [draw_seed(seeds[i], turn) if turn else seeds[i] for i in going]
        prompts = [episodes[i].ids for i in going]  # type: ignore[union-attr]

        def ended(place: int, completion: Completion, going: list[int] = going, first: bool = turn == 0) -> None:
            """Grade it while others are still being written."""
            i = going[place]
            episodes[i] = _graded_turn(base, env, split, indices[i], _extended(base, episodes[i], completion))
            if first and done:
                done(1)

        sample(base, prompts, sampling, turn_seeds, ended=ended, **of_turn)
        going = [i for i in going if (e := episodes[i]) is not None and not e.own[-1]]  # the environment has spoken last
    return episodes


def _begin(base: Base, env: Any, split: str, indices: Sequence[int]) -> list[Episode | None]:
    """Episodes of which there is only the prompt."""
    prompts = [_ask(env, split, index) for index in indices]
    ids = {prompt: base.codec.prompt(prompt) for prompt in dict.fromkeys(prompts) if prompt is not None}
    return [None if p is None else Episode(ids[p], [False] * len(ids[p]), [], 0.0, "", "", p, "") for p in prompts]


def _extended(base: Base, episode: Episode | None, completion: Completion) -> Episode:
    """The episode with one more turn of the model's."""
    assert episode is not None
    said = base.codec.decode(completion.ids)
    return replace(
        episode,
        ids=episode.ids + completion.ids,
        own=episode.own + [True] * len(completion.ids),
        logprobs=episode.logprobs + completion.logprobs,
        stop=completion.stop,
        text=episode.text + said,
        said=(*episode.said, said),
    )


def _graded_turn(base: Base, env: Any, split: str, index: int, episode: Episode) -> Episode | None:
    """The episode with the reward so far and what the environment replied, if anything; None if it failed."""
    try:
        reply, reward, over, info = _replay(env, split, index, episode.said)
    except Exception as error:
        _lost(split, index, error)
        return None
    episode = replace(episode, reward=reward, verdict=str(info.get("verdict", "")), info=info)
    if over or episode.stop != "stop":  # cut off by the limit: it has had its say
        return episode
    ids = base.codec.reply(reply)
    if len(episode.ids) + len(ids) >= base.context or len(episode.said) == MAX_TURNS:
        return episode
    return replace(episode, ids=episode.ids + ids, own=episode.own + [False] * len(ids), text=episode.text + reply)


def _replay(env: Any, split: str, index: int, said: Sequence[str]) -> tuple[str, float, bool, dict[str, Any]]:
    """(observation, sum of rewards, whether it is over, info) after every completion of an episode. ValueError for bad rewards."""
    _reset(env, split, index)
    total = 0.0
    for text in said:
        observation, reward, terminated, truncated, info = env.step(text)
        if not math.isfinite(reward):
            raise ValueError(f"the reward was {reward}")
        total += float(reward)
    return observation, total, bool(terminated or truncated), dict(info)


def gold_answers(base: Base, env: Any, split: str, indices: Sequence[int]) -> list[Episode | None]:
    """For each row the episode whose completion is the gold answer, of one turn; its log-probabilities are not known (NaN).

    UserError from an environment that does not give the gold answer, as `info["gold"]`, once an answer is graded.
    """
    begun = _begin(base, env, split, indices)
    return [_gold_answer(base, env, split, i, e) if e is not None else None for i, e in zip(indices, begun, strict=True)]


def _gold_answer(base: Base, env: Any, split: str, index: int, asked: Episode) -> Episode | None:
    try:
        info = _replay(env, split, index, [""])[-1]
    except Exception as error:
        _lost(split, index, error)
        return None
    if "gold" not in info:
        raise UserError("algo.answers=gold needs an environment that tells its gold answers, as info['gold']; this one does not")
    ids = answer_ids(base, str(info["gold"]))
    return _graded_turn(base, env, split, index, _extended(base, asked, Completion(ids, [math.nan] * len(ids), "stop")))


def answer_ids(base: Base, text: str) -> list[int]:
    """The answer and the token that ends it."""
    return [*base.codec.encode(text), *sorted(base.codec.stop_ids)[:1]]


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
    if not prompt:
        raise UserError(f"expected a question of at least one character, found an empty one: question {index} of {split!s}")
    return prompt


def _reset(env: Any, split: str, index: int) -> Any:
    seed = len(Split) * index + list(Split).index(Split(split))
    return env.reset(seed=seed, options={"split": str(split), "index": index})[0]


def _lost(split: str, index: int, error: Exception) -> None:
    _log.warning("lost an episode: question %d of %s: %s: %s", index, split, type(error).__name__, error)
