"""Whether two methods differ by more than noise, from their seeds and from the bootstrap over test images.

Two things make a measured index uncertain: training (another seed gives another detector) and the test split (other
images give another index). With n seeds whose runs share one test split, the squared standard error of a mean is

    SE² = s² / n + Var_b[ (1/n) Σ_i x_i^b ]

where s² is the variance over seeds (divisor n − 1) and x_i^b the index of seed i on resample b of the test images.
The first term is the part of training and gets smaller with more seeds; the second is the part of the images, common to
all seeds since they share the images, and does not. For a difference x_i is first minus second with the same seed
on the same resample, so whatever both have in common cancels.

The interval is SE times Student's quantile at ν = (n − 1) · (SE² / (s²/n))² degrees of freedom (Welch–Satterthwaite,
the part of the images taken as known): n − 1 where the seeds rule, the normal quantile where the images do.

Assumptions: seeds are independent draws; a mean over seeds is about normal; seed and test images add up. Where they
interact, the interaction is in both terms, and the interval is a little too wide rather than too narrow. With one seed
there is no s²: the interval is the bootstrap's own percentile interval, as the run reports it; it holds for these
trained detectors only, and says nothing of another training. Comparisons are taken one by one: of twenty true nulls
one is expected outside a 95 % interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import t

LEVEL = 0.95
REPLICATES_FILE = "bootstrap.safetensors"  # of a run folder: (B,) by metric/index
Basis = Literal["seeds and images", "seeds", "images", "nothing"]


@dataclass(frozen=True)
class SeedMean:
    """A mean over n seeds and how sure it is, in the unit of the index.

    Args:
        mean: over the seeds.
        sd: standard deviation over the seeds (divisor n − 1); None for one seed.
        seeds: n.
        standard_error: joint, as the module says; None when nothing is known of it.
        low: lower end of the interval; None when nothing is known of it.
        high: upper end.
        basis: what the interval is made of; ``images`` for one seed, ``seeds`` without replicates.
        absent: resamples left out because the index has no value there.
    """

    mean: float
    sd: float | None
    seeds: int
    standard_error: float | None
    low: float | None
    high: float | None
    basis: Basis
    absent: int = 0

    @property
    def larger_than_noise(self) -> bool | None:
        """Whether 0 lies outside the interval; None without one. Of a difference: whether it is more than noise."""
        return None if self.low is None or self.high is None else self.low > 0 or self.high < 0


def mean_over_seeds(
    values: Sequence[float], replicates: Sequence[np.ndarray] | None = None, level: float = LEVEL
) -> SeedMean:
    """Mean, standard deviation and interval of one method's index over seeds.

    Args:
        values: (n,) the index of each seed, n ≥ 1.
        replicates: per seed (B,) the index on B resamples of the test images, the same for all; NaN where it has no
            value. Without them the interval is that of the seeds alone.
        level: of the interval, between 0 and 1.

    Raises:
        ValueError: when there is no seed, a value is not finite, the replicates are not one row of equal length per
            seed, or the level is not between 0 and 1.
    """
    seeds = np.asarray(values, dtype=np.float64)
    if seeds.ndim != 1 or not len(seeds) or not np.isfinite(seeds).all():
        raise ValueError(f"expected a finite value for each of at least one seed, got {list(values)}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}")
    rows = _rows(replicates, len(seeds))
    kept = rows[:, np.isfinite(rows).all(axis=0)]
    mean, absent = float(seeds.mean()), rows.shape[1] - kept.shape[1]
    sd = float(seeds.std(ddof=1)) if len(seeds) > 1 else None
    images = float(kept.mean(axis=0).var(ddof=1)) if kept.shape[1] > 1 else None
    if sd is None and images is None:
        return SeedMean(mean, None, 1, None, None, None, "nothing", absent)
    tail = 0.5 + level / 2
    if sd is None:
        low, high = np.quantile(kept[0], [1 - tail, tail]).tolist()
        return SeedMean(mean, None, 1, math.sqrt(images), low, high, "images", absent)
    of_seeds = sd**2 / len(seeds)
    variance = of_seeds + (images or 0.0)
    freedom = (len(seeds) - 1) * (variance / of_seeds) ** 2 if of_seeds > 0 else math.inf
    half = math.sqrt(variance) * float(t.ppf(tail, freedom))
    basis: Basis = "seeds" if images is None else "seeds and images"
    return SeedMean(mean, sd, len(seeds), math.sqrt(variance), mean - half, mean + half, basis, absent)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    first_replicates: Sequence[np.ndarray] | None = None,
    second_replicates: Sequence[np.ndarray] | None = None,
    level: float = LEVEL,
) -> SeedMean:
    """First minus second, paired by seed and by resample.

    Args:
        first: (n,) an index of one method for each seed.
        second: (n,) the same index of the other, for the same seeds in the same order.
        first_replicates: per seed (B,) the first's index on B resamples of the test images; NaN where it has no value.
        second_replicates: the second's, on the same resamples. Unless both are given, the images are left out.
        level: of the interval, between 0 and 1.

    Raises:
        ValueError: when the two have another number of seeds or of resamples, or as ``mean_over_seeds``.
    """
    if len(first) != len(second):
        raise ValueError(f"a paired difference needs the same seeds, got {len(first)} and {len(second)}")
    values = [a - b for a, b in zip(first, second)]
    if first_replicates is None or second_replicates is None:
        return mean_over_seeds(values, None, level)
    rows, other = _rows(first_replicates, len(first)), _rows(second_replicates, len(second))
    if rows.shape != other.shape:
        raise ValueError(f"replicates: expected the same resamples, got {rows.shape[1]} and {other.shape[1]}")
    return mean_over_seeds(values, list(rows - other), level)


def _rows(replicates: Sequence[np.ndarray] | None, seeds: int) -> np.ndarray:
    """(n, B) float64; B = 0 without replicates."""
    if replicates is None:
        return np.zeros((seeds, 0))
    rows = [np.asarray(row, dtype=np.float64) for row in replicates]
    if len(rows) != seeds or any(row.ndim != 1 or len(row) != len(rows[0]) for row in rows):
        shapes = [row.shape for row in rows]
        raise ValueError(f"replicates: expected {seeds} rows of equal length, one per seed, got shapes {shapes}")
    return np.stack(rows)
