import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from duet.losses.distillation import (
    erd_distillation,
    filtered_distillation,
    lwf_distillation,
    outstanding,
    weighted_distillation,
)

BOTH = [filtered_distillation, weighted_distillation]


def random_outputs(seed, batch=2, anchors=8, classes=3, bins=4):
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randn(batch, anchors, classes, generator=generator)
    boxes = torch.randn(batch, anchors, 4, bins, generator=generator)
    return classes, boxes


def test_filtered_classes_by_hand():
    # Four anchors with largest teacher logits 0, 1, 2, 3: the 75th percentile keeps the last one.
    teacher = torch.tensor([[[0.0, -1.0], [1.0, -1.0], [2.0, -1.0], [3.0, -1.0]]])
    student = teacher + torch.tensor([[[9.0, 9.0], [9.0, 9.0], [9.0, 9.0], [1.0, 2.0]]])
    boxes = torch.zeros(1, 4, 4, 4)
    assert filtered_distillation(student, teacher, boxes, boxes).item() == pytest.approx(1.0 + 4.0)


def test_filtered_boxes_by_hand():
    # One anchor; sides with bin variance 0, 0.25, 1 and 4: the 75th percentile is 1.75 and keeps the first three.
    spread = torch.tensor([0.0, 1.0, 2.0, 4.0])
    teacher = torch.stack([-spread / 2, spread / 2], -1).view(1, 1, 4, 2)
    student = torch.zeros(1, 1, 4, 2)
    classes = torch.zeros(1, 1, 1)

    def kl(gap):  # KL(uniform ‖ softmax(±gap/2))
        first = 1 / (1 + math.exp(gap))
        return 0.5 * math.log(0.5 / first) + 0.5 * math.log(0.5 / (1 - first))

    expected = (kl(0.0) + kl(1.0) + kl(2.0)) / 3
    assert filtered_distillation(classes, classes, student, teacher).item() == pytest.approx(expected)


def test_weighted_by_hand():
    teacher = torch.tensor([[[math.log(3.0)]]])  # probability 0.75
    student = torch.zeros(1, 1, 1)  # probability 0.5
    cross = -(0.75 * math.log(0.5) + 0.25 * math.log(0.5))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    boxes = torch.zeros(1, 1, 4, 2)
    assert weighted_distillation(student, teacher, boxes, boxes).item() == pytest.approx(cross - entropy)
    taught = torch.tensor([0.0, math.log(3.0)]).expand(1, 1, 4, 2)  # 0.25 and 0.75
    kl = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    value = weighted_distillation(teacher, teacher, boxes, taught).item()
    assert value == pytest.approx(0.75 * kl)  # confidence 0.75, divided by max(0.75, 1)


def test_weighted_does_not_grow_with_the_number_of_equal_images():
    student, boxes = random_outputs(0, anchors=64)
    teacher, taught = random_outputs(1, anchors=64)
    one = weighted_distillation(student, teacher, boxes, taught)
    two = weighted_distillation(*(torch.cat([value, value]) for value in (student, teacher, boxes, taught)))
    assert two.item() == pytest.approx(one.item(), rel=1e-5)


@pytest.mark.parametrize("loss", BOTH)
@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_equal_outputs_give_zero_and_no_gradient(loss, seed):
    classes, boxes = random_outputs(seed)
    student, sides = classes.clone().requires_grad_(), boxes.clone().requires_grad_()
    value = loss(student, classes, sides, boxes)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-5)
    assert student.grad.abs().max() < 1e-5
    assert sides.grad.abs().max() < 1e-5


@pytest.mark.parametrize("loss", BOTH)
@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_different_outputs_give_a_positive_value_and_gradient(loss, seed):
    classes, boxes = random_outputs(seed)
    teacher, taught = random_outputs(seed + 5000)
    student, sides = classes.requires_grad_(), boxes.requires_grad_()
    value = loss(student, teacher, sides, taught)
    value.backward()
    assert value.item() > 0
    assert student.grad.abs().sum() > 0
    assert sides.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", BOTH)
def test_no_anchor_gives_zero(loss):
    empty = torch.zeros(0, 4, 2, requires_grad=True)
    boxes = torch.zeros(0, 4, 4, 4, requires_grad=True)
    assert loss(empty, empty.detach(), boxes, boxes.detach()).item() == 0.0


@pytest.mark.parametrize("loss", BOTH)
def test_the_teacher_gets_no_gradient_and_half_precision_works(loss):
    classes, boxes = random_outputs(3)
    teacher, taught = random_outputs(4)
    value = loss(classes.half(), teacher.half(), boxes.half(), taught.half())
    assert value.dtype == torch.float32
    assert torch.isfinite(value)


@given(seed=st.integers(0, 1000), anchors=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_filters_keep_what_torch_quantile_keeps(seed, anchors):
    student, boxes = random_outputs(seed, 1, anchors)
    teacher, taught = random_outputs(seed + 9, 1, anchors)
    top = teacher.amax(-1) >= torch.quantile(teacher.amax(-1), 0.75)
    variance = taught.var(-1, unbiased=False)
    steady = variance <= torch.quantile(variance, 0.75)
    divergence = (boxes.softmax(-1) * (boxes.log_softmax(-1) - taught.log_softmax(-1))).sum(-1)
    expected = (student - teacher)[top].square().sum(-1).mean() + divergence[steady].mean()
    assert filtered_distillation(student, teacher, boxes, taught).item() == pytest.approx(expected.item(), rel=1e-4)


def outputs(seed, anchors=40):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, anchors, 3, generator=generator), torch.randn(2, anchors, 4, 5, generator=generator)


@pytest.mark.parametrize("loss", [lwf_distillation, erd_distillation])
def test_baselines_are_zero_for_equal_outputs_and_positive_otherwise(loss):
    classes, boxes = outputs(0)
    assert loss(classes, classes, boxes, boxes).item() == pytest.approx(0, abs=1e-5)
    other_classes, other_boxes = outputs(1)
    assert loss(other_classes, classes, other_boxes, boxes).item() > 0.01
    nothing = torch.zeros(2, 0, 3, requires_grad=True), torch.zeros(2, 0, 4, 5, requires_grad=True)
    loss(nothing[0], nothing[0].detach(), nothing[1], nothing[1].detach()).backward()


def test_lwf_by_hand():
    student, teacher = torch.tensor([[[4.0]]]), torch.tensor([[[0.0]]])
    soft = torch.tensor(2.0).sigmoid()
    expected = 4 * (-(soft.log() + (1 - soft).log()) / 2 - math.log(2))
    found = lwf_distillation(student, teacher, torch.zeros(1), torch.zeros(1))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_erd_takes_the_responses_that_stand_out():
    teacher = torch.full((1, 50, 2), -6.0)
    teacher[0, 7, 1] = 3.0  # the one sure anchor
    student = teacher.clone()
    student[0, 7] += 1.0
    student[0, 20] += 5.0  # not chosen
    boxes = torch.zeros(1, 50, 4, 5)
    assert erd_distillation(student, teacher, boxes, boxes).item() == pytest.approx(2.0, rel=1e-5)
    assert outstanding(torch.tensor([[0.0] * 9 + [1.0]]), 2.0).tolist() == [[False] * 9 + [True]]
    assert not outstanding(torch.ones(1, 4), 2.0).any()
