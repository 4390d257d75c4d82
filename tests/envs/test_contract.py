"""One suite over every registered environment. Files are small, in the official formats, and written here."""

import importlib
import inspect
import json
import re
import warnings
from itertools import combinations
from pathlib import Path

import gymnasium
import pytest
import yaml
from gymnasium.utils.env_checker import check_env

import envs
from envs.rows import SHARES, content
from envs.text import SPLITS, split_of

CONFIGS = Path(__file__).parents[2] / "configs" / "env"
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
PARTS = {name: {"id": f"envs:svf/{name}-v0"} for name in ("Math", "Topic", "Code")}
CASES = {
    **{name: (name, {}) for name in (*envs.FAMILIES, *envs.OTHERS)},
    **{name: (name, settings) for name, (_, settings) in MADE.items()},
    "svf/Mixture-v0": ("svf/Mixture-v0", {"parts": PARTS, "weights": [2, 1, 1]}),
    **{task: ("svf/ReasoningGym-v0", {"task": task}) for task in ("chain_sum", "lcm")},
}
WRONG = ("", " I do not know.", "\x00\ud800 987654321" * 50, "\n    return None")


@pytest.fixture(params=CASES, scope="module")
def settings(request, tmp_path_factory):
    name, more = CASES[request.param]
    if name == "svf/ReasoningGym-v0":
        pytest.importorskip("reasoning_gym")
    if name not in MADE:
        return name, more
    path = tmp_path_factory.mktemp("rows") / "data.jsonl"
    path.write_text("\n".join(json.dumps(MADE[name][0](i)) for i in range(N)))
    return name, {"path": str(path), **more}


@pytest.fixture(scope="module")
def env(settings):
    name, more = settings
    made = gymnasium.make(f"envs:{name}", disable_env_checker=True, **more)
    made.unwrapped.prepare()
    return made


def answered(env, split, index, answer):
    """The last step of an episode in which every turn is this answer."""
    env.reset(options={"split": split, "index": index})
    while True:
        step = env.step(answer)
        if step[2] or step[3]:
            return step


def prompts(env, split, at_most=60):
    n = env.unwrapped.size(split, at_most)
    return [env.reset(options={"split": split, "index": i})[0] for i in range(n)]


def test_every_registered_environment_is_in_this_suite():
    registered = {name for name in gymnasium.registry if name.startswith("svf/")}
    assert {name for name, _ in CASES.values()} == registered
    assert list(MADE) == list(envs.FILES)


def settings_of(name):
    """What an environment can be given, with the defaults."""
    task = (envs.FAMILIES | envs.OTHERS | envs.FILES).get(name, "envs.reasoning:reasoning")
    module, _, attribute = task.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    parameters = inspect.signature(found).parameters if callable(found) else {}
    given = {key: "???" if p.default is p.empty else p.default for key, p in parameters.items()}
    return given, bool(getattr(found, "guests", ())) or name in GUESTS


GUESTS = ("svf/HumanEval-v0", "svf/MBPP-v0", "svf/Rows-v0", "svf/ReasoningGym-v0")


@pytest.mark.parametrize("name", sorted(envs.FAMILIES | envs.OTHERS | envs.FILES | {"svf/ReasoningGym-v0": ""}))
def test_its_config_has_its_settings_and_their_defaults(name):
    if name == "svf/Sums-v0":
        pytest.skip("a lesson of the embedded base, not a task to train on")
    given, guests = settings_of(name)
    found = [yaml.safe_load(path.read_text()) for path in CONFIGS.glob("*.yaml")]
    (config,) = [c for c in found if c["id"] == f"envs:{name}"]
    own = {key: value for key, value in config.items() if key not in ("name", "id", "max_tokens")}
    assert own == given | ({"isolation": "strong"} if guests else {})


def test_gymnasium_accepts_it(env):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(custom|spec|render).*")
        check_env(env.unwrapped, skip_render_check=True)


