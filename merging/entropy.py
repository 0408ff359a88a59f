"""Losses that need no labels: the entropy of a model's predictions."""

from __future__ import annotations

from torch import Tensor


def entropy_loss(class_logits: Tensor) -> Tensor:
    """Mean entropy of the predicted distributions, −(1/N) Σ_n Σ_c p_nc log p_nc (AdaMerging, Yang et al., ICLR 2024).

    Args:
        class_logits: ``(N, C)``, unnormalised, N ≥ 1, C ≥ 2.

    Returns:
        A scalar in nats, from 0 to log C.

    Raises:
        ValueError: when the shape is another, such as no sample, or one class, whose entropy is 0 whatever the model.
    """
    if class_logits.ndim != 2 or class_logits.shape[0] < 1 or class_logits.shape[1] < 2:
        raise ValueError(f"class_logits: expected (N ≥ 1, C ≥ 2), got {tuple(class_logits.shape)}")
    log_probabilities = class_logits.log_softmax(dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=-1).mean()


def first_token_entropy(token_logits: Tensor) -> Tensor:
    """The entropy of the first answer token of a text-to-text model, as in the authors' setting with Flan-T5.

    The answers of the GLUE tasks begin with different tokens, so that the first one stands for the class.

    Args:
        token_logits: ``(N, T, V)`` of the decoder; only ``[:, 0]`` counts.

    Returns:
        A scalar in nats.

    Raises:
        ValueError: when the shape is another.
    """
    if token_logits.ndim != 3 or token_logits.shape[1] < 1:
        raise ValueError(f"token_logits: expected (N, T ≥ 1, V), got {tuple(token_logits.shape)}")
    return entropy_loss(token_logits[:, 0])
