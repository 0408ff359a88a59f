"""Layers and BatchNorm statistics, told from the names PyTorch gives to tensors."""

from __future__ import annotations

STATISTICS = ("running_mean", "running_var")
ROOT = "(root)"


def layer_of(key: str) -> str:
    """The module that owns a tensor: the key without its last component, ``(root)`` for a key without a dot."""
    return key.rpartition(".")[0] or ROOT


def is_statistic(key: str) -> bool:
    """Whether the key names a running mean or variance: a buffer of BatchNorm, no parameter."""
    return key.rpartition(".")[2] in STATISTICS


def is_variance(key: str) -> bool:
    """Whether the key names a running variance."""
    return key.rpartition(".")[2] == "running_var"


def mean_key(variance_key: str) -> str:
    """The running mean that belongs to a running variance."""
    return variance_key.removesuffix("running_var") + "running_mean"


def by_layer(keys: list[str] | tuple[str, ...]) -> dict[str, list[str]]:
    """Group keys by layer, in the order of first appearance."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(layer_of(key), []).append(key)
    return groups
