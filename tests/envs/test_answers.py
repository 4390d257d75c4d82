"""Which answer is read from a completion, and when mathematics in the sandbox is asked. Truths are worked out by hand."""

import pytest

from envs import answers, isolated
from envs.answers import score_math
from envs.sandbox import SandboxFault

PURE = [  # gold, completion, reward, strict
    ("72", "48 + 24 = 72\n#### 72", 1, 1),
    ("72", "so 72 clips", 1, 0),
    ("72", "The answer is 72 clips.", 1, 1),
    ("72", r"\boxed{72 \text{ clips}}", 1, 1),
    ("1450000", "#### 1,450,000", 1, 1),
    ("1450000", "#### 1.45 million", 1, 1),
    ("0.5", r"\boxed{\frac{1}{2}}", 1, 1),
    ("12", "The answer is 12%.", 1, 1),
    ("0.12", r"\boxed{12\%}", 1, 1),
    ("67", "The answer is 54 + 13 = 67.", 1, 1),
    ("5", "The answer is 5 (five).", 1, 1),
    ("5", "The answer is 5, not 6", 1, 1),
    ("5", "The answer is unknown, maybe 5", 1, 0),
    ("5", "The answer is 4. Or 5.", 0, 0),
    ("5", "4 5 6", 0, 0),
    ("5", r"\boxed{4, 5}", 0, 0),
    ("5", r"\boxed{5, 4}", 0, 0),
    ("5", r"\boxed{about five} 5", 0, 0),
    ("5", "", 0, 0),
    ("Monday", r"It is \boxed{\text{monday}}.", 1, 1),
    ("Monday", "The answer is Tuesday.", 0, 0),
    ("(1,2)", "so we have $(1, 2)$", 1, 0),
    ("x+1", "Working.\nx + 1", 1, 0),
]


@pytest.mark.parametrize(("gold", "completion", "reward", "strict"), PURE)
def test_what_text_decides_asks_nobody(gold, completion, reward, strict, monkeypatch):
    monkeypatch.setattr(isolated, "same_expression", lambda *_: pytest.fail("asked"))
    score = score_math(gold, completion)
    assert (score.reward, score.info) == (reward, {"strict": strict, "flexible": reward})
    assert score.verdict == ("pass" if reward else "wrong" if completion else "no_answer")


@pytest.mark.parametrize(("says", "reward"), [(True, 1.0), (False, 0.0), (None, 1.0)])
def test_one_answer_is_read(says, reward, monkeypatch):
    """A boxed expression that is understood is the answer; only one that is none leaves the last number."""
    monkeypatch.setattr(isolated, "same_expression", lambda gold, answer: says)
    assert score_math("16", r"\boxed{\sqrt{256}} = 16").reward == reward


def test_a_fault_of_the_machinery_is_no_zero(monkeypatch):
    def broken(gold: str, answer: str) -> bool:
        raise SandboxFault("no servers")

    monkeypatch.setattr(isolated, "same_expression", broken)
    with pytest.raises(SandboxFault):
        score_math("4", r"\boxed{\sqrt{16}}")


def test_long_completions_are_read_at_their_end():
    assert score_math("5", "7 " * 100_000 + "#### 5").reward == 1.0
    assert len(answers.score_math("x+1", "y" * 100_000).answer) <= 400
