"""The cross-entropy method on functions whose maximum is known."""

import torch
from torch import Tensor

from svf_rl.dispatch.search import cross_entropy

PEAK = torch.tensor([0.2, 0.9, 0.5])


def bowl(x: Tensor) -> Tensor:
    return -(x - PEAK).square().sum(-1, keepdim=True)


def test_it_finds_the_maximum_and_stops_when_the_candidates_agree() -> None:
    found = cross_entropy(bowl, torch.full((3,), 1 / 3), rounds=60, patience=60)
    torch.testing.assert_close(found.mean, PEAK, atol=0.03, rtol=0)
    assert len(found.history) < 60


def test_every_candidate_is_a_weight_between_0_and_1() -> None:
    seen = []
    cross_entropy(lambda x: (seen.append(x), bowl(x))[1], torch.full((3,), 1 / 3), rounds=3)
    assert float(torch.cat(seen).min()) == 0
    assert float(torch.cat(seen).max()) == 1


def test_the_second_key_breaks_ties_and_the_first_outweighs_it() -> None:
    def steps(x: Tensor) -> Tensor:
        return torch.stack([(x[:, 0] > 0.5).float(), -x[:, 0]], -1)

    found = cross_entropy(steps, torch.full((1,), 0.5), rounds=30, patience=30)
    assert 0.5 < float(found.best) < 0.55


def test_the_best_is_never_worse_than_a_start() -> None:
    start = torch.tensor([1.0, 0.0, 1.0])
    found = cross_entropy(lambda x: (x == start).all(-1, keepdim=True).float(), torch.full((3,), 1 / 3), starts=[start], rounds=5)
    assert torch.equal(found.best, start)


def test_a_search_that_gains_nothing_stops_early_and_repeats_itself() -> None:
    runs = [cross_entropy(lambda x: torch.zeros(len(x), 1), torch.full((3,), 1 / 3), patience=2, seed=7) for _ in range(2)]
    assert len(runs[0].history) == 3
    assert torch.equal(runs[0].mean, runs[1].mean)
