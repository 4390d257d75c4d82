"""What many answers amount to: means of what the grader measured, and macro-F1 where there are labels."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def summarise(infos: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of every number that all infos of `step` carry, and macro_f1 if they carry "label" and "predicted"."""
    if not infos:
        return {}
    numbers = [name for name, value in infos[0].items() if isinstance(value, float) and all(name in info for info in infos)]
    means = {name: sum(info[name] for info in infos) / len(infos) for name in numbers}
    if all("label" in info and "predicted" in info for info in infos):
        means["macro_f1"] = macro_f1((info["label"], info["predicted"]) for info in infos)
    return means


def macro_f1(pairs: Iterable[tuple[str, str | None]]) -> float:
    """The mean over labels of F1 = 2 right / (gold + predicted), from (gold label, predicted label or None).

    Labels are those that occur as gold or prediction; an answer without a label (None, "") counts against its gold label only.
    """
    right, gold, predicted = Counter[str](), Counter[str](), Counter[str]()
    for label, answer in pairs:
        gold[label] += 1
        predicted[answer or ""] += 1
        right[label] += answer == label
    del predicted[""]
    labels = gold.keys() | predicted.keys()
    return sum(2 * right[label] / (gold[label] + predicted[label]) for label in labels) / len(labels) if labels else 0.0
