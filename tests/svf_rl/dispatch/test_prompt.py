"""What the base is asked, what its scores become, and the published form."""

from collections.abc import Callable

import pytest
import torch

from svf_rl.base.load import Base
from svf_rl.dispatch import prompt as module
from svf_rl.dispatch.classifier import ClassifierConfig, make_classifier
from svf_rl.dispatch.prompt import NOTHING, PromptConfig, last_label, make_prompt
from svf_rl.errors import ExpertError, UserError
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.types import Expert


@pytest.fixture
def base(tiny_base: Base) -> Base:
    return tiny_base


@pytest.fixture
def pair(draw: Callable[..., Expert]) -> dict[str, Expert]:
    return {"sums": draw(0, env="envs:svf/Math-v0"), "bodies": draw(1, env="envs:svf/Code-v0")}


@pytest.mark.parametrize(
    ("scores", "weights", "chosen"),
    [
        ([0.0, -3.0, -2.0], [1, 0], "sums"),
        ([-3.0, 0.0, -2.0], [0, 1], "bodies"),
        ([-3.0, -2.0, 0.0], [0, 0], "base"),  # other
        ([0.0, -0.1, -2.0], [0, 0], "base"),  # not sure
    ],
)
def test_scores_become_weights(
    base: Base, adapter: SVFAdapter, pair: dict[str, Expert], monkeypatch: pytest.MonkeyPatch,
    scores: list[float], weights: list[int], chosen: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "label_scores", lambda base, asked, labels: torch.tensor([scores] * len(asked)))
    decision = make_prompt(base, adapter, pair, PromptConfig(calibrate=False)).decide(["x"])
    assert decision.weights.tolist() == [weights]
    assert decision.labels == [chosen]
    assert list(decision.scores[0]) == ["math", "code", "other"]


def test_calibration_takes_away_what_is_said_of_nothing(base: Base, adapter: SVFAdapter, pair: dict[str, Expert]) -> None:
    dispatcher = make_prompt(base, adapter, pair, PromptConfig(margin=0.0))
    of_nothing = torch.tensor([list(s.values()) for s in dispatcher.decide(list(NOTHING)).scores])
    torch.testing.assert_close(of_nothing.mean(0), torch.zeros(3), atol=1e-5, rtol=0)


def test_the_last_label_named_counts() -> None:
    labels = ["math", "hard math", "other"]
    assert last_label("Not math, it is Hard Math.", labels) == "hard math"
    assert last_label("aftermath", labels) is None


def test_an_answer_that_names_no_label_is_the_base(base: Base, adapter: SVFAdapter, pair: dict[str, Expert]) -> None:
    decision = make_prompt(base, adapter, pair, PromptConfig(decode=True)).decide(["x", "yy"])  # a random base
    assert decision.labels == ["base", "base"]
    assert not decision.weights.any()


def test_the_classifier_needs_its_expert(
    base: Base, adapter: SVFAdapter, pair: dict[str, Expert], draw: Callable[..., Expert]
) -> None:
    with pytest.raises(ExpertError, match="expected an expert trained on which_task"):
        make_classifier(base, adapter, pair, ClassifierConfig(), pair)
    router = draw(5, env="envs:svf/WhichTask-v0")
    asked = make_classifier(base, adapter, pair, ClassifierConfig(), pair | {"router": router})
    plain = make_prompt(base, adapter, pair, PromptConfig(calibrate=False, labels="math, code, topic"))
    assert asked.decide(["x"]).scores != plain.decide(["x"]).scores
    adapter.load_expert(router)  # merged by hand, it is what was asked
    with_router = [dict(one) for one in asked.decide(["x"]).scores]
    assert with_router == asked.decide(["x"]).scores


def test_a_question_without_its_parts_is_refused() -> None:
    with pytest.raises(UserError, match=r"must hold \{prompt\} and \{labels\}"):
        PromptConfig(question="what is it?")
