"""The probe's distance beside its formula written out, its shrinkage beside the estimator's definition, and what it accepts."""

from collections.abc import Callable

import pytest
import torch

from svf_rl.base.load import Base
from svf_rl.dispatch.probe import ProbeConfig, features, fit, ledoit_wolf, make_probe
from svf_rl.progress import Progress
from svf_rl.svf.adapter import SVFAdapter
from svf_rl.types import Expert


@pytest.fixture
def cloud() -> torch.Tensor:
    stream = torch.Generator().manual_seed(0)
    return torch.randn(80, 5, generator=stream) @ torch.randn(5, 5, generator=stream) + 3


def test_shrinkage_is_the_estimators_definition(cloud: torch.Tensor) -> None:
    x = (cloud - cloud.mean(0)).double()
    n, p = x.shape
    covariance = x.T @ x / n
    target = covariance.trace() / p * torch.eye(p)
    noise = sum((torch.outer(row, row) - covariance).square().sum() for row in x) / n**2
    torch.testing.assert_close(ledoit_wolf(x), noise / (covariance - target).square().sum())


@pytest.mark.parametrize("rows", [80, 4])  # more prompts than numbers, and fewer
def test_distance_is_mahalanobis_in_the_shrunk_covariance(cloud: torch.Tensor, rows: int) -> None:
    x = cloud[:rows].double()
    probe = fit(cloud[:rows], quantile=1.0)
    n = rows * 3 // 4
    centred = x[:n] - x[:n].mean(0)
    a, covariance = ledoit_wolf(centred), centred.T @ centred / n
    shrunk = (1 - a) * covariance + a * covariance.trace() / 5 * torch.eye(5)
    off = x - x[:n].mean(0)
    expected = (off @ torch.linalg.inv(shrunk) * off).sum(1).sqrt()
    torch.testing.assert_close(probe.distance(x).double(), expected / expected[n:].max(), atol=1e-4, rtol=1e-4)


def test_features_are_means_over_own_tokens(base: Base) -> None:
    ids = [[5, 6, 7], [9] * 12, [3]]
    with torch.no_grad():
        alone = [base.model.base_model(torch.tensor([row])).last_hidden_state[0].mean(0) for row in ids]
    torch.testing.assert_close(features(base, ids), torch.stack(alone), atol=1e-4, rtol=1e-4)


class TestOnToys:
    @pytest.fixture
    def base(self, tiny_base: Base) -> Base:
        return tiny_base

    def test_own_prompts_are_accepted_others_not_and_one_more_expert_changes_no_number(
        self, base: Base, adapter: SVFAdapter, draw: Callable[..., Expert]
    ) -> None:
        config, quiet = ProbeConfig(prompts=200, tolerance=1.2), Progress(quiet=True)
        letter, plain = draw(0), draw(1, env="toys:toys/Plain-v0")
        prompts = ["test 77:", "say 123456", "the sum of nothing at all", "train 12:"]
        alone = make_probe(base, adapter, {"letter": letter}, config, quiet).decide(prompts)
        both = make_probe(base, adapter, {"letter": letter, "plain": plain}, config, quiet).decide(prompts)
        assert both.labels == ["base", "plain", "base", "letter"]
        assert both.weights.sum(1).tolist() == [float(label != "base") for label in both.labels]
        assert [s["letter"] for s in both.scores] == [s["letter"] for s in alone.scores]
