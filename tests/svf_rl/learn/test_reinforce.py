"""REINFORCE against a policy so small that every outcome can be written down.

The policy is a table: in each state (what was written so far) a softmax over three tokens, of which 0 stops; at most three
tokens, so 15 sequences. Expectations are sums over all of them, or over all groups of two, with their probabilities. Nothing is
sampled.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from svf_rl.learn import reinforce
from svf_rl.learn.reinforce import Baseline, advantages, exact_kl, has_signal, rewards_to_advantages, sampled_kl

STEPS, TOKENS = 3, 3


def sequences(prefix: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    if len(prefix) == STEPS or (prefix and prefix[-1] == 0):
        return [prefix]
    return [s for token in range(TOKENS) for s in sequences((*prefix, token))]


ALL = sequences()
STATES = sorted({s[:t] for s in ALL for t in range(len(s))})
REWARDS = dict(
    zip(ALL, torch.rand(len(ALL), generator=torch.Generator().manual_seed(3), dtype=torch.float64).tolist(), strict=True)
)


class Policy:
    """A table of logits, one row for each state."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(len(STATES), TOKENS, generator=generator, dtype=torch.float64).requires_grad_()

    def logp(self, sequence: Sequence[int]) -> Tensor:
        """The log-probability of each token of a sequence."""
        rows = torch.log_softmax(self.table, -1)
        return torch.stack([rows[STATES.index(tuple(sequence[:t])), token] for t, token in enumerate(sequence)])

    def probability(self, sequence: Sequence[int]) -> float:
        return float(self.logp(sequence).sum().detach().exp())

    def gradient(self, value: Tensor) -> Tensor:
        return torch.autograd.grad(value, self.table)[0]


def exact_gradient(policy: Policy, reward: Callable[[tuple[int, ...]], float]) -> Tensor:
    """Of the expected reward, by differentiating the sum over all sequences."""
    return policy.gradient(sum((policy.logp(s).sum().exp() * reward(s) for s in ALL), torch.zeros((), dtype=torch.float64)))


def expected_estimate(policy: Policy, groups: int, size: int, baseline: Baseline, scale: float = 1.0) -> Tensor:
    """Minus the gradient of the loss, averaged over all ways that `groups` groups of `size` sequences can come out."""
    total = torch.zeros_like(policy.table)
    for drawn in itertools.product(ALL, repeat=groups * size):
        rewards = torch.tensor([scale * REWARDS[s] for s in drawn], dtype=torch.float64).view(groups, size)
        advantage = advantages(rewards, baseline).flatten()
        logp = torch.cat([policy.logp(s) for s in drawn])
        per_token = advantage.repeat_interleave(torch.tensor([len(s) for s in drawn]))
        loss = reinforce.loss(logp, per_token, None, 0.0, len(drawn))
        total -= math.prod(policy.probability(s) for s in drawn) * policy.gradient(loss)
    return total


def test_the_toy_is_a_distribution() -> None:
    assert len(ALL) == 15
    assert sum(Policy().probability(s) for s in ALL) == pytest.approx(1.0)


@pytest.mark.parametrize(("baseline", "groups", "size"), [(Baseline.none, 1, 1), (Baseline.none, 1, 2), (Baseline.loo, 1, 2)])
def test_the_expected_gradient_is_that_of_the_expected_reward(baseline: Baseline, groups: int, size: int) -> None:
    policy = Policy()
    torch.testing.assert_close(expected_estimate(policy, groups, size, baseline), exact_gradient(policy, REWARDS.__getitem__))


@pytest.mark.parametrize(("groups", "size"), [(1, 2), (2, 1)])
def test_the_batch_baseline_shrinks_the_expected_gradient_by_one_in_n(groups: int, size: int) -> None:
    policy = Policy()
    exact = exact_gradient(policy, REWARDS.__getitem__)
    torch.testing.assert_close(expected_estimate(policy, groups, size, Baseline.batch), exact * (1 - 1 / (groups * size)))


