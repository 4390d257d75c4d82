"""Two passes: every prompt's answer is that of its own mixture, merged and alone; abstaining is the base, bit for bit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from svf_rl.base.load import Base
from svf_rl.dispatch.dispatcher import Decision, mixture, using
from svf_rl.dispatch.system import answer
from svf_rl.errors import UserError
from svf_rl.rollout.sampler import Sampling, sample
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.types import Expert

PROMPTS = ["a pen", "Question: how many pens does she have now?", "x", "def add", "the sum"]
WEIGHTS = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.3, 0.9], [0.0, 0.0], [0.0, 1.0]])
SAMPLING, SEEDS = Sampling(6, 1.0), [3, 1, 4, 1, 5]


@dataclass(frozen=True)
class Given:
    """A dispatcher that says what it is told."""

    weights: Tensor

    def decide(self, prompts: Sequence[str]) -> Decision:
        return Decision(self.weights, ["said"] * len(prompts), [{}] * len(prompts))


def test_a_mixed_batch_answers_as_each_prompt_alone(base: Base, adapter: SVFAdapter, draw: Callable[..., Expert]) -> None:
    experts = {"one": draw(0), "two": draw(1)}
    adapter.load_expert(draw(2))  # what was loaded before plays no part
    answers, _ = answer(base, adapter, experts, Given(WEIGHTS), PROMPTS, SAMPLING, SEEDS)
    for prompt, row, seed, given in zip(PROMPTS, WEIGHTS, SEEDS, answers, strict=True):
        with using(adapter, mixture(list(experts.values()), row)):
            (alone,) = sample(base, [base.codec.prompt(prompt)], SAMPLING, [seed])
        assert given.completion.ids == alone.ids
        assert given.text == base.codec.decode(alone.ids)
        assert given.weights == {name: float(w) for name, w in zip(experts, row, strict=True) if w}


def test_abstaining_is_the_base_bit_for_bit(base: Base, adapter: SVFAdapter, draw: Callable[..., Expert]) -> None:
    answers, _ = answer(base, adapter, {"one": draw(0), "two": draw(1)}, Given(WEIGHTS), PROMPTS, SAMPLING, SEEDS)
    plain = [1, 3]
    adapter.uninstall()
    alone = sample(base, [base.codec.prompt(PROMPTS[i]) for i in plain], SAMPLING, [SEEDS[i] for i in plain])
    adapter.install()
    assert [answers[i].completion for i in plain] == alone  # log-probabilities too


def test_one_more_expert_changes_no_bit_of_the_answers(base: Base, adapter: SVFAdapter, draw: Callable[..., Expert]) -> None:
    few = {"one": draw(0), "two": draw(1)}
    before, _ = answer(base, adapter, few, Given(WEIGHTS), PROMPTS, SAMPLING, SEEDS)
    wider = torch.cat([WEIGHTS[:, :1], torch.zeros(len(PROMPTS), 1), WEIGHTS[:, 1:]], 1)
    after, _ = answer(base, adapter, {"one": few["one"], "new": draw(9), "two": few["two"]}, Given(wider), PROMPTS, SAMPLING, SEEDS)
    assert after == before


@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_empty_prompt_is_refused(tiny_base: Base, empty: str) -> None:
    with pytest.raises(UserError, match="found an empty one"):
        answer(tiny_base, SVFAdapter(tiny_base.model, {}), {}, Given(torch.zeros(2, 0)), ["x", empty], SAMPLING, [0, 0])
