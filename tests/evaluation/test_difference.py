"""Paired differences worked by hand, and how often their intervals hold in a simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from duet.evaluation.difference import mean_over_seeds, paired_difference

FINITE = st.floats(-1, 1, allow_nan=False, width=32)


def test_a_mean_over_three_seeds_by_hand():
    # s² = 0.01, s²/3 = 1/300; the mean of the rows is 0.5, 0.6, 0.7: variance 0.01.
    # ν = 2 · (4/300 / (1/300))² = 32. t(0.975, 32) = 2.036933.
    rows = [np.array([0.4, 0.6, 0.8]), np.array([0.5, 0.5, 0.5]), np.array([0.6, 0.7, 0.8])]
    found = mean_over_seeds([0.5, 0.6, 0.7], rows)
    error = math.sqrt(0.01 / 3 + 0.01)
    assert (found.mean, found.sd, found.standard_error) == pytest.approx((0.6, 0.1, error))
    assert (found.low, found.high) == pytest.approx((0.6 - 2.036933 * error, 0.6 + 2.036933 * error), abs=1e-6)
    assert (found.seeds, found.basis, found.absent) == (3, "seeds and images", 0)


def test_without_replicates_the_seeds_alone_are_students():
    found = mean_over_seeds([0.5, 0.6, 0.7])
    low, high = stats.t.interval(0.95, 2, loc=0.6, scale=0.1 / math.sqrt(3))
    assert (found.low, found.high, found.basis) == (pytest.approx(low), pytest.approx(high), "seeds")
    wide = mean_over_seeds([0.5, 0.6, 0.7], level=0.99)
    assert wide.low < found.low and wide.high > found.high


def test_more_seeds_never_make_the_part_of_the_images_wider():
    rows = np.random.default_rng(0).normal(0.5, 0.05, 1000)
    one = mean_over_seeds([0.5], [rows])
    for values in ([0.5, 0.501], [0.5, 0.501, 0.499]):
        several = mean_over_seeds(values, [rows] * len(values))
        assert several.high - several.low == pytest.approx(one.high - one.low, rel=0.1)


def test_one_seed_has_the_percentiles_of_the_bootstrap_and_says_so():
    found = mean_over_seeds([0.5], [np.append(np.linspace(0.0, 0.4, 21), np.linspace(0.5, 0.9, 20))])
    assert (found.low, found.high) == pytest.approx((0.02, 0.9 - 0.4 / 19), abs=1e-9)  # the second and last but one
    assert (found.sd, found.basis) == (None, "images")
    nothing = mean_over_seeds([0.5])
    assert (nothing.low, nothing.high, nothing.standard_error, nothing.larger_than_noise) == (None,) * 4
    assert nothing.basis == "nothing"


def test_what_both_methods_have_in_common_cancels():
    generator = np.random.default_rng(0)
    shared, seeds = generator.normal(0, 0.1, 1000), np.array([0.1, -0.1, 0.2])
    first = [0.5 + value + shared for value in seeds]
    second = [0.4 + value + shared for value in seeds]
    found = paired_difference(0.5 + seeds, 0.4 + seeds, first, second)
    assert found.mean == pytest.approx(0.1)
    assert found.standard_error == pytest.approx(0, abs=1e-9)
    assert found.larger_than_noise is True
    unpaired = paired_difference(0.5 + seeds, 0.4 + seeds[::-1], first, [row[::-1] for row in second])
    assert unpaired.standard_error > 0.05
    assert unpaired.larger_than_noise is False


def test_a_difference_by_hand_and_its_mirror():
    first, second = [0.7, 0.8], [0.5, 0.7]  # 0.2 and 0.1: mean 0.15, s²/2 = 0.005 / 2
    rows = [np.array([0.7, 0.72, 0.74]), np.array([0.8, 0.8, 0.8])]
    others = [np.array([0.5, 0.5, 0.5]), np.array([0.7, 0.7, 0.7])]  # differences' mean 0.15, 0.16, 0.17
    found = paired_difference(first, second, rows, others)
    error = math.sqrt(0.005 / 2 + 0.0001)
    quantile = stats.t.ppf(0.975, (0.0026 / 0.0025) ** 2)  # one degree of freedom for the seeds
    assert (found.mean, found.standard_error) == pytest.approx((0.15, error))
    assert (found.low, found.high) == pytest.approx((0.15 - quantile * error, 0.15 + quantile * error), abs=1e-6)
    assert found.larger_than_noise is False
    mirror = paired_difference(second, first, others, rows)
    assert (mirror.mean, mirror.low, mirror.high) == pytest.approx((-0.15, -found.high, -found.low))


def test_resamples_without_a_value_are_left_out_and_counted():
    rows = [np.array([0.4, np.nan, 0.6, 0.5]), np.array([0.4, 0.5, 0.6, np.nan])]
    found = mean_over_seeds([0.5, 0.5], rows)
    assert found.absent == 2
    assert found.standard_error == pytest.approx(math.sqrt(0.02))
    none = mean_over_seeds([0.5, 0.6], [np.full(3, np.nan)] * 2)
    assert (none.basis, none.absent) == ("seeds", 3)


def test_replicates_of_one_method_only_leave_the_images_out():
    rows = [np.array([0.4, 0.6]), np.array([0.5, 0.6])]
    assert paired_difference([0.5, 0.7], [0.4, 0.5], rows, None).basis == "seeds"


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=6), st.integers(0, 1000))
def test_the_interval_holds_the_mean_and_the_order_of_seeds_does_not_matter(pairs, seed):
    generator = np.random.default_rng(seed)
    first, second = (list(side) for side in zip(*pairs))
    rows = [value + generator.normal(0, 0.1, 30) for value in first]
    others = [value + generator.normal(0, 0.1, 30) for value in second]
    found = paired_difference(first, second, rows, others)
    assert found.low < found.mean < found.high
    turned = paired_difference(first[::-1], second[::-1], rows[::-1], others[::-1])
    assert (turned.low, turned.high) == pytest.approx((found.low, found.high))
    assert paired_difference(first, first, rows, rows).standard_error == 0


def test_intervals_hold_about_as_often_as_they_say():
    """Difference 0.05; images and seeds both make noise; the images' part is known from replicates."""
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(600):
        image = generator.normal(0, 0.02)  # of this test split, common to the seeds
        differences = 0.05 + image + generator.normal(0, 0.02, 4)
        rows = generator.normal(0, 0.02, 400)
        found = paired_difference(
            differences, np.zeros(4), [value + rows for value in differences], [np.zeros(400)] * 4
        )
        held += found.low <= 0.05 <= found.high
    assert 0.93 < held / 600 <= 1.0
    # the seeds alone know nothing of the test split
    alone = sum(
        found.low <= 0.05 <= found.high
        for found in (
            mean_over_seeds(0.05 + generator.normal(0, 0.02) + generator.normal(0, 0.02, 4)) for _ in range(600)
        )
    )
    assert alone / 600 < 0.85


@pytest.mark.parametrize(
    ("values", "replicates", "level", "message"),
    [
        ([], None, 0.95, "at least one seed"),
        ([0.5, float("nan")], None, 0.95, "a finite value"),
        ([0.5], None, 1.0, "between 0 and 1"),
        ([0.5, 0.6], [np.zeros(3)], 0.95, "expected 2 rows of equal length"),
        ([0.5, 0.6], [np.zeros(3), np.zeros(4)], 0.95, "expected 2 rows of equal length"),
        ([0.5], [np.zeros((3, 2))], 0.95, "expected 1 rows of equal length"),
    ],
)
def test_bad_input_is_refused(values, replicates, level, message):
    with pytest.raises(ValueError, match=message):
        mean_over_seeds(values, replicates, level)


def test_methods_with_other_seeds_or_resamples_are_not_paired():
    with pytest.raises(ValueError, match="the same seeds, got 2 and 1"):
        paired_difference([0.5, 0.6], [0.5])
    with pytest.raises(ValueError, match="the same resamples, got 3 and 4"):
        paired_difference([0.5], [0.4], [np.zeros(3)], [np.zeros(4)])
