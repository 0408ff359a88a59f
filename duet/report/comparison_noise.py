"""How sure a mean over seeds and a difference of two methods are, from seeds and from the bootstrap over images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from duet.errors import InputError
from duet.evaluation.difference import LEVEL, REPLICATES_FILE, mean_over_seeds

__all__ = ["LEVEL", "Difference", "Estimate", "Samples", "estimate", "paired_difference", "read_replicates"]


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
    rows = _complete([samples.replicates[place] for place in kept])
    found = mean_over_seeds([samples.values[place] for place in kept], rows, LEVEL)
    low, high = (found.low, found.high) if "images" in found.basis else (None, None)
    return Estimate(found.mean, found.sd, low, high, samples.values)


def paired_difference(first: tuple[str, Samples], second: tuple[str, Samples]) -> Difference | None:
    """First minus second on the seeds for which both have a value; None when there is no such seed.

    How the interval joins seeds and test images says ``duet.evaluation.difference``.
    """
    (name, a), (other, b) = first, second
    places = {seed: place for place, seed in enumerate(b.seeds) if b.values[place] is not None}
    pairs = [(i, places[s]) for i, s in enumerate(a.seeds) if s in places and a.values[i] is not None]
    if not pairs:
        return None
    rows = _complete([_minus(a.replicates[i], b.replicates[j]) for i, j in pairs])
    found = mean_over_seeds([a.values[i] - b.values[j] for i, j in pairs], rows, LEVEL)
    seeds = tuple(a.seeds[i] for i, _ in pairs)
    return Difference(name, other, seeds, found.mean, found.low, found.high, found.larger_than_noise)


def _minus(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    return None if first is None or second is None or first.shape != second.shape else first - second


def _complete(replicates: list[np.ndarray | None]) -> list[np.ndarray] | None:
    """The replicates, unless a seed has none or other resamples."""
    if any(item is None for item in replicates) or len({item.shape for item in replicates}) > 1:
        return None
    return replicates
