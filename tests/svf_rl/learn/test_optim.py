"""The step that both loops share, beside the same steps written out."""

import itertools
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from svf_rl.adapter import Adapter
from svf_rl.errors import Diverged
from svf_rl.learn.checkpoint import Progress
from svf_rl.learn.language import LanguageConfig
from svf_rl.learn.optim import descend, learning_rate
from svf_rl.learn.trainer import AlgoConfig


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    algo = AlgoConfig(steps=105, warmup=5, learning_rate=0.02)
    rates = [learning_rate(algo, step) for step in range(105)]
    assert rates[:5] == pytest.approx([0.004, 0.008, 0.012, 0.016, 0.02])
    assert rates[5] == pytest.approx(0.02)
    assert rates[55] == pytest.approx(0.011)  # half-way: the mean of 1 and 1/10
    assert rates[-1] == pytest.approx(0.002, rel=0.01)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert learning_rate(AlgoConfig(warmup=0, learning_rate=0.3), 0) == 0.3
    assert learning_rate(AlgoConfig(warmup=90, steps=3, learning_rate=0.3), 2) == pytest.approx(0.01)


@pytest.mark.parametrize("recipe", [AlgoConfig(max_bad_steps=2, clip=0.5), LanguageConfig(max_bad_steps=2, clip=0.5)])
def test_a_step_clips_skips_and_gives_up(recipe: Any) -> None:
    """Plain gradient descent, so that the change is the rate times the clipped gradient."""
    weight = torch.nn.Parameter(torch.zeros(2))
    adapter = Mock(Adapter)
    adapter.parameters.return_value = {"w": weight}
    adapter.constrain.side_effect = lambda: weight.data.clamp_(max=0.001)
    optimizer, progress = torch.optim.SGD([weight], lr=1.0), Progress()

    def step(gradient: list[float], sound: bool = True) -> float:
        weight.grad = torch.tensor(gradient)
        return descend(adapter, optimizer, recipe, progress, recipe.warmup, sound)

    assert step([3.0, -4.0]) == 5.0
    rate = recipe.learning_rate
    assert weight.tolist() == pytest.approx([-0.3 * rate, min(0.4 * rate, 0.001)])
    assert weight.grad is None
    before = weight.detach().clone()
    step([1.0, float("nan")])
    assert torch.equal(weight, before)
    assert (progress.bad_steps, progress.skipped_steps) == (1, 1)
    step([0.0, 0.0])
    assert (progress.bad_steps, progress.skipped_steps) == (0, 1)
    step([1.0, 1.0], sound=False)
    assert torch.equal(weight, before)
    with pytest.raises(Diverged, match="2 steps in a row"):
        step([float("inf"), 0.0])
