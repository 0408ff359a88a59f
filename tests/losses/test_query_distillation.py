"""Matching and distillation of queries."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_convert, generalized_box_iou

from duet.losses.query_distillation import generalized_iou, match_queries, weighted_query_distillation


def queries(batch=2, count=7, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, count, classes, generator=generator)
    boxes = 0.2 + 0.3 * torch.rand(batch, count, 4, generator=generator)
    return logits, boxes


def test_shuffled_queries_are_found_again():
    logits, boxes = queries()
    order = torch.stack([torch.randperm(7, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)])
    shuffled = [torch.stack([one[places] for one, places in zip(values, order)]) for values in (logits, boxes)]
    found = match_queries(*shuffled, logits, boxes)
    for image in range(2):
        assert torch.equal(shuffled[0][image][found[image]], logits[image])


def test_the_confident_query_of_the_teacher_chooses_first():
    teacher_logits = torch.tensor([[[-6.0], [6.0]]])
    teacher_boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]]])
    student_logits = torch.tensor([[[6.0], [0.0]]])
    student_boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]])
    found = match_queries(student_logits, student_boxes, teacher_logits, teacher_boxes)
    assert found.tolist() == [[1, 0]]  # the teacher's second query, the sure one, gets the student's first


def test_equal_queries_have_no_loss_and_no_gradient():
    logits, boxes = queries()
    student = logits.clone().requires_grad_(), boxes.clone().requires_grad_()
    loss = weighted_query_distillation(*student, logits, boxes)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert student[0].grad.abs().max() < 1e-6


def test_values_worked_by_hand():
    teacher_logits, student_logits = torch.tensor([[[0.0]]]), torch.tensor([[[2.0]]])
    teacher_boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2]]])
    student_boxes = torch.tensor([[[0.6, 0.5, 0.2, 0.2]]])
    half = torch.tensor(0.5)
    cross_entropy = -(half * torch.tensor(2.0).sigmoid().log() + half * torch.tensor(-2.0).sigmoid().log())
    entropy = torch.log(torch.tensor(2.0))
    overlap = (0.1 * 0.2) / (0.3 * 0.2)  # of two boxes of side 0.2, shifted by half a side; the hull is their union
    expected = (cross_entropy - entropy + 0.5 * (5 * 0.1 + 2 * (1 - overlap))) / 1.0
    found = weighted_query_distillation(student_logits, student_boxes, teacher_logits, teacher_boxes)
    torch.testing.assert_close(found, expected)


def test_nothing_to_distil_is_zero_with_a_graph():
    student = torch.zeros(1, 0, 3, requires_grad=True), torch.zeros(1, 0, 4, requires_grad=True)
    loss = weighted_query_distillation(*student, torch.zeros(1, 0, 3), torch.zeros(1, 0, 4))
    loss.backward()
    assert loss.item() == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_generalized_iou_agrees_with_torchvision(seed):
    generator = torch.Generator().manual_seed(seed)
    boxes, others = (0.01 + 0.9 * torch.rand(5, 4, generator=generator) for _ in range(2))
    corners = [box_convert(values, "cxcywh", "xyxy") for values in (boxes, others)]
    expected = generalized_box_iou(*corners)
    torch.testing.assert_close(generalized_iou(boxes.unsqueeze(1), others.unsqueeze(0)), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(generalized_iou(boxes, boxes), torch.ones(5))


def test_a_box_without_area_equals_itself():
    point = torch.tensor([0.5, 0.5, 0.0, 0.0])
    assert generalized_iou(point, point).item() == pytest.approx(1.0)
