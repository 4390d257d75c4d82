"""The stories are solved again from their English, independently of how they were made."""

import re

from envs.math import long_word_problems, sums, word_problems

GAIN = r"(?:buys|finds|gets|picks up|is given)"
LOSS = r"(?:loses|gives away|sells|drops|uses)"


def solve(prompt: str) -> int:
    """Read the story sentence by sentence."""
    total = int(re.search(r"has (\d+)", prompt)[1])
    for sentence in prompt.split("?")[0].split(". ")[1:]:
        if match := re.search(rf"{GAIN} (\d+) (?:bags|boxes|packs) of (\d+)", sentence):
            total += int(match[1]) * int(match[2])
        elif match := re.search(rf"{GAIN} (\d+)", sentence):
            total += int(match[1])
        elif match := re.search(rf"{LOSS} (\d+)", sentence):
            total -= int(match[1])
        elif "doubles" in sentence:
            total *= 2
        else:
            assert "How many" in sentence, sentence
    return total


def test_gold_answers_solve_the_stories():
    for task in (word_problems, long_word_problems):
        for index in range(300):
            item = task.row("train", index)
            assert item.facts["answer"] == solve(item.prompt), item.prompt


def test_every_step_of_the_working_is_right():
    for task in (word_problems, long_word_problems, sums):
        for index in range(150):
            for left, op, right, result in re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", task.row("valid", index).gold):
                assert int(result) == {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}[op]


def test_the_hurried_way_is_wrong_whenever_there_is_more_than_one_step():
    import random

    rng, many = random.Random(0), 0
    for index in range(200):
        item = word_problems.row("train", index)
        written = {word_problems.write(item, rng) for _ in range(40)}
        rewards = {text: word_problems.score(item, text).reward for text in written}
        assert rewards[item.gold] == 1.0
        if len(item.facts["steps"]) > 1:
            many += 1
            assert min(rewards.values()) == 0.0
    assert many > 50


def test_verdicts():
    item = word_problems.row("test", 0)
    answer = item.facts["answer"]
    assert word_problems.score(item, f" The answer is {answer}.").verdict == "pass"
    assert word_problems.score(item, f" {answer + 1}").verdict == "wrong"
    assert word_problems.score(item, " Many.").verdict == "no_answer"
    assert word_problems.score(item, f" The answer is {answer}. The answer is {answer + 1}.").reward == 0.0
