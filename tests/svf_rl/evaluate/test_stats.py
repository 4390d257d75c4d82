"""Intervals against textbook formulas, tables, and simulated coverage."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svf_rl.evaluate.stats import Interval, holm, mean_interval, paired_difference, paired_p, pass_at_k, proportion, rate

Z95 = 1.959963984540054


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_by_the_formula(counts: tuple[int, int]) -> None:
    """Wilson 1927: centre (p + z^2/2n) / (1 + z^2/n), half-width z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)."""
    right, n = counts
    p, z2 = right / n, Z95**2 / n
    centre = (p + z2 / 2) / (1 + z2)
    half = math.sqrt(z2) * math.sqrt(p * (1 - p) + z2 / 4) / (1 + z2)
    assert proportion(right, n) == pytest.approx((p, max(0, centre - half), min(1, centre + half)), abs=1e-9)


def test_wilson_by_the_textbook() -> None:
    """Newcombe 1998, Statistics in Medicine 17:857, table I: 81/263, 15/148, 0/20, 1/29."""
    published = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718)}
    for (right, n), bounds in published.items():
        assert proportion(right, n)[1:] == pytest.approx(bounds, abs=5e-5)


def test_wilson_covers_the_truth_about_95_times_in_100() -> None:
    rng, truth = np.random.default_rng(0), 0.3
    covered = [low <= truth <= high for _, low, high in (proportion(int(k), 100) for k in rng.binomial(100, truth, 1000))]
    assert 0.93 < np.mean(covered) < 0.97


def test_the_t_interval_by_the_textbook() -> None:
    """Five seeds; t with 4 degrees of freedom is 2.776445."""
    values = [49.5, 49.8, 50.2, 49.5, 50.0]
    mean = sum(values) / 5
    half = 2.7764451 * math.sqrt(sum((v - mean) ** 2 for v in values) / 4 / 5)
    assert mean_interval(values) == pytest.approx((mean, mean - half, mean + half), abs=1e-6)


def test_the_paired_difference_is_that_of_each_question() -> None:
    """Pairing matters: the same two accuracies have another interval when the right answers fall on other questions."""
    before, after = [1.0, 1.0, 0.0, 0.0] * 25, [1.0, 1.0, 1.0, 0.0] * 25
    moved = [0.0, 1.0, 1.0, 1.0] * 25
    close, far = paired_difference(before, after), paired_difference(before, moved)
    assert close.value == far.value == 0.25
    half = 1.9842170 * math.sqrt(0.25 * 0.75 / 99)  # t with 99 degrees of freedom; the differences are 0 or 1
    assert (close.low, close.high) == pytest.approx((0.25 - half, 0.25 + half), abs=1e-6)
    assert far.high - far.low > 1.5 * (close.high - close.low)


def test_the_paired_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(300):
        before = rng.random(200) < 0.4
        after = np.where(before, rng.random(200) < 0.9, rng.random(200) < 0.5)  # difference 0.4 * 0.9 + 0.6 * 0.5 - 0.4 = 0.26
        _, low, high = paired_difference(before.astype(float).tolist(), after.astype(float).tolist())
        covered.append(low <= 0.26 <= high)
    assert 0.91 < np.mean(covered) < 0.98


def test_values_that_are_all_equal_are_a_point() -> None:
    assert mean_interval([0.3, 0.3, 0.3]) == (0.3, 0.3, 0.3)
    assert paired_difference([1.0, 0.0], [1.0, 0.0]) == (0.0, 0.0, 0.0)


def test_an_interval_reads_as_per_cent() -> None:
    assert str(Interval(0.4567, 0.4, 0.50004)) == "45.7 % [40.0, 50.0]"


def test_mcnemar_is_the_enumeration_of_all_splits_of_the_discordant_pairs() -> None:
    """7 questions gained, 2 lost: of the 2^9 ways to split them, those as uneven or more."""
    before, after = [0.0] * 7 + [1.0] * 2 + [1.0, 0.0] * 20, [1.0] * 7 + [0.0] * 2 + [1.0, 0.0] * 20
    uneven = sum(abs(sum(ways) - 4.5) >= 2.5 for ways in itertools.product((0, 1), repeat=9))
    assert paired_p(before, after) == pytest.approx(uneven / 2**9)
    assert paired_p(before, before) == 1.0


def test_the_test_of_shares_is_the_enumeration_of_all_flips_of_signs() -> None:
    differences = [0.5, 0.25, -0.25, 0.75, 0.5, 1.0]
    sums = [sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in itertools.product((1, -1), repeat=6)]
    extreme = sum(abs(total) >= sum(differences) for total in sums) / 64
    assert paired_p([0.0] * 6, differences) == pytest.approx(extreme)


def test_holm_by_hand() -> None:
    """The smallest of four is multiplied by 4, the next by 3, and none falls below one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples() -> None:
    for n, right in itertools.product((1, 4, 6), (0, 1, 3)):
        samples = [1] * min(right, n) + [0] * (n - min(right, n))
        for k in range(1, n + 1):
            choices = [max(chosen) for chosen in itertools.combinations(samples, k)]
            assert pass_at_k(n, sum(samples), k) == pytest.approx(np.mean(choices))
    with pytest.raises(ValueError, match="k=5"):
        pass_at_k(4, 1, 5)


def test_a_rate_weighs_texts_by_their_tokens_and_its_interval_covers_the_truth() -> None:
    rng, covered = np.random.default_rng(3), []
    assert rate([2.0, 9.0], [1, 9]).value == pytest.approx(1.1)
    for _ in range(100):
        tokens = rng.integers(20, 60, size=80)
        _, low, high = rate((tokens * 2.0 + rng.normal(0, 10, 80)).tolist(), tokens.tolist())
        covered.append(low <= 2.0 <= high)
    assert 0.87 < np.mean(covered) <= 1.0
    assert rate([0.0, 0.0], [3, 4]) == (0.0, 0.0, 0.0)
