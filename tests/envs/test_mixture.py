"""Several environments as one: exact shares, and everything else is the part's own."""

import random
from fractions import Fraction

import gymnasium
import pytest

PARTS = {"math": {"id": "envs:svf/Math-v0"}, "topic": {"id": "envs:svf/Topic-v0"}, "sums": {"id": "envs:svf/Sums-v0"}}


def make(weights=None, parts=PARTS):
    return gymnasium.make("envs:svf/Mixture-v0", disable_env_checker=True, parts=parts, weights=weights).unwrapped


def told(env, split, index, answer=""):
    prompt, _ = env.reset(options={"split": split, "index": index})
    return prompt, env.step(answer)


def test_shares_are_exact_to_less_than_a_row():
    rng = random.Random(0)
    drawn = [[rng.choice([rng.randint(1, 20), rng.random()]) for _ in range(rng.randint(2, 7))] for _ in range(60)]
    for weights in [[2, 1], [10, *[1] * 10], [0.1, 0.2, 0.7], [1e-6, 1], *drawn]:
        env = make(weights, {str(i): {"id": "envs:svf/Sums-v0"} for i in range(len(weights))})
        counts = dict.fromkeys(env.parts, 0)
        for n in range(1, 120):
            name, row = env._part(n - 1)
            assert row == counts[name]  # each part's own rows, in order, none left out
            counts[name] += 1
            for count, weight in zip(counts.values(), weights, strict=True):
                assert abs(count - n * Fraction(weight) / sum(map(Fraction, weights))) < 1, (weights, n, counts)


def test_rows_are_the_parts_own_and_say_which():
    env, seen = make([2, 1, 1]), []
    single = {name: gymnasium.make(part["id"], disable_env_checker=True).unwrapped for name, part in PARTS.items()}
    for index in range(12):
        prompt, (*_, info) = told(env, "test", index)
        own = seen.count(info["env"])
        assert prompt == single[info["env"]].reset(options={"split": "test", "index": own})[0]
        assert told(env, "test", index, info["gold"])[1][1] == 1.0
        seen.append(info["env"])
    assert [seen.count(name) for name in PARTS] == [6, 3, 3]


def test_it_has_as_many_rows_as_its_first_part_to_run_out(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("question,answer\n" + "".join(f"What is {i}?,{i}\n" for i in range(7)))
    rows = {"id": "envs:svf/Rows-v0", "path": {"test": str(path)}}
    env = make([1, 2], {"rows": rows, "math": PARTS["math"]})
    size = env.size("test", 1000)
    names = [env._part(i)[0] for i in range(size)]
    assert names.count("rows") == 7
    assert env._part(size) == ("rows", 7)  # the next row would be the eighth of seven
    assert env.size("test", 4) == 4
    assert env.size("train", 1000) == 1 - names[:1].count("rows")


def test_figures_for_each_part():
    env = make([1, 1, 1])
    infos = []
    for index in range(6):
        _, (*_, info) = told(env, "valid", index)
        infos.append(told(env, "valid", index, info["gold"] if index < 3 else "")[1][4])
    figures = env.summarise(infos)
    assert figures["math_flexible"] == 0.5
    assert all(key.split("_")[0] in PARTS for key in figures)
    assert env.summarise([]) == {}


def test_every_part_is_prepared_and_says_its_facts():
    env = make(None, {"math": PARTS["math"], "code": {"id": "envs:svf/Code-v0"}})
    env.prepare()
    assert env.facts["isolation"]
    assert make().facts == {}


@pytest.mark.parametrize(
    "weights", [[1, 2], [1, 2, 0], [1, 2, -1], [1, 2, float("inf")], [1, 2, float("nan")], ["a", 1, 1], 2, "abc"]
)
def test_weights_are_positive_and_one_for_each_part(weights):
    with pytest.raises(ValueError, match="two parts or more and a weight above 0 for each, found"):
        make(weights)


def test_one_part_is_no_mixture():
    with pytest.raises(ValueError, match="two parts or more"):
        make(None, {"math": PARTS["math"]})
