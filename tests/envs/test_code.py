"""The functions are run here, as the generator wrote them (no model text), against what the docstring says."""

import re

import pytest

from envs.code import chains, hidden_tests, lists, stories


def from_docstring(doc: str, values: dict[str, int]) -> int:
    """Follow "Start with x, add y, then multiply by 3." word by word."""
    total = values[re.search(r"Start with (\w+)", doc)[1]]
    for verb, operand in re.findall(r"(add|subtract|multiply by) (\w+)", doc):
        other = values[operand] if operand in values else int(operand)
        total = {"add": total + other, "subtract": total - other, "multiply by": total * other}[verb]
    return total


def test_hidden_tests_follow_the_docstring():
    for index in range(100):
        item = chains.row("train", index)
        for test in hidden_tests(item):
            values = dict(zip(item.facts["arguments"], test.args, strict=True))
            assert test.expected == from_docstring(item.prompt, values), item.prompt


def test_hidden_tests_tell_a_half_done_function_from_a_whole_one():
    """The draft without its last operation never earns the whole reward."""
    import random

    rng, half_done = random.Random(1), 0
    for index in range(30):
        item = chains.row("train", index)
        for _ in range(6):
            written = chains.write(item, rng)
            lines = written.count("\n    r =")
            if lines and lines < len(item.facts["draft"]) - 1:
                half_done += 1
                assert chains.score(item, written).reward < 1.0, item.prompt + written
    assert half_done > 20


@pytest.mark.parametrize("task", [chains, lists, stories])
def test_finished_drafts_and_one_liners_both_pass(task):
    for index in range(20):
        item = task.row("valid", index)
        draft = "".join(f"\n    {line}" for line in item.facts["draft"])
        assert task.score(item, draft).reward == task.score(item, item.gold).reward == 1.0


def test_hostile_answers_get_a_verdict_and_no_reward():
    item = chains.row("test", 0)
    for text, verdict in [
        ("\n    while True: pass", "timeout"),
        ("\n    import os; os._exit(0)", "protocol"),
        ("\n    raise SystemExit", "error"),
        ("\n   bad indent (", "error"),
        ("\n    pass", "wrong"),
    ]:
        score = chains.score(item, text)
        assert (score.reward, score.verdict) == (0.0, verdict), text
