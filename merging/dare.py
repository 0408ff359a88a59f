"""DARE: drop entries of the task vectors at random and rescale the rest, then merge."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from merging.blocks import Inputs, Range
from merging.checks import choice, number
from merging.job import merge_states
from merging.layers import is_statistic
from merging.merger import Merger, MergeSettings
from merging.result import MergeResult, State
from merging.task_arithmetic import scaled_sum
from merging.ties import Ties


def dare_merging(
    base: State,
    models: Sequence[State],
    *,
    drop_rate: float = 0.9,
    seed: int | Sequence[int] = 0,
    merge_with: Literal["task_arithmetic", "ties"] = "task_arithmetic",
    scaling_factor: float | None = None,
    density: float | None = None,
    settings: MergeSettings | None = None,
) -> MergeResult:
    """Drop each entry of τ_k with probability p, divide the rest by 1 − p, merge (Yu et al., ICML 2024, section 3).

    Scope: each scalar by itself, then that of the method underneath. Steps: differences, drop, rescale, then
    :func:`merging.task_arithmetic` or :func:`merging.ties_merging` with their tie rules and divisors.

    The masks depend on the seed, the tensor's name and its entries' places alone (blocks of 32,000 entries, a CPU
    generator each): not on the order of keys, on threads, or on whether the model is in memory or on disk. Deviations:
    running statistics of BatchNorm are no learned differences and are neither dropped nor rescaled; p = 0.9 is our
    default, the paper tries 0.1 to 0.99.

    Args:
        base: θ_0, name → tensor.
        models: θ_k, at least one.
        drop_rate: p, from 0 (keep all) to below 1.
        seed: one number, from which model k (from 0) takes ``seed + k``; or one number per model. Models that change
            places together with their seeds give the same merge.
        merge_with: ``task_arithmetic`` or ``ties``.
        scaling_factor: λ; ``None`` for the default of the method underneath, 0.3 or 1.
        density: kept fraction of TIES, dropped entries included; ``None`` for 0.2. Refused with task arithmetic.
        settings: policy, output dtype, BatchNorm, threads.

    Returns:
        The merged model.

    Raises:
        ValueError: when a tensor does not fit or is not finite, or an option is out of range.
        TypeError: when a model is no mapping of tensors, or an option has the wrong type.
    """
    options = {
        "drop_rate": drop_rate,
        "seed": seed,
        "merge_with": merge_with,
        "scaling_factor": scaling_factor,
        "density": density,
    }
    return merge_states("dare", prepare_dare, base, models, options, settings)


def prepare_dare(
    inputs: Inputs,
    *,
    drop_rate: float,
    seed: int | Sequence[int],
    merge_with: Literal["task_arithmetic", "ties"],
    scaling_factor: float | None,
    density: float | None,
) -> Merger:
    """See :func:`dare_merging`."""
    rate = number("drop_rate", drop_rate, low=0.0, high=1.0)
    if rate == 1.0:
        raise ValueError("option 'drop_rate': expected less than 1, which would drop everything")
    seeds = _seeds(seed, len(inputs.models))
    choice("merge_with", merge_with, ("task_arithmetic", "ties"))

    def thin(vector: Tensor, index: int, at: Range) -> Tensor:
        return vector if is_statistic(at.key) else drop_and_rescale(vector, rate, seeds[index], at)

    if merge_with == "task_arithmetic":
        if density is not None:
            raise ValueError("option 'density' belongs to merge_with='ties'; task arithmetic has none")
        return Merger(scaled_sum(inputs, 0.3 if scaling_factor is None else scaling_factor, thin))
    ties = Ties(0.2 if density is None else density, 1.0 if scaling_factor is None else scaling_factor)
    return ties.prepare(
        inputs, lambda at: [thin(vector, index, at) for index, vector in enumerate(inputs.task_vectors(at))]
    )


def drop_and_rescale(vector: Tensor, drop_rate: float, seed: int, at: Range) -> Tensor:
    """Drop entries of one block at random and divide the others by 1 − p.

    Args:
        vector: ``(n,)``, float64; changed in place.
        drop_rate: p in [0, 1).
        seed: seed of the model.
        at: which block it is.

    Returns:
        The same tensor.
    """
    text = f"{seed} {at.start} {at.key}".encode()
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:7], "big"))
    keep = torch.rand(len(vector), generator=generator, dtype=torch.float64) >= drop_rate
    return vector.mul_(keep).div_(1.0 - drop_rate)


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    seeds = [seed + index for index in range(count)] if _whole(seed) else seed
    if not isinstance(seeds, (list, tuple)) or not all(_whole(item) for item in seeds):
        raise TypeError(f"option 'seed': expected a whole number or one per model, got {seed!r}")
    if len(seeds) != count:
        raise ValueError(f"option 'seed': expected one number for each of the {count} models, got {len(seeds)}")
    return list(seeds)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