def test_dividing_by_the_deviation_is_biased_in_direction_and_forgets_the_size_of_rewards() -> None:
    policy = Policy()
    estimate = expected_estimate(policy, 1, 2, Baseline.group_std)
    cosine = torch.cosine_similarity(estimate.flatten(), exact_gradient(policy, REWARDS.__getitem__).flatten(), 0)
    assert 0.3 < float(cosine) < 0.99
    ten_times = expected_estimate(policy, 1, 2, Baseline.group_std, scale=10.0)
    torch.testing.assert_close(ten_times, estimate, rtol=1e-3, atol=1e-4)


def test_signed_rewards_double_the_expected_gradient() -> None:
    """[0, 1] to [-1, 1] is 2 r - 1; the expectation of a constant has no gradient."""
    policy = Policy()
    exact = exact_gradient(policy, lambda s: 2 * REWARDS[s] - 1)
    torch.testing.assert_close(exact, 2 * exact_gradient(policy, REWARDS.__getitem__))
    assert rewards_to_advantages([[0.0, 1.0], [0.25, 0.5]], Baseline.none, signed=True).tolist() == [[-1, 1], [-0.5, 0]]
    assert rewards_to_advantages([[0.0, 1.0], [0.25, 0.5]], Baseline.none, signed=False).tolist() == [[0, 1], [0.25, 0.5]]


# ---- baselines


REWARD = st.floats(0, 1, width=32)
TABLES = st.integers(2, 6).flatmap(lambda g: st.lists(st.lists(REWARD, min_size=g, max_size=g), min_size=1, max_size=5))


@given(TABLES)
def test_loo_is_the_reward_minus_the_mean_of_the_others(rewards: list[list[float]]) -> None:
    expected = [[r - (sum(row) - r) / (len(row) - 1) for r in row] for row in rewards]
    table = torch.tensor(rewards, dtype=torch.float64)
    torch.testing.assert_close(advantages(table, Baseline.loo), torch.tensor(expected, dtype=torch.float64))


