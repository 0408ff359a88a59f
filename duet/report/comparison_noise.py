"""The estimates of a comparison from what its runs hold: seeds, and replicates over resampled test images if any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from duet.errors import InputError
from duet.evaluation.difference import REPLICATES_FILE, Basis, mean_over_seeds
from duet.evaluation.difference import paired_difference as seeds_difference

LEVEL = 0.95


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

    def of(self, seeds: Sequence[int]) -> tuple[list[float], list[np.ndarray] | None]:
        """Values and replicates of some seeds; None for the replicates when one of them has none or another B."""
        places = [self.seeds.index(seed) for seed in seeds]
        rows = [row for place in places if (row := self.replicates[place]) is not None]
        whole = len(rows) == len(places) and len({row.shape for row in rows}) == 1
        return [self.values[place] for place in places], rows if whole else None

    @property
    def known(self) -> tuple[int, ...]:
        """The seeds that have a value."""
        return tuple(seed for seed, value in zip(self.seeds, self.values) if value is not None)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, in the unit of the index.

    Args:
        mean: over the seeds that have a value.
        sd: standard deviation (divisor n − 1) over them; None for one seed.
        low: lower end of the interval (duet.evaluation.difference); None without replicates over test images.
        high: upper end.
        values: one per seed of the row, None where it has none.
        absent: resamples without a value, which the interval leaves out.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    values: tuple[float | None, ...]
    absent: int = 0


@dataclass(frozen=True)
class Difference:
    """The difference of two methods on the seeds that both have: first minus second (duet.evaluation.difference).

    Args:
        first: label of one method.
        second: label of the other.
        seeds: the seeds that both have.
        mean: of the differences per seed.
        low: lower end of the interval; None when one seed and no bootstrap leave nothing to judge by.
        high: upper end.
        basis: what the interval is made of.
        larger_than_noise: whether 0 lies outside the interval; None without one.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    mean: float
    low: float | None
    high: float | None
    basis: Basis
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
    if not samples.known:
        return None
    values, replicates = samples.of(samples.known)
    found = mean_over_seeds(values, replicates, LEVEL)
    # Of the seeds alone there is the standard deviation: an interval always has the test images in it.
    low, high = (None, None) if "images" not in found.basis else (found.low, found.high)
    return Estimate(found.mean, found.sd, low, high, samples.values, found.absent)


def paired_difference(first: tuple[str, Samples], second: tuple[str, Samples]) -> Difference | None:
    """First minus second, each a label and its samples; None when no seed has a value of both."""
    (name, one), (other, two) = first, second
    seeds = [seed for seed in one.known if seed in two.known]
    if not seeds:
        return None
    (values, replicates), (others, other_replicates) = one.of(seeds), two.of(seeds)
    if replicates and other_replicates and replicates[0].shape != other_replicates[0].shape:
        replicates = None  # another number of resamples: they cannot be paired
    found = seeds_difference(values, others, replicates, other_replicates, LEVEL)
    larger = found.larger_than_noise
    return Difference(name, other, tuple(seeds), found.mean, found.low, found.high, found.basis, larger)
