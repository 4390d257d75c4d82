"""One suite over every registered environment."""

import re
import warnings
from itertools import combinations

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.text import SPLITS, split_of

IDS = list(envs.FAMILIES)


@pytest.fixture(params=IDS)
def env(request):
    return gymnasium.make(f"envs:{request.param}", disable_env_checker=True)


def test_gymnasium_accepts_it(env):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(custom|spec|render).*")
        check_env(env.unwrapped, skip_render_check=True)


def test_equal_rows_give_equal_questions(env):
    other = gymnasium.make(env.spec, disable_env_checker=True)
    for index in (0, 3, 50):
        options = {"split": "valid", "index": index}
        assert env.reset(options=options)[0] == other.reset(options=options)[0]
    assert env.reset(seed=7)[0] == other.reset(seed=7)[0]
    assert len({env.reset(seed=seed)[0] for seed in range(20)}) > 10


def test_gold_scores_one_and_another_answer_does_not(env):
    for index in range(25):
        options = {"split": "test", "index": index}
        env.reset(options=options)
        gold = env.unwrapped.item.gold
        assert env.step(gold)[1] == 1.0, (env.unwrapped.item.prompt, gold)
        for wrong in ("", " I do not know.", "\x00\ud800 987654321" * 50, "\n    return None"):
            env.reset(options=options)
            _, reward, terminated, truncated, info = env.step(wrong)
            assert reward < 1.0
            assert (terminated, truncated) == (True, False)
            assert info["verdict"] != "pass"


def test_splits_share_no_question_and_no_content(env):
    task = env.unwrapped.task
    rows = {split: [task.row(split, i) for i in range(env.unwrapped.size(split, 80))] for split in SPLITS}
    for split, items in rows.items():
        assert {split_of(item.key) for item in items} == {split}
        assert len({item.prompt for item in items}) == len(items)
    for a, b in combinations(rows, 2):
        assert not {i.prompt for i in rows[a]} & {i.prompt for i in rows[b]}


def test_writing_a_question_twice_differs_in_the_ways_people_do(env):
    """`write` knows several ways of answering (one, for a bare sum), and all of them are short."""
    import random

    task, rng = env.unwrapped.task, random.Random(0)
    item = task.draw("pretrain", rng)
    ways = {re.sub(r"\d+", "n", task.write(item, rng)) for _ in range(200)}
    assert 1 <= len(ways) <= 6


def test_step_before_reset_is_refused(env):
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("x")
