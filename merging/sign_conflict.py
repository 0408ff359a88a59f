"""Sign conflict between two updates: the share of scalars that move in opposite directions."""

from __future__ import annotations

import torch
from torch import Tensor

from merging.layers import layer_of
from merging.result import State


def sign_conflict_rate(u: State, v: State) -> float:
    """Share of scalars with u·v < 0 over all entries of the keys that both mappings hold.

    DuET (Monga et al., ICCV 2025, Fig. 5) counts sign conflicts without defining them; this is the sense of TIES
    (Yadav et al., NeurIPS 2023, section 3): two non-zero scalars of opposite sign. Signs are compared, not the
    product, so that tiny values do not underflow to zero.

    Args:
        u: name → floating-point tensor, such as τ_t − τ_{t−1}.
        v: name → floating-point tensor, such as τ_{t−1} − τ_{t−2}.

    Returns:
        A fraction in [0, 1]; 0.0 when the shared keys hold no scalar.

    Raises:
        KeyError: when the mappings are not empty and share no key.
        ValueError: when a shape differs.
    """
    conflicts, scalars = _total(_counts(u, v).values())
    return conflicts / scalars if scalars else 0.0


def sign_conflict_per_layer(u: State, v: State) -> dict[str, float]:
    """The same per layer, a layer being the module that owns the tensors (key without its last component).

    Args:
        u: name → floating-point tensor.
        v: name → floating-point tensor.

    Returns:
        layer → fraction in [0, 1], in the key order of ``u``; 0.0 for a layer without scalars.

    Raises:
        KeyError: when the mappings are not empty and share no key.
        ValueError: when a shape differs.
    """
    groups: dict[str, list[tuple[int, int]]] = {}
    for key, counts in _counts(u, v).items():
        groups.setdefault(layer_of(key), []).append(counts)
    rates = {}
    for layer, counts in groups.items():
        conflicts, scalars = _total(counts)
        rates[layer] = conflicts / scalars if scalars else 0.0
    return rates


def count_conflicts(u: Tensor, v: Tensor) -> int:
    """Number of entries of two equally shaped tensors whose signs are opposite (zero opposes nothing)."""
    # Three comparisons keep the exact meaning of u·v < 0 where the product itself would underflow.
    return int(torch.count_nonzero(((u > 0) & (v < 0)) | ((u < 0) & (v > 0))))


def _counts(u: State, v: State) -> dict[str, tuple[int, int]]:
    shared = [key for key in u if key in v]
    if u and v and not shared:
        raise KeyError(f"the two updates share no key: one starts with '{next(iter(u))}', the other '{next(iter(v))}'")
    counts = {}
    for key in shared:
        if u[key].shape != v[key].shape:
            raise ValueError(
                f"'{key}' has shape {tuple(u[key].shape)} in one update, {tuple(v[key].shape)} in the other"
            )
        counts[key] = (count_conflicts(u[key].detach(), v[key].detach()), u[key].numel())
    return counts


def _total(counts: object) -> tuple[int, int]:
    pairs = list(counts)
    return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
