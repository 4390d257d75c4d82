"""Rows in the official format, written for this test, and answers whose value is known."""

import json

import pytest

from envs.gsm8k import gsm8k
from envs.sources import RowsError

ROW = {
    "question": "Ida has 3 boxes of 400 pens. She gives 5 pens away. How many pens are left?",
    "answer": "She had 3*400=<<3*400=1200>>1,200 pens.\nNow 1200-5=<<1200-5=1195>>1195 are left.\n#### 1,195",
}


def task(tmp_path, *rows, **settings):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows or [ROW])))
    return gsm8k({"test": str(tmp_path / "a.jsonl")}, **settings)


def test_the_question_and_its_gold_solution(tmp_path):
    item = task(tmp_path).row("test", 0)
    assert item.prompt == f"Question: {ROW['question']}\nAnswer:"
    assert item.gold == " She had 3*400=1,200 pens.\nNow 1200-5=1195 are left.\n#### 1,195"
    assert task(tmp_path).score(item, item.gold).info == {"strict": 1.0, "flexible": 1.0}


@pytest.mark.parametrize(
    ("completion", "flexible", "strict"),
    [
        (" #### 1195", 1, 1),
        (" The answer is 1,195 pens.", 1, 1),
        (r" \boxed{1195.00}", 1, 1),
        (" 1200 - 5 = 1195", 1, 0),
        (" #### 1195\n\nQuestion: How many are 2 and 2?\nAnswer: #### 4", 1, 1),
        (" #### 4\n\nQuestion: How many?\nAnswer: #### 1195", 0, 0),
        (" #### 1195 #### 4", 0, 0),
        (" #### 195", 0, 0),
        (" #### -1195", 0, 0),
        ("", 0, 0),
    ],
)
def test_strict_and_flexible_accuracy(tmp_path, completion, flexible, strict):
    for reward in ("flexible", "strict"):
        made = task(tmp_path, reward=reward)
        score = made.score(made.row("test", 0), completion)
        assert score.info == {"strict": strict, "flexible": flexible}
        assert score.reward == score.info[reward]


def test_rows_without_a_number_are_left_out(tmp_path):
    made = task(tmp_path, ROW, {"question": "Why?", "answer": "Because."}, {"question": "Who?", "answer": "#### Ida"})
    assert made.size("test") == 1
    assert [s.count for s in made.skipped.values()] == [2]


def test_settings(tmp_path):
    assert task(tmp_path, template="{question} =").row("test", 0).prompt.endswith("left? =")
    with pytest.raises(RowsError, match="reward must be one of flexible, strict"):
        task(tmp_path, reward="loose")
