"""Episodes: what is recorded of them, whose fault a fault is, and environments of other people."""

import dataclasses
import itertools
import logging
from collections.abc import Callable
from typing import Any

import gymnasium
import pytest
import torch

from svf_rl.base.load import Base
from svf_rl.errors import FaultyRun, UserError
from svf_rl.learn.scores import own_hidden, token_scores
from svf_rl.rollout import episodes as module
from svf_rl.rollout.episodes import MAX_TURNS, EnvConfig, Split, gold_answers, graded, make_env, play, split_size
from svf_rl.rollout.sampler import Sampling, draw_seed, sample
from svf_rl.types import Completion, Episode

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


# ---- several turns


class Talk(gymnasium.Env[str, str]):
    """Replies `turns` - 1 times; every step is worth 0.25."""

    def __init__(self, turns: int = 3, reply: str = " And then?") -> None:
        self.turns, self.reply = turns, reply

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.said: list[str] = []
        return f"Say {(options or {})['index']}:", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.said.append(action)
        over = len(self.said) == self.turns
        return f"{self.reply}{len(self.said)}", 0.25, over, False, {"verdict": "pass" if over else "reply"}


@pytest.fixture
def talkative(tiny_base: Base, stopping: Callable[..., Base]) -> Base:
    """A random base for which every eighth token ends an answer, so that most answers end by themselves."""
    return stopping(tiny_base, {*range(0, 300, 8), *tiny_base.codec.stop_ids})


LONG = Sampling(max_tokens=30, temperature=1.0, rows=4)


def spans(own: list[bool]) -> list[tuple[bool, int, int]]:
    """Runs of equal marks as (mark, from, to)."""
    edges = [0, *(i for i in range(1, len(own)) if own[i] != own[i - 1]), len(own)]
    return [(own[a], a, b) for a, b in itertools.pairwise(edges)]


def finished(found: list[Episode | None], turns: int) -> list[Episode]:
    some = [e for e in found if e is not None and len(e.said) == turns and e.stop == "stop"]
    assert some
    return some


def test_own_tokens_are_exactly_the_models(talkative: Base) -> None:
    """Turn by turn, from the sampler itself: prompt, completion, reply, completion, ..."""
    codec, seeds = talkative.codec, list(range(40, 52))
    found = play(talkative, Talk(), "train", range(12), LONG, seeds)
    for index, (episode, seed) in enumerate(zip(found, seeds, strict=True)):
        assert episode is not None
        ids, own, logprobs, text = codec.prompt(f"Say {index}:"), [], [], ""
        own = [False] * len(ids)
        for turn in range(len(episode.said)):
            if turn:
                reply = f" And then?{turn}"
                ids, own, text = ids + codec.reply(reply), own + [False] * len(codec.reply(reply)), text + reply
            (completion,) = sample(talkative, [ids], LONG, [draw_seed(seed, turn) if turn else seed])
            ids, own = ids + completion.ids, own + [True] * len(completion.ids)
            logprobs, text = logprobs + completion.logprobs, text + codec.decode(completion.ids)
            assert episode.said[turn] == codec.decode(completion.ids)
        assert (episode.ids, episode.own, episode.text) == (ids, own, text)
        assert episode.logprobs == pytest.approx(logprobs, abs=1e-5)
        assert len(episode.logprobs) == sum(episode.own)
        assert episode.reward == 0.25 * len(episode.said)
    assert {len(e.said) for e in found if e} >= {3}


def test_the_learner_scores_every_turn_as_the_sampler_did(talkative: Base) -> None:
    some = finished(play(talkative, Talk(), "train", range(12), LONG, range(12)), 3)
    hidden, tokens = own_hidden(talkative, some)
    assert tokens.tolist() == [i for e in some for i, own in zip(e.ids, e.own, strict=True) if own]
    scores = token_scores(hidden, tokens, talkative.logits, 1.0)
    assert torch.allclose(scores.logp, torch.tensor([p for e in some for p in e.logprobs]), atol=1e-4)


def test_gradient_flows_through_own_tokens_only(talkative: Base) -> None:
    """What a loss asks of the vocabulary scores: something where a token of the model's is predicted, else nothing."""
    episode = finished(play(talkative, Talk(), "train", range(12), LONG, range(12)), 3)[0]
    states = talkative.hidden(torch.tensor([episode.ids[:-1]]), use_cache=False).detach().requires_grad_()
    base = dataclasses.replace(talkative, model=_Fixed(states))
    hidden, tokens = own_hidden(base, [episode])
    token_scores(hidden, tokens, talkative.logits, 1.0).logp.sum().backward()  # type: ignore[no-untyped-call]
    assert states.grad is not None
    assert (states.grad[0].abs().sum(-1) > 0).tolist() == episode.own[1:]
    assert [mark for mark, *_ in spans(episode.own)] == [False, True] * 3


