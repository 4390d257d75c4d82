"""Texts to be labelled: any CSV, JSONL or Hugging Face data set with a column of texts and one of labels.

Description:       one text; the model writes its label.
Observation space: the template, by default "Text: ...", the labels in brackets, ending in "Label".
Action space:      the label as text.
Rewards:           1.0 for the right label, else 0.0. With reward="flexible" (the default) the last label that the answer names
                   counts, with "strict" the answer must be the label and nothing else; info has both.
Starting state:    row `index` of the split.
Episode end:       after one answer.
Settings:          path, text and label (column names), labels (the names; needed when the column holds their numbers, else found
                   in the data), reward, template (of {text}, {labels} and any column).
Version history:   v0.

A row of a CSV file with columns "text" and "label":

    The engine starts and then stops again.,cars

is asked as

    Text: The engine starts and then stops again.
    Label (cars, garden): cars

Use:

    gymnasium.make("envs:svf/Labels-v0", path="notes.csv", label="topic")
    gymnasium.make("envs:svf/Labels-v0", path="hf:fancyzhx/ag_news")

`metrics.macro_f1` of many answers is in `TextEnv.summarise`, beside their accuracy.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from envs.rows import RowTask, content, declared, fill
from envs.sources import Row, RowsError, Unusable, open_source
from envs.text import Item, Score

TEMPLATE = "Text: {text}\nLabel ({labels}):"
REWARDS = ("flexible", "strict")
MAX_LABELS = 200


def labels(
    path: str | Mapping[str, str],
    text: str = "text",
    label: str = "label",
    labels: Sequence[str] | None = None,
    reward: str = "flexible",
    template: str = TEMPLATE,
) -> RowTask:
    """The task of a file, of files by split, or of a data set."""
    if reward not in REWARDS:
        raise RowsError(f"reward must be one of {', '.join(REWARDS)}, not {reward!r}")
    names = tuple(labels) if labels else _found(path, label)
    read = reader(names)

    def item(row: Row) -> Item:
        name = _name(row, label, names)
        values = {**row.values, "text": row.text(text), "labels": ", ".join(names)}
        return Item(fill(template, Row(values, row.where)), f" {name}", content(row.text(text)), {"label": name})

    def score(item: Item, completion: str) -> Score:
        return score_label(item.facts["label"], read(completion), completion, reward)

    return RowTask("Labels-v0", path, item, score)


def score_label(label: str, named: str | None, completion: str, reward: str) -> Score:
    """The score of an answer in which the label `named` was read."""
    right = named == label
    alone = bool(named) and completion.strip().rstrip(".").casefold() == str(named).casefold()
    measured = {"strict": float(right and alone), "flexible": float(right)}
    earned = measured[reward]
    verdict = "no_answer" if not named else "pass" if earned else "wrong"
    return Score(earned, verdict, named or "", {**measured, "label": label, "predicted": named or ""})


def reader(names: Sequence[str]) -> Callable[[str], str | None]:
    """A function that finds the last label that a text names, whatever its case; of overlapping labels the longer counts."""
    by_length = sorted(names, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, by_length))})(?!\w)", re.IGNORECASE)
    known = {name.casefold(): name for name in names}

    def read(text: str) -> str | None:
        found = pattern.findall(text[:20_000])
        return known.get(found[-1].casefold()) if found else None

    return read


def _name(row: Row, column: str, names: Sequence[str]) -> str:
    """The row's label; a number is an index into the names unless it is one of them."""
    value = row.text(column).strip()
    if value in names:
        return value
    if value.isdecimal() and int(value) < len(names):
        return names[int(value)]
    raise Unusable(f"a label in column {column!r} that is none of {', '.join(names[:10])}")


def _found(path: str | Mapping[str, str], column: str) -> tuple[str, ...]:
    """The different labels of the data, sorted. RowsError if there are none, or so many that the column must be another one."""
    seen: dict[str, None] = {}
    for file in declared(path).values():
        for _, row in open_source(file).scan():
            value = row.values.get(column)
            seen |= {str(value).strip(): None} if value is not None and str(value).strip() else {}
            if len(seen) > MAX_LABELS:
                raise RowsError(f"more than {MAX_LABELS} different labels in column {column!r} of {file}; is it the right column?")
    folded = {name.casefold() for name in seen}
    if len(folded) < max(2, len(seen)):
        raise RowsError(f"expected two labels or more in column {column!r}, different whatever their case; found {list(seen)}")
    return tuple(sorted(seen))