@given(TABLES, st.floats(-5, 5))
def test_loo_sums_to_zero_in_a_group_and_ignores_a_shift(rewards: list[list[float]], shift: float) -> None:
    table = torch.tensor(rewards, dtype=torch.float64)
    advantage = advantages(table, Baseline.loo)
    torch.testing.assert_close(advantage.sum(1), torch.zeros(len(rewards), dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(advantages(table + shift, Baseline.loo), advantage, atol=1e-12, rtol=0)


@given(TABLES)
def test_every_baseline_keeps_the_order_of_a_group(rewards: list[list[float]]) -> None:
    table = torch.tensor(rewards, dtype=torch.float64)
    for baseline in Baseline:
        advantage = advantages(table, baseline)
        better = table[:, :, None] > table[:, None, :] + 1e-9
        assert bool((advantage[:, :, None] > advantage[:, None, :])[better].all())


def test_group_std_has_mean_zero_and_deviation_one() -> None:
    advantage = advantages(torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.2, 0.4, 0.6, 0.8]]), Baseline.group_std)
    torch.testing.assert_close(advantage.mean(1), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(advantage.std(1), torch.ones(2), atol=1e-4, rtol=0)


def test_a_group_that_earned_the_same_has_no_signal() -> None:
    rewards = torch.tensor([[0.3, 0.3, 0.3], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    assert has_signal(advantages(rewards, Baseline.loo)).tolist() == [False, True, False]
    assert has_signal(advantages(rewards, Baseline.group_std)).tolist() == [False, True, False]
    assert has_signal(advantages(rewards, Baseline.none)).tolist() == [True, True, True]
    assert has_signal(advantages(torch.zeros(2, 1), Baseline.none)).tolist() == [False, False]


@pytest.mark.parametrize("baseline", [Baseline.loo, Baseline.group_std])
def test_a_group_of_one_has_no_others_to_compare_with(baseline: Baseline) -> None:
    with pytest.raises(ValueError, match="at least two episodes per prompt, not 1"):
        advantages(torch.ones(3, 1), baseline)


@pytest.mark.parametrize("baseline", list(Baseline))
def test_no_group_is_no_advantage(baseline: Baseline) -> None:
    advantage = rewards_to_advantages([], baseline, signed=False)
    assert advantage.numel() == 0
    assert has_signal(advantage).tolist() == []


# ---- the loss


def test_the_loss_by_hand() -> None:
    logp, advantage = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([0.5, 0.5, -1.0])
    kl = torch.tensor([0.1, 0.2, 0.3])
    assert float(reinforce.loss(logp, advantage, kl, 2.0, 4)) == pytest.approx((0.5 + 1.0 - 0.5 + 2 * 0.6) / 4)
    assert float(reinforce.loss(logp, advantage, None, 2.0, 4)) == pytest.approx((0.5 + 1.0 - 0.5) / 4)


# ---- KL


def one_step(seed: int) -> tuple[Tensor, Tensor]:
    """The log-probabilities of a policy, differentiable, and of a base over seven tokens."""
    generator = torch.Generator().manual_seed(seed)
    theta, base = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    return theta.requires_grad_(), torch.log_softmax(base, -1)


@pytest.mark.parametrize("seed", range(3))
def test_exact_kl_is_the_textbook_one(seed: int) -> None:
    theta, base = one_step(seed)
    kl = exact_kl(torch.log_softmax(theta, -1)[None], base[None])[0]
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=theta), torch.distributions.Categorical(logits=base)
    )
    torch.testing.assert_close(kl, expected)
    torch.testing.assert_close(torch.autograd.grad(kl, theta, retain_graph=True), torch.autograd.grad(expected, theta))


@pytest.mark.parametrize("seed", range(3))
def test_sampled_kl_has_the_value_and_the_gradient_of_the_exact_one_in_expectation(seed: int) -> None:
    theta, base = one_step(seed)
    logp = torch.log_softmax(theta, -1)
    per_token = sampled_kl(logp, base)  # of each token that could be drawn
    exact = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=theta), torch.distributions.Categorical(logits=base)
    )
    expected = (logp.exp().detach() * per_token).sum()
    torch.testing.assert_close(expected, exact)
    torch.testing.assert_close(torch.autograd.grad(expected, theta, retain_graph=True), torch.autograd.grad(exact, theta))


@given(st.lists(st.tuples(st.floats(-50, 0), st.floats(-50, 0)), min_size=1, max_size=20), st.sampled_from(["float32", "float64"]))
def test_sampled_kl_is_never_negative_and_zero_where_both_agree(pairs: list[tuple[float, float]], kind: str) -> None:
    logp, reference = torch.tensor(pairs, dtype=getattr(torch, kind)).unbind(1)
    kl = sampled_kl(logp, reference)
    assert bool((kl >= 0).all())
    assert bool((kl[logp == reference] == 0).all())
    assert sampled_kl(logp, logp).tolist() == [0.0] * len(pairs)


def test_sampled_kl_is_exact_where_both_nearly_agree() -> None:
    """x^2 / 2 for a small log-ratio x; a float32 exp minus one is wrong there in every digit."""
    kl = sampled_kl(torch.tensor([-1e-4]), torch.tensor([0.0]))
    torch.testing.assert_close(kl, torch.tensor([0.5e-8]), rtol=1e-2, atol=0)


def test_log_ratios_are_clamped() -> None:
    logp = torch.tensor([-1000.0, -30.0, -1.0, -1.0], requires_grad=True)
    reference = torch.tensor([-1.0, -1.0, -1000.0, -torch.inf])
    kl = sampled_kl(logp, reference)
    torch.testing.assert_close(kl.detach(), torch.tensor([math.exp(20) - 21] * 2 + [math.exp(-20) + 19] * 2))
    kl.sum().backward()
    assert logp.grad.tolist() == [0.0] * 4