class _Fixed:
    """A model whose final hidden states are given."""

    device = torch.device("cpu")

    def __init__(self, states: torch.Tensor) -> None:
        self.base_model = lambda **_: type("Output", (), {"last_hidden_state": states})


def scripted(monkeypatch: pytest.MonkeyPatch, *said: tuple[list[int], str]) -> None:
    """The model writes these ids and stops for these reasons, turn by turn; the last one again and again."""
    script = list(said)

    def write(base: Base, prompts: list[list[int]], *_: Any, ended: Callable[[int, Completion], None], **__: Any) -> None:
        ids, stop = script.pop(0) if len(script) > 1 else script[0]
        for i in range(len(prompts)):
            ended(i, Completion(ids, [-1.0] * len(ids), stop))

    monkeypatch.setattr(module, "sample", write)


def one(base: Base, env: Any) -> Episode:
    (episode,) = play(base, env, "train", [0], LONG, [0])
    assert episode is not None
    return episode


def test_an_answer_that_was_cut_off_is_the_last(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, ([65, 298], "stop"), ([66, 67], "length"))
    episode = one(tiny_base, Talk(turns=5))
    assert (len(episode.said), episode.stop, episode.reward, episode.verdict) == (2, "length", 0.5, "reply")
    assert episode.own[-2:] == [True, True]  # nothing comes after it


def test_the_end_of_the_context_ends_an_episode(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, ([65, 298], "stop"))
    episode = one(tiny_base, Talk(turns=9, reply="x" * 40))
    assert len(episode.said) > 1
    assert episode.own[-1]  # the reply that has no room is left out
    assert len(episode.ids) < tiny_base.context
    assert len(episode.ids) + len(tiny_base.codec.reply("x" * 40 + "3")) >= tiny_base.context


def test_an_episode_has_a_last_turn(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, ([65, 298], "stop"))
    episode = one(tiny_base, Talk(turns=100, reply=""))
    assert (len(episode.said), episode.reward) == (MAX_TURNS, 0.25 * MAX_TURNS)
    assert episode.own[-1]


@pytest.mark.parametrize("hints", [0, 1, 2])
def test_the_reward_of_a_conversation_with_hints(hints: int, embedded: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env(EnvConfig(id="envs:svf/Hints-v0"))
    row = next(i for i in range(99) if len(env.unwrapped.task.row("test", i).facts["steps"]) == 3)
    item = env.unwrapped.task.row("test", row)
    codec = embedded.codec
    end = list(codec.stop_ids)
    scripted(monkeypatch, *[(codec.encode("hint") + end, "stop")] * hints, (codec.encode(item.gold) + end, "stop"))
    (episode,) = play(embedded, env, "test", [row], LONG, [0])
    assert episode is not None
    assert (episode.reward, episode.verdict, episode.said) == (0.5**hints, "pass", (*["hint"] * hints, item.gold))
    assert episode.text.count("Question:") == hints
    assert [mark for mark, *_ in spans(episode.own)] == [False, True] * (hints + 1)


def test_replays_give_the_same_again(embedded: Base) -> None:
    env = make_env(EnvConfig(id="envs:svf/Hints-v0"))
    first = play(embedded, env, "train", range(8), LONG, range(8))
    assert play(embedded, env, "train", range(8), LONG, range(8)) == first
    assert play(embedded, env, "train", [5], LONG, [5])[0].said == first[5].said  # type: ignore[union-attr]
    assert max(len(e.said) for e in first if e) > 1


@pytest.fixture(scope="module")
def embedded() -> Base:
    from svf_rl.base.load import BaseConfig, load_base

    return load_base(BaseConfig(device="cpu"))


# ---- gold answers


@pytest.mark.parametrize("name", ["Math", "Code", "Topic"])
def test_gold_answers_are_episodes_that_earn_everything(tiny_base: Base, name: str) -> None:
    env = gymnasium.make(f"envs:svf/{name}-v0", disable_env_checker=True)
    for row, episode in enumerate(gold_answers(tiny_base, env, "train", range(3))):
        assert episode is not None
        prompt, _ = env.reset(options={"split": "train", "index": row})
        _, _, _, _, info = env.step("")
        assert (episode.prompt, episode.text, episode.reward) == (prompt, info["gold"], 1.0)
        own = [i for i, mine in zip(episode.ids, episode.own, strict=True) if mine]
        assert tiny_base.codec.prompt(prompt) + own == episode.ids
        assert own[-1] in tiny_base.codec.stop_ids
        assert len(episode.logprobs) == len(own)


def test_an_environment_without_gold_answers_is_refused(tiny_base: Base, toy_env: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="tells its gold answers"):
        gold_answers(tiny_base, toy_env("Letter"), "train", [0])


def test_a_gold_answer_that_is_lost_is_none(tiny_base: Base, toy_env: Callable[..., Any]) -> None:
    assert gold_answers(tiny_base, toy_env("Broken", every=1), "train", [0]) == [None]
