"""Estimates take every seed that has a value, replicates only when all of them can be paired."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from duet.errors import InputError
from duet.report.comparison_noise import Samples, estimate, paired_difference, read_replicates

DRAWS = np.array([0.48, 0.50, 0.52])


def samples(values, replicates=None, seeds=None):
    return Samples(tuple(seeds or range(len(values))), tuple(values), tuple(replicates or [None] * len(values)))


def test_mean_and_deviation_without_an_interval():
    found = estimate(samples([0.4, None, 0.6]))
    assert (found.mean, found.low, found.high) == (0.5, None, None)
    assert found.sd == pytest.approx(0.02**0.5) and found.values == (0.4, None, 0.6)
    assert estimate(samples([None, None])) is None and estimate(samples([])) is None


def test_interval_needs_replicates_of_every_seed_with_a_value():
    assert estimate(samples([0.5, None], [DRAWS, None])).low is not None
    assert estimate(samples([0.5, 0.5], [DRAWS, None])).low is None
    assert estimate(samples([0.5, 0.5], [DRAWS, DRAWS[:2]])).low is None
    # One seed: the replicates' percentiles, 5 % of the way from the outermost to the next.
    found = estimate(samples([0.5], [DRAWS]))
    assert (found.low, found.high) == pytest.approx((0.481, 0.519))
    assert estimate(samples([0.5], [np.append(DRAWS, [np.nan] * 2)])).absent == 2


def test_differences_pair_seeds_by_their_number_not_their_place():
    first, second = samples([0.7, 0.9], seeds=(0, 1)), samples([0.5, 0.1, 0.6], seeds=(1, 2, 0))
    found = paired_difference(("a", first), ("b", second))
    assert found.seeds == (0, 1)
    assert found.mean == pytest.approx(((0.7 - 0.6) + (0.9 - 0.5)) / 2)
    assert (found.first, found.second, found.basis) == ("a", "b", "seeds")
    assert paired_difference(("a", first), ("b", samples([None, 0.2], seeds=(0, 5)))) is None


def test_what_both_share_cancels():
    first, second = samples([0.6], [DRAWS + 0.1]), samples([0.5], [DRAWS])
    found = paired_difference(("a", first), ("b", second))
    assert (found.low, found.high) == pytest.approx((0.1, 0.1)) and found.larger_than_noise is True
    assert found.basis == "images"


def test_other_resamples_are_not_paired():
    first, second = samples([0.6], [DRAWS]), samples([0.5], [DRAWS[:2]])
    found = paired_difference(("a", first), ("b", second))
    assert (found.basis, found.larger_than_noise) == ("nothing", None)


def test_replicates_are_read_or_absent_or_refused(tmp_path):
    assert read_replicates(tmp_path) == {}
    save_file({"map50/overall": DRAWS}, tmp_path / "bootstrap.safetensors")
    np.testing.assert_array_equal(read_replicates(tmp_path)["map50/overall"], DRAWS)
    (tmp_path / "bootstrap.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"bootstrap.safetensors: damaged, it does not hold bootstrap replicates"):
        read_replicates(tmp_path)
