"""GSM8K: word problems of primary school, from the official file.

Description:       8 792 problems in English whose solutions take two to eight steps of arithmetic.
Observation space: the template, by default "Question: ...", ending in "Answer:".
Action space:      the solution as text, with the answer marked: "#### 72", "\\boxed{72}" or "The answer is 72".
Rewards:           1.0 if the answer equals the gold answer, else 0.0. With reward="strict" only a marked answer counts, with
                   "flexible" (the default) the last number does if none is marked; info has both.
Starting state:    row `index` of the split.
Episode end:       after one answer.
Settings:          path, reward, template (of the column {question}).
Version history:   v0.

A row as the file has it (written for this page; the file itself is openai/grade-school-math, MIT licence):

    {"question": "Ida has 3 boxes of 4 pens. She gives 5 pens away. How many pens are left?",
     "answer": "She had 3*4=<<3*4=12>>12 pens.\\nNow 12-5=<<12-5=7>>7 are left.\\n#### 7"}

Use:

    gymnasium.make("envs:svf/GSM8K-v0", path={"train": "train.jsonl", "test": "test.jsonl"})
    gymnasium.make("envs:svf/GSM8K-v0", path="hf:openai/gsm8k:main")

Source: Cobbe et al. 2021, https://github.com/openai/grade-school-math.
Differs from the source:
1. The notes for a calculator, <<...>>, are left out of the gold solution.
2. The source compares the text after "####"; here numbers are compared, so 1,000 and 1000.00 are the same.
3. A model that goes on to a next "Question:" has answered before it; what follows is not read.
"""

import re
from collections.abc import Mapping

from envs.answers import score_math
from envs.grading import quantity
from envs.rows import RowTask, content, fill
from envs.sources import Row, RowsError, Unusable
from envs.text import Item, Score

TEMPLATE = "Question: {question}\nAnswer:"
REWARDS = ("flexible", "strict")


def gsm8k(path: str | Mapping[str, str], reward: str = "flexible", template: str = TEMPLATE) -> RowTask:
    """The task of a file, of files by split, or of a data set."""
    if reward not in REWARDS:
        raise RowsError(f"reward must be one of {', '.join(REWARDS)}, not {reward!r}")

    def score(item: Item, completion: str) -> Score:
        graded = score_math(item.facts["answer"], completion.split("\nQuestion:")[0])
        return Score(graded.info[reward], graded.verdict, graded.answer, graded.info)

    return RowTask("GSM8K-v0", path, lambda row: _item(row, template), score)


def _item(row: Row, template: str) -> Item:
    solution, mark, answer = row.text("answer").rpartition("####")
    if not mark or not quantity(answer):
        raise Unusable("no number after \"####\" in column 'answer'")
    worked = re.sub(r"<<.*?>>", "", solution)
    return Item(
        prompt=fill(template, row),
        gold=f" {worked.strip()}\n#### {answer.strip()}",
        key=content(row.text("question")),
        facts={"answer": answer.strip()},
    )
