"""Elastic weight consolidation, worked by hand."""

import pytest
import torch

from duet.losses.ewc import ewc_penalty


def test_values_and_gradient_by_hand():
    current = [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([[3.0]], requires_grad=True)]
    previous = [torch.tensor([0.0, 2.0]), torch.tensor([[1.0]])]
    fisher = [torch.tensor([4.0, 100.0]), torch.tensor([[0.5]])]
    loss = ewc_penalty(current, previous, fisher)
    assert loss.item() == pytest.approx((4 * 1 + 100 * 0 + 0.5 * 4) / 2)
    loss.backward()
    assert current[0].grad.tolist() == [4.0, 0.0]
    assert current[1].grad.tolist() == [[1.0]]


def test_nothing_to_hold_is_refused():
    with pytest.raises(ValueError, match="EWC over 0"):
        ewc_penalty([], [], [])
    with pytest.raises(ValueError, match="EWC over 1, 1 and 0"):
        ewc_penalty([torch.ones(1)], [torch.ones(1)], [])
