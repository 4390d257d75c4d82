"""Intervals and tests, through scipy. Every interval is at 95 %."""

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
