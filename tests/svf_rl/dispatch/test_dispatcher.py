"""Decisions, weights and mixtures."""

import math
from collections.abc import Callable

import pytest
import torch

from svf_rl.base.load import Base
from svf_rl.dispatch.dispatcher import Decision, Fixed, mixture, using, weigh
from svf_rl.errors import UserError
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.svf.expert import mix
from svf_rl.types import Expert


@pytest.fixture
def base(tiny_base: Base) -> Base:
    return tiny_base


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_weights_that_make_no_sense_are_refused(bad: float) -> None:
    with pytest.raises(UserError, match="finite and not negative"):
        Decision(torch.tensor([[0.5, bad]]), ["a"], [{}])


def test_hard_soft_and_abstaining_weights() -> None:
    scores = torch.tensor([[1.0, 3.0], [math.nan, 9.0]])
    assert weigh(scores, soft=False).tolist() == [[0, 1], [0, 0]]
    torch.testing.assert_close(weigh(scores, soft=True)[0], torch.tensor([0.1192, 0.8808]), atol=1e-4, rtol=0)


def test_mixtures_are_those_of_the_algebra(draw: Callable[..., Expert]) -> None:
    experts = [draw(0), draw(1)]
    assert mixture(experts, torch.zeros(2)) is None
    one_hot, half = mixture(experts, torch.tensor([0.0, 1.0])), mixture(experts, torch.tensor([0.25, 0.5]))
    by_matrix = torch.zeros(2, len(experts[0].z))
    by_matrix[0, 3] = 1
    single = mixture(experts, by_matrix)
    assert one_hot is not None
    assert half is not None
    assert single is not None
    for i, (name, z) in enumerate(experts[1].z.items()):
        assert torch.equal(one_hot.z[name], z)
        assert torch.equal(half.z[name], mix(experts, [0.25, 0.5]).z[name])
        assert torch.equal(single.z[name], experts[0].z[name] if i == 3 else torch.ones_like(z))


def test_using_leaves_what_was_loaded(adapter: SVFAdapter, draw: Callable[..., Expert]) -> None:
    adapter.load_expert(draw(0))
    before = adapter.state()
    with pytest.raises(KeyError), using(adapter, draw(1)):
        raise KeyError
    assert all(torch.equal(before[name], z) for name, z in adapter.state().items())


def test_a_fixed_dispatcher_gives_every_prompt_its_weights() -> None:
    decision = Fixed(torch.tensor([0.5, 0.2]), "both").decide(["a", "b"])
    torch.testing.assert_close(decision.weights, torch.tensor([[0.5, 0.2]] * 2))
