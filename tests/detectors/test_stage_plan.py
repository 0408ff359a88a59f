import pytest
import torch
from torch import nn

from duet.config import DistillationSettings
from duet.detectors.stage_plan import AddedLosses, StagePlan


def added(value):
    plan = StagePlan(distillation=DistillationSettings())
    losses = AddedLosses(plan, nn.Linear(1, 1), lambda outputs, images: torch.tensor(value), lambda images: 1.0)
    losses(None, torch.zeros(1, 3, 4, 4))
    return losses


@pytest.mark.parametrize("value", [0.0, 2e-5, -3e-7])
def test_distillation_within_rounding_of_equal_networks_is_refused(value):
    with pytest.raises(RuntimeError, match="distill loss is switched on and stayed zero for 50 steps"):
        added(value).refuse_dead(50)


def test_distillation_of_networks_that_differ_is_not():
    added(1e-2).refuse_dead(50)
