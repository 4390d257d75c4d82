import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.metrics import macro_f1, summarise

LABELS = st.sampled_from(["a", "b", "c"])


def by_definition(pairs: list[tuple[str, str]]) -> float:
    """F1 of each label from its precision and recall, and their mean."""
    scores = []
    for label in {word for pair in pairs for word in pair if word}:
        hits = sum(gold == answer == label for gold, answer in pairs)
        said, meant = sum(answer == label for _, answer in pairs), sum(gold == label for gold, _ in pairs)
        precision, recall = hits / said if said else 0.0, hits / meant if meant else 0.0
        scores.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return sum(scores) / len(scores)


def test_macro_f1_by_hand():
    assert macro_f1([("a", "a"), ("a", "b"), ("b", "b"), ("b", None)]) == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert macro_f1([("a", "a"), ("b", "b")]) == 1.0
    assert macro_f1([("a", None), ("b", "")]) == 0.0
    assert macro_f1([]) == 0.0
    assert macro_f1([("a", "a")] * 99 + [("b", "a")]) == pytest.approx((2 * 99 / 199) / 2), "one class alone is half"


@given(st.lists(st.tuples(LABELS, st.one_of(LABELS, st.just(""))), min_size=1))
def test_macro_f1_is_its_definition(pairs):
    assert macro_f1(pairs) == pytest.approx(by_definition(pairs))


def test_infos_are_averaged():
    infos = [
        {"verdict": "pass", "strict": 1.0, "flexible": 1.0, "label": "a", "predicted": "a"},
        {"verdict": "wrong", "strict": 0.0, "flexible": 1.0, "label": "b", "predicted": "b"},
    ]
    assert summarise(infos) == {"strict": 0.5, "flexible": 1.0, "macro_f1": 1.0}
    assert summarise([{"gold": "x", "strict": 1.0}, {"gold": "x"}]) == {}
    assert summarise([]) == {}
