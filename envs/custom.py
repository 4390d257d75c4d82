"""Your own task in a minute: any file or data set of questions and answers.

Description:       one row; the model answers it.
Observation space: the template, by default "{question}\\nAnswer:", filled with the row's columns.
Action space:      the answer as text.
Rewards:           what `reward` names:
                   exact      1.0 if the answer is the column `answer`, spacing aside
                   contains   1.0 if it contains the column `answer` as whole words, whatever their case
                   numeric    1.0 if the number read from it (grading.py) equals the one read from the column
                   math       the same for any mathematics: LaTeX, fractions, sets; math-verify decides in the sandbox
                   regex      1.0 if the column, a regular expression, is found in it; the search runs in the sandbox
                   python:MODULE:FUNCTION   what your function returns, in [0, 1]
Starting state:    row `index` of the split.
Episode end:       after one answer.
Settings:          path, reward, template, answer (a column), gold (a column with an answer that earns 1.0, for regex and python; by
                   default the answer itself).
Version history:   v0.

A row of a file of JSON lines:

    {"question": "What is the capital of Norway?", "answer": "Oslo"}

Use:

    gymnasium.make("envs:svf/Rows-v0", path="capitals.jsonl", reward="contains")
    gymnasium.make("envs:svf/Rows-v0", path="tickets.csv", template="Ticket: {body}\\nTeam:", answer="team")
    gymnasium.make("envs:svf/Rows-v0", path="poems.jsonl", reward="python:my_rewards:rhymes")

where my_rewards.py, in the current folder or anywhere Python imports from, has

    def rhymes(completion: str, row: dict) -> float: ...

Your function is trusted: it runs in this process. If it raises, or returns anything but a number from 0 to 1, that is a fault and
not a reward of 0. Whatever it does with the completion (run it, match slow patterns on it), it should expect the worst of it.
"""

import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from envs import isolated
from envs.answers import score_math, score_number, verdict
from envs.grading import last_number, marked_answer, quantity
from envs.rows import RowTask, content, fill
from envs.sources import Row, RowsError, Unusable
from envs.text import Item, Score

TEMPLATE = "{question}\nAnswer:"
_MAX_COMPLETION = 100_000


class RewardFault(RuntimeError):
    """The user's own reward function raised, or returned what is no reward."""


def rows(
    path: str | Mapping[str, str], reward: str = "exact", template: str = TEMPLATE, answer: str = "answer", gold: str | None = None
) -> RowTask:
    """The task of a file, of files by split, or of a data set."""
    score, prepare = _reward(reward)

    def item(row: Row) -> Item:
        right = "" if reward.startswith("python:") and answer not in row.values else prepare(row.text(answer))
        example = row.text(gold) if gold else right
        prompt = fill(template, row)
        return Item(prompt, example, content(prompt), {"answer": right, "row": dict(row.values)})

    return RowTask("Rows-v0", path, item, score, guests=(isolated.PROGRAMS,) if reward in ("math", "regex") else ())


def _reward(name: str) -> tuple[Callable[[Item, str], Score], Callable[[str], str]]:
    """The grader of a reward's name, and what checks and prepares a row's answer for it."""
    if name in _REWARDS:
        return _REWARDS[name]
    if name.startswith("python:"):
        return _own(name), lambda answer: answer
    raise RowsError(f"reward must be one of {', '.join(_REWARDS)} or python:MODULE:FUNCTION, not {name!r}")


def _exact(item: Item, completion: str) -> Score:
    given = " ".join(completion.split())
    return verdict(given == " ".join(item.facts["answer"].split()) if given else None, True, given)


def _contains(item: Item, completion: str) -> Score:
    said = content(completion[:_MAX_COMPLETION])
    right = re.search(rf"(?<!\w){re.escape(content(item.facts['answer']))}(?!\w)", said)
    return verdict(right is not None if said else None, True, said)


def _numeric(item: Item, completion: str) -> Score:
    number = quantity(item.facts["answer"])
    if number is None:
        raise ValueError("an answer that was a number when it was first read is none now")
    return score_number(number, completion)


def _math(item: Item, completion: str) -> Score:
    return score_math(item.facts["answer"], completion)


def _regex(item: Item, completion: str) -> Score:
    said = completion[:_MAX_COMPLETION]
    return verdict(isolated.found(item.facts["answer"], said) if said else None, True, said)


def _number(answer: str) -> str:
    """The number that a column holds, or ends in as solutions do ("... #### 72")."""
    number = last_number(answer)
    if number is None:
        raise Unusable("an answer without a number")
    return str(number)


def _expression(answer: str) -> str:
    """The marked answer of a solution, or the column as it is."""
    marked = marked_answer(answer)
    return marked.text if marked else answer.strip()


def _pattern(answer: str) -> str:
    try:
        re.compile(answer)
    except re.error as error:
        raise Unusable(f"no regular expression ({error.msg})") from None
    return answer


_REWARDS: dict[str, tuple[Callable[[Item, str], Score], Callable[[str], str]]] = {
    "exact": (_exact, str.strip),
    "contains": (_contains, str.strip),
    "numeric": (_numeric, _number),
    "math": (_math, _expression),
    "regex": (_regex, _pattern),
}


def _own(name: str) -> Callable[[Item, str], Score]:
    """A grader that asks the user's function."""
    function = _imported(name)

    def score(item: Item, completion: str) -> Score:
        try:
            reward = float(function(completion, item.facts["row"]))
        except Exception as error:
            raise RewardFault(f"{name} raised {type(error).__name__}: {error}") from error
        if not (math.isfinite(reward) and 0.0 <= reward <= 1.0):
            raise RewardFault(f"{name} returned {reward}; expected a number from 0 to 1")
        return Score(reward, "pass" if reward == 1.0 else "wrong", "", {"reward": reward})

    return score


def _imported(name: str) -> Callable[[str, dict[str, Any]], Any]:
    module, _, function = name.removeprefix("python:").partition(":")
    if not module or not function:
        raise RowsError(f"expected python:MODULE:FUNCTION, found {name!r}")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the user's module raises when it is imported
        raise RowsError(f"cannot import {function} from {module}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise RowsError(f"{module}:{function} is no function but a {type(found).__name__}")
    return found  # type: ignore[no-any-return]
