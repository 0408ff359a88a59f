"""How sure a mean over seeds and a difference of two methods are, from seeds and from the bootstrap over images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from scipy.stats import norm, t

from duet.errors import InputError

LEVEL = 0.95
REPLICATES_FILE = "bootstrap.safetensors"


@dataclass(frozen=True)
class Samples:
    """One index of one method.

    Args:
        seeds: the seeds.
        values: its value for each seed; None where it has none.
        replicates: (B,) values over resamples of the test images for each seed, NaN where absent; None without them.
    """

    seeds: tuple[int, ...]
    values: tuple[float | None, ...]
    replicates: tuple[np.ndarray | None, ...]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, in the unit of the index.

    Args:
        mean: over the seeds that have a value.
        sd: standard deviation (divisor n − 1) over them; None for one seed.
        low: lower end of the interval; None without a bootstrap over test images.
        high: upper end.
        values: one per seed of the row, None where it has none.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Difference:
    """The difference of two methods on the seeds that both have: first minus second.

    Args:
        first: label of one method.
        second: label of the other.
        seeds: the seeds that both have.
        mean: of the differences per seed.
        low: lower end of the interval; None when one seed and no bootstrap leave nothing to judge by.
        high: upper end.
        larger_than_noise: whether 0 lies outside the interval; None without one.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    mean: float
    low: float | None
    high: float | None
    larger_than_noise: bool | None


def read_replicates(folder: Path) -> Mapping[str, np.ndarray]:
    """The bootstrap replicates of a run folder by ``metric/index``; empty when it has none.

    Raises:
        InputError: when the file is damaged.
    """
    path = folder / REPLICATES_FILE
    if not path.exists():
        return {}
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged, it does not hold bootstrap replicates") from error


def estimate(samples: Samples) -> Estimate | None:
    """Mean, standard deviation and interval over seeds; None when no seed has a value."""
    kept = [place for place, value in enumerate(samples.values) if value is not None]
    if not kept:
        return None
    values = [samples.values[place] for place in kept]
    images = _image_variance([samples.replicates[place] for place in kept])
    low, high = (None, None) if images is None else _interval(values, images)
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Estimate(statistics.fmean(values), sd, low, high, samples.values)


def paired_difference(first: tuple[str, Samples], second: tuple[str, Samples]) -> Difference | None:
    """First minus second on the seeds for which both have a value; None when there is no such seed.

    The standard error joins the spread over seeds, s²/n, and the variance of the mean difference over the same
    resamples of the test images; the interval is Student's with n − 1 degrees of freedom, the normal one for one seed.
    """
    (name, a), (other, b) = first, second
    places = {seed: place for place, seed in enumerate(b.seeds) if b.values[place] is not None}
    pairs = [(i, places[s]) for i, s in enumerate(a.seeds) if s in places and a.values[i] is not None]
    if not pairs:
        return None
    values = [a.values[i] - b.values[j] for i, j in pairs]
    images = _image_variance([_minus(a.replicates[i], b.replicates[j]) for i, j in pairs])
    low, high = _interval(values, images or 0.0) if len(pairs) > 1 or images is not None else (None, None)
    larger = None if low is None else bool(low > 0 or high < 0)
    return Difference(name, other, tuple(a.seeds[i] for i, _ in pairs), statistics.fmean(values), low, high, larger)


def _minus(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    return None if first is None or second is None or first.shape != second.shape else first - second


def _image_variance(replicates: list[np.ndarray | None]) -> float | None:
    if any(item is None for item in replicates) or len({item.shape for item in replicates}) > 1:
        return None
    means = np.mean(replicates, axis=0)
    means = means[np.isfinite(means)]
    return float(np.var(means, ddof=1)) if len(means) > 1 else None


def _interval(values: list[float], image_variance: float) -> tuple[float, float]:
    count, mean = len(values), statistics.fmean(values)
    seeds = statistics.variance(values) / count if count > 1 else 0.0
    quantile = t.ppf(0.5 + LEVEL / 2, count - 1) if count > 1 else norm.ppf(0.5 + LEVEL / 2)
    half = float(quantile) * math.sqrt(seeds + image_variance)
    return mean - half, mean + half
