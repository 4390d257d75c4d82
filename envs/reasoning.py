"""Any task of the reasoning-gym package: about a hundred generators of puzzles with scorers. Needs the extra `reasoning-gym`.

Description:       one puzzle of the task that `task` names, drawn with the task's own default settings.
Observation space: the puzzle, then "Answer:".
Action space:      the answer as text, marked as in \\boxed{...}, "The answer is ..." or "#### ...", or else the whole text.
Rewards:           the task's own scorer, in [0, 1].
Starting state:    row `index` of the split; a puzzle's text decides its split, as for every generated task.
Episode end:       after one answer.
Settings:          task.
Version history:   v0.

One row of task=chain_sum:

    State the final answer to the following arithmetic problem: 7 - 4 - 0 - 0 + 2 - 9 =
    Answer: -4

Source: https://github.com/open-thought/reasoning-gym.
Differs from the source:
1. Scorers run in a guest of the sandbox: none has a time limit, and several execute the answer they are given. What an answer makes
   a scorer do is contained; a scorer that dies or runs out of its limits gives no reward. And those that would execute an answer
   read it instead (`reasoning_scorer.py`), since an answer that is executed could give itself the reward.
2. Two tasks whose scorers reward answers that are wrong are refused.
3. Where a task states no answer (several are right), the gold answer is empty.
"""

import random
from typing import Any

from envs import isolated
from envs.grading import marked_answer
from envs.sources import RowsError
from envs.text import Generated, Item, Score, TextEnv

SCORER = "envs.reasoning_scorer"
SHARES = {"pretrain": 1, "train": 49, "valid": 10, "test": 40}  # no base is pretrained on them, and some are slow to draw
REFUSED = {
    "composite": "it is a mixture that needs settings of its own",
    "game_of_life_halting": "its scorer takes every text for the answer True",
    "puzzle24": "its scorer takes any four numbers that make 24, whatever the puzzle's are",
}


def make(task: str, **settings: Any) -> TextEnv:
    """The environment of a task; settings: those of TextEnv."""
    return TextEnv(reasoning(task), **settings)


def reasoning(task: str) -> Generated:
    """The task of that name. RowsError if the package is not installed or has no such task."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise RowsError("reasoning-gym is not installed; run: pip install 'svf-rl[reasoning-gym]'") from error
    if task in REFUSED:
        raise RowsError(f"reasoning-gym's task {task!r} cannot be trained on: {REFUSED[task]}; choose another")
    if task not in DATASETS:
        raise RowsError(f"reasoning-gym has no task {task!r}; it has {', '.join(sorted(set(DATASETS) - set(REFUSED)))}")
    name = f"ReasoningGym-v0 {task}"
    return Generated(name, lambda rng: _draw(task, rng), _score, lambda item, rng: item.gold, (SCORER,), SHARES)


def _draw(task: str, rng: random.Random) -> Item:
    from reasoning_gym import create_dataset

    entry: dict[str, Any] = create_dataset(task, seed=rng.randrange(2**31), size=1)[0]
    question, answer = str(entry["question"]), entry["answer"]
    gold = "" if answer is None else f" {answer}"
    return Item(f"{question}\nAnswer:", gold, question, {"task": task, "entry": entry})


def _score(item: Item, completion: str) -> Score:
    """The scorer's reward for the answer. SandboxFault if the machinery failed."""
    marked = marked_answer(completion)
    answer = marked.text if marked else completion.strip()
    reward = isolated.reasoning_score(item.facts["task"], answer, item.facts["entry"])
    return Score(reward, "pass" if reward >= 1.0 else "wrong", answer[:400])
