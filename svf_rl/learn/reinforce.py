"""REINFORCE, as pure functions on tensors.

    loss = 1/N sum over episodes i, own tokens t of  -A_i log pi(a_it | s_it) + beta KL_it

A_i is the reward minus a baseline, N the number of episodes sampled in the step, those without signal included. The sum over the
tokens of an episode is not divided by its length: it is the log-probability of the episode, so the gradient is that of
the expected reward.

Source: Williams 1992; leave-one-out baseline of Kool et al. 2019; Transformer-Squared, section 3.2.
Differs from the source (SakanaAI/self-adaptive-llms):
1. Completions are sampled, G per prompt; the released code decodes one greedily, which estimates no gradient.
2. KL is that of policy to base, as in the paper; the released code has it the other way round.
3. k3 as a loss has the gradient of the wrong KL (base to policy). Here its value comes with the gradient of k2, half the square
   of the log-ratio, whose expectation is the gradient of KL(policy || base) at each token; the effect of a token on the
   states that follow is left out, as is usual.
"""

from enum import StrEnum

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Baseline(StrEnum):
    """What is subtracted from a reward.

    loo: mean of the other rewards of the group; unbiased.  none: nothing; unbiased, and noisy.
    batch: mean of all N rewards of the step, its own included, which shrinks the expected gradient by 1 - 1/N.
    group_std: mean of the group, then divided by the group's deviation, as in GRPO; biased in direction.
    """

    loo = "loo"
    group_std = "group_std"
    batch = "batch"
    none = "none"


LOG_RATIO_LIMIT = 20.0


def advantages(rewards: Float[Tensor, "P G"], baseline: Baseline) -> Float[Tensor, "P G"]:
    """Reward minus baseline for G episodes of P prompts. ValueError for loo or group_std with G = 1."""
    group = rewards.shape[1]
    if baseline is Baseline.none:
        return rewards
    if baseline is Baseline.batch:
        return rewards - rewards.mean()
    if group < 2:
        raise ValueError(f"the baseline {baseline.value} needs at least two episodes per prompt, not {group}")
    mean = rewards.mean(1, keepdim=True)
    if baseline is Baseline.loo:
        return (rewards - mean) * group / (group - 1)  # = r - mean of the others
    return (rewards - mean) / (rewards.std(1, keepdim=True) + 1e-6)


def has_signal(advantage: Float[Tensor, "P G"]) -> Bool[Tensor, " P"]:
    """Groups with an advantage other than zero. The others are dropped before the forward pass, with their KL."""
    return (advantage.abs() > 1e-8).any(1)


def sampled_kl(logp: Float[Tensor, " n"], reference: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """KL(policy || base) from sampled tokens: the value of k3, the gradient of k2. Log-ratios are clamped to +-20."""
    ratio = (reference - logp).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    k3, k2 = torch.expm1(ratio) - ratio, ratio.square() / 2  # expm1: exp - 1 would round small values away
    return k2 + (k3 - k2).detach()


def exact_kl(logp: Float[Tensor, "n vocabulary"], reference: Float[Tensor, "n vocabulary"]) -> Float[Tensor, " n"]:
    """KL(policy || base) over the whole vocabulary at each token."""
    return (logp.exp() * (logp - reference)).sum(-1)


def loss(
    logp: Float[Tensor, " n"],
    advantage: Float[Tensor, " n"],
    kl: Float[Tensor, " n"] | None,
    beta: float,
    episodes: int,
) -> Float[Tensor, ""]:
    """The sum above for the n own tokens of a micro-batch; `advantage` repeats A_i for each token of episode i."""
    per_token = -advantage * logp
    if kl is not None:
        per_token = per_token + beta * kl
    return per_token.sum() / episodes


def rewards_to_advantages(rewards: list[list[float]], baseline: Baseline, signed: bool) -> Tensor:
    """Rewards of P groups as advantages [P, G]; `signed` first maps [0, 1] to [-1, 1], as the paper's recipe does."""
    if not rewards:
        return torch.zeros(0, 0)
    tensor = torch.tensor(rewards, dtype=torch.float32)
    return advantages(2 * tensor - 1 if signed else tensor, baseline)
