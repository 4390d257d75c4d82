"""ARC: multiple-choice questions of school science, from the official files.

Description:       7 787 questions in two sets, Easy and Challenge, with three to five choices; keys are letters or digits.
Observation space: "Question: ...", a line "A. ..." for each choice, ending in "Answer:".
Action space:      the key, or the choice in its own words.
Rewards:           1.0 for the right choice, else 0.0. With reward="strict" the answer must begin with a key, or mark one ("The
                   answer is B", "\\boxed{B}"); with "flexible" (the default) the last key in brackets counts too, else a choice
                   quoted in full, else the last key that stands alone; info has both.
Starting state:    row `index` of the split.
Episode end:       after one answer.
Settings:          path, reward.
Version history:   v0.

A row as the file has it (written for this page; the files themselves are AI2's ARC-V1, CC BY-SA 4.0):

    {"id": "x1", "question": {"stem": "Which of these is a metal?", "choices": [{"text": "iron", "label": "A"},
     {"text": "wood", "label": "B"}]}, "answerKey": "A"}

is asked as

    Question: Which of these is a metal?
    A. iron
    B. wood
    Answer: A

The rows of the hub's copy, where choices are {"text": [...], "label": [...]}, are read as well:

    gymnasium.make("envs:svf/ARC-v0", path={"train": "ARC-Easy-Train.jsonl", "valid": "ARC-Easy-Dev.jsonl", ...})
    gymnasium.make("envs:svf/ARC-v0", path="hf:allenai/ai2_arc:ARC-Easy")

Source: Clark et al. 2018, https://allenai.org/data/arc.
Differs from the source: one choice is read from an answer, so the source's part marks for several choices cannot occur.
"""

import re
from collections.abc import Mapping
from typing import Any

from envs.grading import marked_answer
from envs.labels import REWARDS
from envs.rows import RowTask, content
from envs.sources import Row, RowsError, Unusable
from envs.text import Item, Score


def arc(path: str | Mapping[str, str], reward: str = "flexible") -> RowTask:
    """The task of a file, of files by split, or of a data set."""
    if reward not in REWARDS:
        raise RowsError(f"reward must be one of {', '.join(REWARDS)}, not {reward!r}")
    return RowTask("ARC-v0", path, _item, lambda item, completion: _score(item, completion, reward))


def _item(row: Row) -> Item:
    question = row.values.get("question")
    stem, choices = (
        (question.get("stem"), question.get("choices")) if isinstance(question, dict) else (question, row.values.get("choices"))
    )
    named = _choices(choices)
    key = row.text("answerKey").strip()
    if not isinstance(stem, str) or not stem.strip() or len(named) < 2:
        raise Unusable("no question with choices, as ARC has them")
    if key not in named:
        raise Unusable("an answerKey that is the key of no choice")
    lines = [f"Question: {stem.strip()}", *(f"{name}. {text}" for name, text in named.items()), "Answer:"]
    return Item("\n".join(lines), f" {key}", content(" ".join([stem, *sorted(named.values())])), {"answer": key, "choices": named})


def _choices(choices: Any) -> dict[str, str]:
    """Key and text of each choice, from a list of pairs (the official files) or a pair of lists (the hub's copy)."""
    try:
        if isinstance(choices, dict):
            return {str(key): str(text) for key, text in zip(choices["label"], choices["text"], strict=True)}
        return {str(choice["label"]): str(choice["text"]) for choice in choices or ()}
    except (KeyError, TypeError, ValueError):
        return {}


def _score(item: Item, completion: str, reward: str) -> Score:
    choices = item.facts["choices"]
    text = completion[:20_000]
    strict = chosen_key(text, list(choices))
    named = strict or _bracketed(text, list(choices)) or _quoted(text, choices) or _last_key(text, list(choices))
    gold = item.facts["answer"]
    measured = {"strict": float(strict == gold), "flexible": float(named == gold)}
    earned = measured[reward]
    verdict = "no_answer" if not named else "pass" if earned else "wrong"
    return Score(earned, verdict, named or "", {**measured, "label": gold, "predicted": named or ""})


def chosen_key(text: str, keys: list[str]) -> str | None:
    """The key that a text marks as its answer, or that it begins with: "B", "(B)", "B. wood"."""
    one = "|".join(map(re.escape, keys))
    marked = marked_answer(text)
    for part in (marked.text if marked else "", text):
        if found := re.match(rf"[\s(*]*({one})(?:[).:*\s]*$|[).:*]+(?!\w)|\n)", part):
            return found[1]
    return None


def _bracketed(text: str, keys: list[str]) -> str | None:
    """The last key in brackets of its own."""
    found = re.findall(rf"\(({'|'.join(map(re.escape, keys))})\)", text)
    return found[-1] if found else None


def _quoted(text: str, choices: Mapping[str, str]) -> str | None:
    """The key of the only choice whose words the text contains."""
    said = content(text)
    named = [key for key, words in choices.items() if re.search(rf"(?<!\w){re.escape(content(words))}(?!\w)", said)]
    return named[0] if len(named) == 1 else None


def _last_key(text: str, keys: list[str]) -> str | None:
    """The last key that stands alone; an "A" with a word after it is an article."""
    one = "|".join(map(re.escape, keys))
    found = re.findall(rf"(?<![\w'])({one})(?![\w']|\s+[a-z])", text)
    return found[-1] if found else None
