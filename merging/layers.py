"""Layers and the tensors that are no parameters, told from the names PyTorch gives them."""

from __future__ import annotations

BATCH_NORM_STATISTICS = ("running_mean", "running_var")


def layer_of(key: str) -> str:
    """The module that owns a tensor: the key without its last component; a key without a dot is its own layer."""
    return key.rpartition(".")[0] or key


def is_statistic(key: str) -> bool:
    """Whether the key names a running mean or variance of a BatchNorm: a buffer, no parameter."""
    return key.rpartition(".")[2] in BATCH_NORM_STATISTICS


def is_variance(key: str) -> bool:
    """Whether the key names a running variance of a BatchNorm."""
    return key.rpartition(".")[2] == "running_var"
