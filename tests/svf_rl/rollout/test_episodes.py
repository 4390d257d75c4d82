"""Episodes: what is recorded of them, whose fault a fault is, and environments of other people."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

from svf_rl.base.load import Base
from svf_rl.errors import FaultyRun, UserError
from svf_rl.rollout.episodes import EnvConfig, Split, graded, make_env, play, split_size
from svf_rl.rollout.sampler import Sampling

SAMPLING = Sampling(max_tokens=5, temperature=1.0, rows=4)


def test_ids_mask_logprobs_and_text_line_up(base: Base, toy_env: Callable[..., Any]) -> None:
    rows = [5, 0, 5, 123]
    episodes = play(base, toy_env("Letter"), "train", rows, SAMPLING, [1, 2, 3, 1])
    for row, episode in zip(rows, episodes, strict=True):
        assert episode is not None
        prompt = base.codec.prompt(f"train {row}:")
        written = episode.ids[len(prompt) :]
        assert episode.prompt == f"train {row}:"
        assert episode.ids[: len(prompt)] == prompt
        assert episode.own == [False] * len(prompt) + [True] * len(written)
        assert len(episode.logprobs) == len(written) <= 5
        assert episode.text == base.codec.decode(written)
        assert episode.reward == float(episode.text[:1].isascii() and episode.text[:1].isalpha())
        assert episode.verdict == ("pass" if episode.reward else "wrong")
    assert episodes[0].ids != episodes[2].ids  # the same question, another seed


def test_the_same_seed_writes_the_same_again(tiny_base: Base, toy_env: Callable[..., Any]) -> None:
    env = toy_env("Letter")
    first = play(tiny_base, env, "valid", range(6), SAMPLING, range(6))
    assert play(tiny_base, env, "valid", range(6), SAMPLING, range(6)) == first


def test_stop_tokens_are_own_tokens_and_not_text(
    tiny_base: Base, stopping: Callable[..., Base], toy_env: Callable[..., Any]
) -> None:
    (free,) = play(tiny_base, toy_env("Letter"), "train", [0], SAMPLING, [4])
    assert free is not None
    end = next(iter(tiny_base.codec.stop_ids))
    stopped_at = len(free.ids) - 3
    base = stopping(tiny_base, {end, free.ids[stopped_at]})
    (episode,) = play(base, toy_env("Letter"), "train", [0], SAMPLING, [4])
    assert episode is not None
    assert episode.stop == "stop"
    assert episode.own[-1]
    assert episode.ids == free.ids[: stopped_at + 1]


@pytest.mark.parametrize("when", ["step", "reset"])
def test_an_environment_that_raises_loses_the_episode_and_says_why(
    when: str, tiny_base: Base, toy_env: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        episodes = play(tiny_base, toy_env("Broken", every=3, when=when), "train", range(7), SAMPLING, range(7))
    healthy = play(tiny_base, toy_env("Letter"), "train", range(7), SAMPLING, range(7))
    assert [e is None for e in episodes] == [i % 3 == 0 for i in range(7)]
    assert [e.ids for e in episodes if e] == [e.ids for i, e in enumerate(healthy) if e and i % 3]  # the others are not touched
    assert len(caplog.messages) == 3
    assert "question 6 of train: ConnectionError: the" in caplog.messages[-1]


def test_a_reward_that_is_no_number_loses_the_episode(tiny_base: Base, toy_env: Callable[..., Any]) -> None:
    episodes = play(tiny_base, toy_env("Unscorable", every=2), "train", range(4), SAMPLING, range(4))
    assert [e is None for e in episodes] == [True, False, True, False]


def test_an_interruption_is_not_a_fault(tiny_base: Base, toy_env: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    env = toy_env("Letter")

    def interrupted(action: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(env.unwrapped, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        play(tiny_base, env, "train", [0], SAMPLING, [0])


def test_graded_leaves_out_what_was_lost_but_never_everything(tiny_base: Base, toy_env: Callable[..., Any]) -> None:
    env = toy_env("Broken", every=2)
    episodes = play(tiny_base, env, "train", range(4), SAMPLING, range(4))
    assert graded(episodes) == [episodes[1], episodes[3]]
    with pytest.raises(FaultyRun, match="all 2 answers were lost"):
        graded(play(tiny_base, env, "train", [0, 2], SAMPLING, [0, 0]))


def test_a_plain_environment_gets_other_questions_in_every_split(tiny_base: Base, toy_env: Callable[..., Any]) -> None:
    env = toy_env("Plain")
    asked = {split: play(tiny_base, env, split, range(20), SAMPLING, range(20)) for split in Split}
    prompts = [e.prompt for episodes in asked.values() for e in episodes if e]
    assert len(set(prompts)) == len(prompts) == 80
    assert [e.prompt for e in play(tiny_base, env, "test", [3], SAMPLING, [9]) if e] == [asked[Split.test][3].prompt]
    for episodes in asked.values():
        for e in episodes:  # the reward is that of the question that was asked
            assert (e.reward, e.verdict) == (int(e.prompt.split()[1]) % 10 / 10, "")


def test_an_environment_without_text_is_refused(tiny_base: Base, toy_env: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="observations are text, found int"):
        play(tiny_base, toy_env("NoText"), "train", [0], SAMPLING, [0])


def test_the_size_of_a_split(toy_env: Callable[..., Any]) -> None:
    assert split_size(toy_env("Letter", rows=7), "test", 100) == 7
    assert split_size(toy_env("Letter", rows=7), "test", 5) == 5
    assert split_size(toy_env("Plain"), "test", 100) == 100
    with pytest.raises(UserError, match="no question in the split 'test'"):
        split_size(toy_env("Letter", rows=0), "test", 100)


@pytest.mark.parametrize("name", ["no_such_module:X-v0", "NoSuchEnvironment-v0", "envs:svf/Nothing-v0", "", "a:b:c", "not an id"])
def test_an_unknown_environment_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError) as caught:
        make_env(EnvConfig(id=name))
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_answer_has_at_least_one_token() -> None:
    with pytest.raises(UserError, match="env.max_tokens must be at least 1, not 0"):
        EnvConfig(max_tokens=0)
