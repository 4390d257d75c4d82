"""Scores from one prefill are those of one forward pass for each label, on every architecture."""

import pytest
import torch

from svf_rl.base.load import Base
from svf_rl.dispatch.likelihood import answer_scores, label_scores
from svf_rl.errors import UserError

QUESTIONS = [[5, 6, 7], [9] * 14, [11, 3]]
LABELS = [[20, 21, 22], [30], [20, 41]]


def naive(base: Base, prompt: list[int], answer: list[int]) -> tuple[float, float]:
    """Mean log-probability and entropy by one plain forward pass of transformers."""
    with torch.no_grad():
        logp = base.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return float(logp[range(len(answer)), answer].mean()), float(-(logp.exp() * logp).sum(-1).mean())


def test_labels_share_a_prefill_and_score_as_alone(base: Base) -> None:
    expected = torch.tensor([[naive(base, q, one)[0] for one in LABELS] for q in QUESTIONS])
    torch.testing.assert_close(label_scores(base, QUESTIONS, LABELS), expected, atol=1e-4, rtol=1e-4)


def test_answers_score_as_alone(base: Base) -> None:
    found = answer_scores(base, QUESTIONS, LABELS)
    expected = torch.tensor([naive(base, q, a) for q, a in zip(QUESTIONS, LABELS, strict=True)])
    torch.testing.assert_close(torch.stack(found, -1), expected, atol=1e-4, rtol=1e-4)


def test_a_question_that_leaves_no_room_is_refused(tiny_base: Base) -> None:
    with pytest.raises(UserError, match="leaves no room for an answer"):
        label_scores(tiny_base, [[1] * (tiny_base.context - 2)], LABELS)
