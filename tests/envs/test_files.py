"""One suite over every environment made from a file, on small files written here; `test_contract.py` has the others."""

import json
import warnings
from itertools import combinations

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.rows import SHARES, content

N = 60
WORDS = ["iron", "wood", "salt", "air"]


def gsm8k(i):
    return {
        "question": f"Ida has {i} pens and buys {i}. How many?",
        "answer": f"{i}+{i}=<<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i:,}",
    }


def humaneval(i):
    test = f"def check(candidate):\n    assert candidate(1) == {i + 1}\n    assert candidate(-3) == {i - 3}\n"
    prompt = f'def add(n):\n    """ n and {i}."""\n'
    return {
        "task_id": f"Own/{i}",
        "prompt": prompt,
        "entry_point": "add",
        "canonical_solution": f"    return n + {i}\n",
        "test": test,
    }


def mbpp(i):
    tests = [f"assert add(1) == {i + 1}", f"assert add(-3) == {i - 3}"]
    return {
        "text": f"Add {i}.",
        "code": f"def add(n):\n  return n + {i}",
        "task_id": 400 + 4 * i,
        "test_setup_code": "",
        "test_list": tests,
    }


def arc(i):
    choices = [{"text": text, "label": key} for text, key in zip(WORDS, "ABCD" if i % 2 else "1234", strict=True)]
    return {"id": str(i), "question": {"stem": f"Number {i}?", "choices": choices}, "answerKey": choices[i % 4]["label"]}


def labels(i):
    return {"text": f"note {i}", "label": ["cars", "garden", "sport"][i % 3]}


def own(i):
    return {"question": f"What is {i} and {i}?", "answer": str(2 * i)}


MADE = {
    "svf/GSM8K-v0": (gsm8k, {}),
    "svf/HumanEval-v0": (humaneval, {}),
    "svf/MBPP-v0": (mbpp, {}),
    "svf/ARC-v0": (arc, {}),
    "svf/Labels-v0": (labels, {}),
    "svf/Rows-v0": (own, {"reward": "numeric"}),
}


@pytest.fixture(params=list(MADE))
def made(request, tmp_path):
    row, settings = MADE[request.param]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row(i)) for i in range(N)))
    return request.param, {"path": str(path), **settings}


@pytest.fixture
def env(made):
    name, settings = made
    return gymnasium.make(f"envs:{name}", disable_env_checker=True, **settings)


def test_every_registered_environment_is_here_or_in_the_other_suite():
    assert list(MADE) == list(envs.FILES)


def test_gymnasium_accepts_it(env):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(custom|spec|render).*")
        check_env(env.unwrapped, skip_render_check=True)


def test_equal_rows_give_equal_questions(env):
    other = gymnasium.make(env.spec, disable_env_checker=True)
    for split in SHARES:
        for index in range(3):
            options = {"split": split, "index": index}
            assert env.reset(options=options)[0] == other.reset(options=options)[0]
    assert env.reset(seed=7)[0] == other.reset(seed=7)[0]
    assert len({env.reset(seed=seed)[0] for seed in range(30)}) > 5


def test_gold_scores_one_and_another_answer_does_not(env):
    for index in range(8):
        options = {"split": "test", "index": index}
        env.reset(options=options)
        gold = env.unwrapped.item.gold
        _, reward, *_, info = env.step(gold)
        assert (reward, info["verdict"], info["gold"]) == (1.0, "pass", gold)
        for wrong in ("", " I do not know.", "\x00\ud800 987654321" * 50, "\n    return None"):
            env.reset(options=options)
            _, reward, terminated, truncated, info = env.step(wrong)
            assert reward < 1.0
            assert (terminated, truncated) == (True, False)
            assert info["verdict"] != "pass"


def test_splits_share_no_question_and_hold_every_row(env):
    task = env.unwrapped.task
    rows = {split: [task.row(split, i) for i in range(env.unwrapped.size(split, 1000))] for split in SHARES}
    assert {split: len(items) for split, items in rows.items()} == {split: task.size(split) for split in SHARES}
    assert sum(map(len, rows.values())) == N
    assert all(len(items) > 5 for items in rows.values())
    for a, b in combinations(rows, 2):
        assert not {content(i.prompt) for i in rows[a]} & {content(i.prompt) for i in rows[b]}


def test_infos_can_be_averaged(env):
    infos = []
    for index in range(4):
        env.reset(options={"split": "train", "index": index})
        infos.append(env.step(env.unwrapped.item.gold if index else "")[4])
    means = env.unwrapped.summarise(infos)
    assert means
    assert all(0 <= value < 1 for value in means.values())


def test_unknown_settings_are_named_with_the_known_ones(made):
    name, settings = made
    with pytest.raises(ValueError, match="unexpected keyword argument 'pth'; its settings are path"):
        gymnasium.make(f"envs:{name}", disable_env_checker=True, **settings, pth="x")
    with pytest.raises(ValueError, match="missing a required argument: 'path'"):
        gymnasium.make(f"envs:{name}", disable_env_checker=True)
    with pytest.raises(ValueError, match="no file "):
        gymnasium.make(f"envs:{name}", disable_env_checker=True, path="nowhere.jsonl")


def test_an_empty_split_says_so(made):
    name, settings = made
    env = gymnasium.make(f"envs:{name}", disable_env_checker=True, **{**settings, "path": {"test": settings["path"]}})
    assert env.unwrapped.size("train", 10) == 0
    with pytest.raises(IndexError, match="has 0 questions in train"):
        env.reset()
    assert env.reset(options={"split": "test"})[0]


def test_a_generated_environment_takes_no_settings():
    with pytest.raises(ValueError, match=r"takes no settings; found path"):
        gymnasium.make("envs:svf/Math-v0", disable_env_checker=True, path="x")