def test_equal_rows_give_equal_questions(env):
    other = gymnasium.make(env.spec, disable_env_checker=True)
    for split in SHARES:
        for index in (0, 2, 5):
            options = {"split": split, "index": index}
            assert env.reset(options=options)[0] == other.reset(options=options)[0]
    assert env.reset(seed=7)[0] == other.reset(seed=7)[0]
    assert len({env.reset(seed=seed)[0] for seed in range(30)}) > 5


def test_gold_scores_one_and_another_answer_does_not(env):
    for index in range(8):
        gold = answered(env, "test", index, "")[4]["gold"]
        _, reward, *_, info = answered(env, "test", index, gold)
        assert (reward, info["verdict"], info["gold"]) == (1.0, "pass", gold)
        for wrong in WRONG:
            _, reward, terminated, truncated, info = answered(env, "test", index, wrong)
            assert reward < 1.0
            assert (terminated, truncated) == (True, False)
            assert info["verdict"] != "pass"


def test_splits_share_no_question(env):
    asked = {split: {content(prompt) for prompt in prompts(env, split)} for split in SHARES}
    assert all(len(found) > 5 for found in asked.values())
    for a, b in combinations(asked.values(), 2):
        assert not a & b


def test_a_task_that_needs_the_sandbox_says_how_strong_it_is(env):
    parts = getattr(env.unwrapped, "parts", {"": env})
    guests = any(getattr(part.unwrapped.task, "guests", ()) for part in parts.values())
    facts = env.unwrapped.facts
    assert set(facts) == ({"isolation"} if guests else set())
    assert all(facts.values())


def test_infos_can_be_averaged(env):
    infos = [answered(env, "train", index, "")[4] for index in range(4)]
    assert all(0 <= value <= 4 for value in env.unwrapped.summarise(infos).values())


def test_step_before_reset_is_refused(settings):
    name, more = settings
    with pytest.raises(gymnasium.error.ResetNeeded):
        gymnasium.make(f"envs:{name}", disable_env_checker=True, **more).step("x")


# ---- those made from files


@pytest.fixture(params=MADE)
def from_file(request, tmp_path):
    row, more = MADE[request.param]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(row(i)) for i in range(N)))
    return lambda **changed: (
        gymnasium.make(
            f"envs:{request.param}", disable_env_checker=True, **{"path": str(tmp_path / "data.jsonl"), **more, **changed}
        ).unwrapped
    )


def test_splits_hold_every_row(from_file):
    env = from_file()
    sizes = {split: env.task.size(split) for split in SHARES}
    assert sizes == {split: len(prompts(env, split, 1000)) for split in SHARES}
    assert sum(sizes.values()) == N


def test_unknown_settings_are_named_with_the_known_ones(from_file):
    with pytest.raises(ValueError, match="unexpected keyword argument 'pth'; its settings are path"):
        from_file(pth="x")
    with pytest.raises(ValueError, match="no file "):
        from_file(path="nowhere.jsonl")


def test_an_empty_split_says_so(from_file, tmp_path):
    env = from_file(path={"test": str(tmp_path / "data.jsonl")})
    assert env.size("train", 10) == 0
    with pytest.raises(IndexError, match="has 0 questions in train"):
        env.reset()
    assert env.reset(options={"split": "test"})[0]


# ---- those drawn by a program


@pytest.fixture(params=envs.FAMILIES)
def family(request):
    return gymnasium.make(f"envs:{request.param}", disable_env_checker=True).unwrapped


def test_the_content_of_a_question_decides_its_split(family):
    for split in SPLITS:
        items = [family.task.row(split, i) for i in range(family.size(split, 80))]
        assert {split_of(item.key) for item in items} == {split}
        assert len({item.prompt for item in items}) == len(items)


def test_writing_a_question_twice_differs_in_the_ways_people_do(family):
    """`write` knows several ways of answering (one, for a bare sum), and all of them are short."""
    import random

    rng = random.Random(0)
    item = family.task.draw("pretrain", rng)
    ways = {re.sub(r"\d+", "n", family.task.write(item, rng)) for _ in range(200)}
    assert 1 <= len(ways) <= 6


def test_a_generated_environment_takes_no_settings():
    with pytest.raises(ValueError, match=r"takes no settings; found path"):
        gymnasium.make("envs:svf/Math-v0", disable_env_checker=True, path="x")
