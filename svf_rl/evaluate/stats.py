"""Intervals and tests, through scipy. Every interval is at 95 %, every test two-sided."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def proportion(right: int, n: int) -> Interval:
    """Share of right answers, Wilson's interval."""
    interval = stats.binomtest(right, n).proportion_ci(method="wilson")
    return Interval(right / n, float(interval.low), float(interval.high))


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Interval:
    """Mean of after - before on the same questions, t interval over questions."""
    return mean_interval(np.subtract(after, before).tolist())


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of independent values (questions, or seeds), t interval; a point if they are all equal."""
    if len(set(values)) == 1:
        return Interval(values[0], values[0], values[0])
    interval = stats.ttest_1samp(values, 0.0).confidence_interval()
    return Interval(float(np.mean(values)), float(interval.low), float(interval.high))


def share_interval(shares: Sequence[float]) -> Interval:
    """`mean_interval` of values between 0 and 1, which the interval does not leave."""
    value, low, high = mean_interval(shares)
    return Interval(value, max(0.0, low), min(1.0, high))


def paired_p(before: Sequence[float], after: Sequence[float]) -> float:
    """Two-sided p of "no difference" on the same questions: exact for 0/1 scores (McNemar's test), else by 9999 flips of signs."""
    difference = np.subtract(after, before)
    if not difference.any():
        return 1.0
    if set(difference.tolist()) <= {-1.0, 0.0, 1.0}:
        return float(stats.binomtest(int((difference > 0).sum()), int((difference != 0).sum())).pvalue)
    flips = {"permutation_type": "samples", "vectorized": True, "rng": np.random.default_rng(0)}
    return float(stats.permutation_test((difference,), np.mean, **flips).pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for their number, so that the chance of any false finding stays below 5 % where each is held to 0.05.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    corrected, reached = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        reached = max(reached, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = reached
    return corrected


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that k of n samples, drawn without replacement, hold one that is right: 1 - C(n - right, k) / C(n, k).

    Unbiased for the chance that k new samples do. Source: Chen et al. 2021 (arXiv 2107.03374), section 2.1.
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"expected 0 <= right <= n and 1 <= k <= n, found n={n}, right={right}, k={k}")
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def rate(nats: Sequence[float], tokens: Sequence[float]) -> Interval:
    """Nats per token of several texts together, bootstrap interval over texts (of differences of nats: their mean per token)."""
    ratio = sum(nats) / sum(tokens)
    if len(nats) < 2 or not np.any(nats):
        return Interval(ratio, ratio, ratio)
    sums = {"paired": True, "vectorized": True, "method": "percentile", "n_resamples": 2000, "rng": np.random.default_rng(0)}
    interval = stats.bootstrap((nats, tokens), lambda x, y, axis: x.sum(axis) / y.sum(axis), **sums).confidence_interval
    return Interval(ratio, float(interval.low), float(interval.high))
