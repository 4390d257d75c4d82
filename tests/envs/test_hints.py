"""Several turns: a hint for each answer that is not right, half the reward for each hint."""

import gymnasium
import pytest

from envs.hints import MAX_HINTS


def rows(steps):
    """An environment, and rows of the test split whose working has so many steps."""
    env = gymnasium.make("envs:svf/Hints-v0", disable_env_checker=True).unwrapped
    found = [i for i in range(60) if len(env.task.row("test", i).facts["steps"]) == steps]
    assert found
    return env, found[:3]


def play(env, index, *said):
    prompt, _ = env.reset(options={"split": "test", "index": index})
    return prompt, [env.step(text) for text in said]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_each_hint_halves_the_reward(steps):
    env, found = rows(steps)
    for index in found:
        gold = env.task.row("test", index).gold
        for hints in range(steps):
            _, turns = play(env, index, *["hint"] * hints, gold)
            assert [t[1:4] for t in turns] == [(0.0, False, False)] * hints + [(0.5**hints, True, False)]
            assert turns[-1][4]["hints"] == hints
            assert all(t[4] == {"verdict": "reply"} for t in turns[:-1])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_wrong_answers_end_when_no_hint_is_left(steps):
    env, found = rows(steps)
    for index in found:
        prompt, turns = play(env, index, *["no"] * steps)
        assert len(turns) - 1 == min(MAX_HINTS, steps - 1)
        assert turns[-1][1:4] == (0.0, True, False)
        working = env.task.row("test", index).facts["steps"]
        for n, turn in enumerate(turns[:-1], 1):
            assert turn[0] == f"\n{prompt} {' '.join(working[:n])}"
            assert working[-1] not in turn[0]  # the last step is the model's
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step("more")


def test_a_reset_forgets_what_was_said():
    env, (index, *_) = rows(3)
    play(env, index, "hint")
    assert play(env, index, env.task.row("test", index).gold)[1][0][1] == 1.0
